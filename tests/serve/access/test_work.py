"""Processes that only work: they share the jobs of one database, and leave ports, archive and spool of the service alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("fastapi")

from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs
from sagittal.errors import ConfigError, ServeError
from sagittal.protect.audit import Audit, read_records
from sagittal.serve import work as work_module
from sagittal.serve.config import read_config
from sagittal.serve.record import ended
from sagittal.serve.service import Service
from sagittal.serve.work import Helper


class Answers:
    """Stands for the job of a model; notes which process did which."""

    done: ClassVar[list[tuple[int, int]]] = []
    lock = threading.Lock()

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.spool = Path(arguments[3])
        self.spool.mkdir(parents=True)

    def __call__(self, work: Any) -> Mapping[str, Any]:
        time.sleep(0.05)
        with self.lock:
            self.done.append((id(self), work.job.id))
        return {}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> type[Answers]:
    model = SimpleNamespace(name="m", entry=SimpleNamespace(role="answers"))
    pool = SimpleNamespace(warm=lambda: None, stop=lambda: None)
    monkeypatch.setattr(work_module, "read_packages", lambda _: (model,))
    monkeypatch.setattr(work_module, "Pool", lambda *_, **__: pool)
    monkeypatch.setattr(work_module, "AnswerJob", Answers)
    monkeypatch.setattr(Answers, "done", [])
    return Answers


def test_two_workers_share_the_jobs_and_each_is_done_once(service: Service, answers: type[Answers]) -> None:
    with service.db.write() as c:
        wanted = [enqueue(c, "answer", f"answer:{n}", {"n": n}) for n in range(12)]
    helpers = [Helper(service.config), Helper(service.config)]
    spools = [helper._spool for helper in helpers]
    for helper in helpers:
        helper.start()
    for _ in range(200):
        if len(answers.done) >= 12:
            break
        time.sleep(0.05)
    for helper in helpers:
        helper.stop()
    assert sorted(job for _, job in answers.done) == wanted
    assert len({worker for worker, _ in answers.done}) == 2
    assert not any(spool.exists() for spool in spools)
    with service.db.read() as c:
        assert {row.state for row in c.execute(jobs.select())} == {"done"}


def test_worker_needs_models_and_a_database_that_is_there(
    tmp_path: Path, answers: type[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(flags={"server.data": str(tmp_path / "nothing")})
    with pytest.raises(ServeError, match="does not exist"):
        Helper(config)
    monkeypatch.setattr(work_module, "read_packages", lambda _: ())
    with pytest.raises(ConfigError, match="needs the models"):
        Helper(config)


@pytest.mark.parametrize(
    ("kind", "how", "told"),
    [
        ("deliver", "done", ("send", "done")),
        ("deliver", "dead", ("send", "failed")),
        ("fetch", "done", ("import", "done")),
        ("deliver", "waiting", None),
        ("upload", "done", None),
    ],
)
def test_what_leaves_or_comes_is_in_the_trail(
    service: Service, kind: str, how: str, told: tuple[str, str] | None, make_service: Callable[..., Service]
) -> None:
    job: Any = SimpleNamespace(
        kind=kind, id=1, study_id=None, payload={"destination": "pacs", "delivery": 1, "accession": "SECRET"}
    )
    ended(Audit(service.db), service.queue, job, how)
    records = [(row["action"], row["outcome"]) for row in read_records(service.db)]
    assert records == ([told] if told else [])
    assert "SECRET" not in str(list(read_records(service.db)))
