"""Models in processes of their own: what hangs, crashes or eats memory is ended and replaced, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sagittal.errors import ConfigError, ResourceError
from sagittal.jobs.memory import budget_bytes, cpu_s, machine_bytes, resident_bytes
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.pool import Pool
from sagittal.jobs.predict_now import Busy, PredictNow, describe_tensors
from sagittal.jobs.worker import AnswerError, Limits, Worker, WorkerEnded

#: A process with handlers of the test: it does as it is told, and needs no torch.
SCRIPT = """
import os, sys, time
from sagittal.errors import ReadError, ScopeError
from sagittal.jobs import worker_process
from sagittal.jobs.worker_process import start

worker_process.BEAT_S = 0.05

def load(station, request):
    station.model = object()
    return {"facts": {"checksum": CHECKSUMS.get(request["path"], "")}, "warm_s": 0.0}

def answer(station, request):
    do, once = request["study"], request.get("once")
    if once:
        if os.path.exists(once):
            return {"pid": os.getpid()}
        open(once, "w").close()
    if do == "hang":
        time.sleep(600)
    if do == "spin":
        while True:
            pass
    if do == "crash":
        os.kill(os.getpid(), 11)
    if do == "memory":
        kept = []
        while True:
            kept.append(bytearray(os.urandom(2**20)) * 16)
    if do == "unreadable":
        raise ReadError("a file is cut off")
    if do == "bug":
        raise KeyError("Smith^John")
    if do == "slow":
        for n in range(4):
            station.advance(n / 4)
            time.sleep(0.2)
    return {"pid": os.getpid()}

CHECKSUMS = eval(sys.argv[1])
start(sys.argv[2:], {"load": load, "answer": answer})
"""


@pytest.fixture
def troubles() -> list[tuple[str, str]]:
    """What an administrator is told, in order."""
    return []


def settle(pool: Pool) -> None:
    """Wait until all was told."""
    pool._telling.submit(int).result(10)


@pytest.fixture
def make_pool(served: tuple[ServedModel, ...], troubles: list[tuple[str, str]]) -> Iterator[Callable[..., Pool]]:
    """Pools of processes that do as they are told."""
    made: list[Pool] = []
    checksums = {str(model.path): model.checksum for model in served}

    def make(models: tuple[ServedModel, ...] = served, **more: Any) -> Pool:
        command = (sys.executable, "-W", "ignore", "-c", SCRIPT, repr(checksums))
        given = {
            "command": command,
            "report": lambda code, level, message, about: troubles.append((code, message)),
            "ended": lambda code, about: troubles.append((f"end {code}", about)),
            **more,
        }
        made.append(Pool(models, threads=1, **given))
        return made[-1]

    yield make
    for pool in made:
        pool.stop(0.2)


def test_a_model_is_loaded_when_it_is_asked_and_stays(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]
) -> None:
    pool = make_pool()
    assert [state["state"] for state in pool.states()] == ["cold", "cold", "cold"]
    first = pool.answer(served[0].checksum, {"study": "ok"})
    assert pool.answer(served[0].checksum, {"study": "ok"}) == first
    assert [state["state"] for state in pool.states()] == ["ready", "cold", "cold"]
    assert pool.ready(served[0].checksum)
    assert pool.states()[0]["bytes"] > 2**20


def test_progress_is_told(make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]) -> None:
    seen: list[float] = []
    make_pool().answer(served[0].checksum, {"study": "slow"}, progress=seen.append)
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


@pytest.mark.parametrize(
    ("trouble", "code", "how", "words"),
    [
        ("crash", "model-crashed", "crash", r"crashed \(SIGSEGV\)"),
        ("hang", "model-hangs", "hang", "computed nothing and came no further for 1 s"),
        ("memory", "model-memory", "memory", "it took .* GB of memory, and may take 0.4 GB"),
    ],
)
def test_a_process_that_fails_is_ended_and_the_next_try_succeeds(
    make_pool: Callable[..., Pool],
    served: tuple[ServedModel, ...],
    troubles: list[tuple[str, str]],
    tmp_path: Path,
    trouble: str,
    code: str,
    how: str,
    words: str,
) -> None:
    frugal = replace(served[0], entry=replace(served[0].entry, memory_bytes=400 * 2**20))
    pool = make_pool((frugal, served[1]), idle_s=1.0)
    bystander = pool.answer(served[1].checksum, {"study": "ok"})
    request = {"study": trouble, "once": str(tmp_path / "once")}
    with pytest.raises(WorkerEnded, match=words) as told:
        pool.answer(served[0].checksum, request)
    assert told.value.how == how
    assert pool.answer(served[0].checksum, request)["pid"] > 0
    settle(pool)
    assert [found for found, _ in troubles] == [code, f"end {code}"]
    assert "chest" in troubles[0][1]
    assert pool.answer(served[1].checksum, {"study": "ok"}) == bystander


def test_a_study_that_takes_too_long_is_given_up(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...], troubles: list[tuple[str, str]]
) -> None:
    hasty = replace(served[0], entry=replace(served[0].entry, limit_s=0.5))
    pool = make_pool((hasty,))
    with pytest.raises(WorkerEnded, match="did not answer within 0.5 s") as told:
        pool.answer(hasty.checksum, {"study": "spin"})
    settle(pool)
    assert told.value.how == "time"
    assert [code for code, _ in troubles] == ["model-too-slow"]


def test_a_process_that_holds_the_interpreter_gives_no_sign_of_life(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...], troubles: list[tuple[str, str]]
) -> None:
    pool = make_pool(silence_s=1.0)
    pool.answer(served[0].checksum, {"study": "ok"})
    pid = pool._places[served[0].checksum].worker.process.pid  # type: ignore[union-attr]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(pool.answer, served[0].checksum, {"study": "slow"})
        time.sleep(0.1)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerEnded, match="no sign of life for 1 s"):
            asked.result(20)
    settle(pool)
    assert [code for code, _ in troubles] == ["model-hangs"]


def test_one_who_waited_too_long_does_not_end_what_another_is_at(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...], troubles: list[tuple[str, str]]
) -> None:
    pool = make_pool()
    pool.answer(served[0].checksum, {"study": "ok"})
    with ThreadPoolExecutor(1) as threads:
        long = threads.submit(pool.answer, served[0].checksum, {"study": "slow"})
        while not pool.states()[0]["busy"]:
            time.sleep(0.01)
        time.sleep(0.1)  # until its signs of life say what it is at
        hasty = pool.submit(served[0].checksum, {"do": "answer", "study": "ok"}, limit_s=0.05)
        with pytest.raises(AnswerError, match="at work on another study"):
            hasty.result(20)
        assert long.result(20)["pid"] > 0
    settle(pool)
    assert troubles == []


def test_errors_of_a_model_are_told_without_what_stands_in_a_header(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...], troubles: list[tuple[str, str]]
) -> None:
    pool = make_pool()
    with pytest.raises(AnswerError, match="a file is cut off") as told:
        pool.answer(served[0].checksum, {"study": "unreadable"})
    assert (told.value.kind, told.value.again) == ("ReadError", True)
    with pytest.raises(AnswerError, match="an unexpected KeyError") as told:
        pool.answer(served[0].checksum, {"study": "bug"})
    assert "Smith" not in str(told.value)
    settle(pool)
    assert troubles == []


def test_a_process_that_ends_again_and_again_is_left_alone_for_a_while(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]
) -> None:
    pool = make_pool()
    for _ in range(5):
        with pytest.raises(WorkerEnded):
            pool.answer(served[0].checksum, {"study": "crash"})
    with pytest.raises(ResourceError, match="ended 5 times within 5 min; it rests"):
        pool.answer(served[0].checksum, {"study": "ok"})


def test_the_model_that_was_used_longest_ago_makes_room(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]
) -> None:
    pool = make_pool()
    for place in pool._places.values():
        place.need = 2**20
    for model in served[:2]:
        pool.answer(model.checksum, {"study": "ok"})
    pool.answer(served[0].checksum, {"study": "ok"})
    taken = sum(place.bytes for place in pool._places.values())
    pool.budget = taken + 2**20 // 2
    pool.answer(served[2].checksum, {"study": "ok"})
    assert [state["state"] for state in pool.states()] == ["ready", "cold", "ready"]


def test_a_model_at_work_is_not_unloaded(make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]) -> None:
    pool = make_pool()
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(pool.answer, served[0].checksum, {"study": "slow"})
        while not pool.states()[0]["busy"]:
            time.sleep(0.01)
        while pool.states()[0]["state"] != "ready":
            time.sleep(0.01)
        pool.budget = 1
        other = threads.submit(pool.answer, served[1].checksum, {"study": "ok"})
        assert busy.result(30)["pid"] > 0
        assert other.result(30)["pid"] > 0
    assert [state["state"] for state in pool.states()][:2] == ["cold", "ready"]


def test_a_package_that_was_changed_meanwhile_is_not_used(
    make_pool: Callable[..., Pool], served: tuple[ServedModel, ...], troubles: list[tuple[str, str]]
) -> None:
    other = replace(served[0], checksum="00" * 32)
    pool = make_pool((other,))
    with pytest.raises(ResourceError, match="changed after the service was started"):
        pool.answer(other.checksum, {"study": "ok"})
    settle(pool)
    assert [code for code, _ in troubles] == ["model-not-loaded"]
    assert pool.states()[0]["state"] == "failed"


def test_processes_end_with_the_service(make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]) -> None:
    pool = make_pool()
    pool.answer(served[0].checksum, {"study": "ok"})
    worker = pool._places[served[0].checksum].worker
    assert worker is not None
    pool.stop(5)
    assert worker.process.wait(5) == 0
    assert worker.ended is not None
    assert worker.ended.how == "stopped"


def test_a_process_whose_service_was_killed_ends_by_itself() -> None:
    worker = Worker(Limits(), command=(sys.executable, "-W", "ignore", "-c", SCRIPT, "{}"))
    worker.process.stdin.close()  # type: ignore[union-attr]
    assert worker.process.wait(20) == 0


def test_models_are_found_by_name_and_version(make_pool: Callable[..., Pool], served: tuple[ServedModel, ...]) -> None:
    pool = make_pool()
    assert pool.find("chest") is served[0]
    assert pool.find("chest", served[1].checksum[:12]) is served[1]
    with pytest.raises(ConfigError, match="Did you mean 'chest'"):
        pool.find("chset")
    with pytest.raises(ConfigError, match="no version 'zz'"):
        pool.find("chest", "zz")


def test_memory_is_measured() -> None:
    assert 2**28 < budget_bytes() < machine_bytes()
    assert resident_bytes(os.getpid()) > 2**20
    assert resident_bytes(2**22 + 1) == 0
    assert (cpu_s(os.getpid()) or 0) > 0


# With real models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def now(real_pool: Pool) -> PredictNow:
    return PredictNow(real_pool)


def png_of(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image as Pictures

    stream = io.BytesIO()
    Pictures.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_is_answered_as_the_model_answers_it(
    now: PredictNow, served: tuple[ServedModel, ...], packages: SimpleNamespace, tmp_path: Path
) -> None:
    from sagittal.model.load import load_model
    from sagittal.read.requested import find_requested

    pixels = np.random.default_rng(3).integers(0, 255, (12, 10), dtype=np.uint8)
    (tmp_path / "one.png").write_bytes(png_of(pixels))
    expected = load_model(packages.chest).predict(find_requested(tmp_path / "one.png")[0][0])
    found = now.predict(served[0], png_of(pixels)).values
    assert found["state"] == "answered"
    assert [one["probability"] for one in found["classes"]] == pytest.approx(expected.probability.tolist(), abs=1e-6)
    assert found["decision"] == list(expected.decision)
    assert found["model"]["checksum"] == served[0].checksum


def test_pictures_that_wait_together_get_their_own_answers(
    now: PredictNow, served: tuple[ServedModel, ...], headers: SimpleNamespace
) -> None:
    rng = np.random.default_rng(5)
    pictures = [png_of(rng.integers(0, 255, (12, 10), dtype=np.uint8)) for _ in range(40)]
    alone = [now.predict(served[0], data).values["classes"][1]["probability"] for data in pictures]
    mixed: list[bytes] = []
    for n, data in enumerate(pictures):
        mixed += [data] + ([b"not a picture"] if n % 5 == 0 else [])
    answers = [future.result(60).values for future in [now.submit(served[0], data) for data in mixed]]
    together = [a["classes"][1]["probability"] for a in answers if "error" not in a]
    assert together == pytest.approx(alone, abs=1e-6)
    assert [n for n, a in enumerate(answers) if "error" in a] == [n for n, data in enumerate(mixed) if len(data) == 13]
    dicom = now.predict(served[0], headers.file_bytes(headers.picture())).values
    assert dicom["state"] == "answered"


def test_pictures_that_a_model_was_not_made_for_are_refused(
    now: PredictNow, served: tuple[ServedModel, ...], headers: SimpleNamespace
) -> None:
    large = now.predict(served[0], png_of(np.zeros((200, 200), np.uint8))).values
    assert large["state"] == "refused"
    assert "200 x 200 voxels, the model was made for 12 x 10" in large["reason"]
    mr = now.predict(served[0], headers.file_bytes(headers.picture(Modality="MR"))).values
    assert mr["state"] == "refused"
    noise = np.random.default_rng(0).integers(0, 255, (12, 10), dtype=np.uint8)
    cut = now.predict(served[0], png_of(noise)[:100]).values
    assert cut["error"] == "ReadError"
    assert now.predict(served[0], png_of(np.zeros((12, 10), np.uint8))).values["state"] in {"answered", "abstained"}


def test_too_much_is_turned_away(
    now: PredictNow, served: tuple[ServedModel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no small one"):
        now.predict(served[0], bytes(33 * 2**20))
    monkeypatch.setattr("sagittal.jobs.predict_now.MOST_WAITING", 0)
    with pytest.raises(Busy, match="wait for the model chest"):
        now.predict(served[0], b"")


def test_tensors_in_both_forms_give_the_model_s_answer(
    now: PredictNow, served: tuple[ServedModel, ...], packages: SimpleNamespace
) -> None:
    from sagittal.model.load import load_model

    arrays = np.random.default_rng(4).integers(0, 256, (5, 1, 12, 10)).astype(np.uint8)
    model = load_model(packages.chest)
    prepared = now.infer(served[0], {"array": arrays})
    np.testing.assert_allclose(prepared["logits"], model.logits(arrays), atol=1e-6)  # type: ignore[union-attr]
    assert prepared["probability"].shape == prepared["decision"].shape == (5, 2)
    raw = now.infer(served[0], {"image": arrays[:, 0].astype(np.float32)})
    for name in ("probability", "decision", "accepted", "conformal", "gate_score"):
        np.testing.assert_allclose(raw[name], {**prepared, **raw}[name], atol=1e-6)
    np.testing.assert_allclose(raw["probability"], prepared["probability"], atol=1e-6)
    np.testing.assert_array_equal(raw["accepted"], prepared["accepted"])


def test_volumes_as_tensors_give_a_mask(now: PredictNow, served: tuple[ServedModel, ...]) -> None:
    values = np.random.default_rng(4).normal(40, 100, (1, 8, 20, 24)).astype(np.float32)
    found = now.infer(served[2], {"image": values, "spacing_mm": np.array([[3.0, 1.0, 1.0]], np.float32)})
    assert found["mask"].shape == (1, 8, 20, 24)
    assert set(np.unique(found["mask"])) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"imgae": np.zeros((1, 12, 10), np.float32)}, "Did you mean 'image'"),
        ({"array": np.zeros((1, 1, 12, 11), np.uint8)}, "must be .N, 1, 12, 10. uint8"),
        ({"image": np.zeros((1, 2, 3, 4, 5), np.float32)}, "must be .N, rows, columns."),
        ({"image": np.zeros((2, 12, 10), np.float32), "spacing_mm": np.zeros((1, 2), np.float32)}, "different numbers"),
        ({}, "the input 'image' is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    now: PredictNow, served: tuple[ServedModel, ...], tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(AnswerError, match=message) as told:
        now.infer(served[0], tensors)
    assert told.value.kind == "ConfigError"


def test_the_description_of_tensors_is_what_they_are(now: PredictNow, served: tuple[ServedModel, ...]) -> None:
    told = describe_tensors(served[0])
    assert told["inputs"][0] == {"name": "array", "datatype": "UINT8", "shape": [-1, 1, 12, 10]}
    found = now.infer(served[0], {"array": np.zeros((2, 1, 12, 10), np.uint8)})
    for output in told["outputs"]:
        assert found[output["name"]].shape == tuple(2 if n == -1 else n for n in output["shape"])
    assert [one["name"] for one in describe_tensors(served[2])["inputs"]] == ["image", "spacing_mm"]


def test_many_callers_at_once(now: PredictNow, served: tuple[ServedModel, ...]) -> None:
    data = png_of(np.full((12, 10), 80, np.uint8))
    expected = now.predict(served[0], data).values["classes"]
    found: list[Any] = []

    def call() -> None:
        for _ in range(10):
            found.append(now.predict(served[0], data).values["classes"])

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 80
    for one in found:
        assert [c["probability"] for c in one] == pytest.approx([c["probability"] for c in expected], abs=1e-6)


class AnsweringPool:
    """Stands for a pool whose model answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[bytes], Future[Any]]] = []
        self.up = True

    def submit(self, _checksum: str, request: dict[str, Any], *, limit_s: float) -> Future[Any]:
        future: Future[Any] = Future()
        self.sent.append((request["files"], future))
        return future

    def ready(self, _checksum: str) -> bool:
        return self.up

    def answer(self, number: int) -> None:
        files, future = self.sent[number]
        future.set_result({"answers": [b'{"of":"%s"}' % data for data in files]})


def test_pictures_that_come_while_the_model_is_at_work_go_together(served: tuple[ServedModel, ...]) -> None:
    pool = AnsweringPool()
    now = PredictNow(pool)  # type: ignore[arg-type]
    futures = [now.submit(served[0], b"%d" % n) for n in range(50)]
    assert [len(files) for files, _ in pool.sent] == [1, 1], "one at work, one that is next"
    pool.answer(0)
    assert [len(files) for files, _ in pool.sent] == [1, 1, 32]
    pool.answer(1)
    pool.answer(2)
    pool.answer(3)
    assert [future.result(0).values["of"] for future in futures] == [str(n) for n in range(50)]
    alone = now.submit(served[0], b"next")
    assert pool.sent[-1][0] == [b"next"], "a single caller waits for nobody"
    pool.answer(4)
    assert alone.result(0).values == {"of": "next"}


def test_large_pictures_do_not_go_together(served: tuple[ServedModel, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.jobs.predict_now.MOST_BYTES", 100)
    pool = AnsweringPool()
    now = PredictNow(pool)  # type: ignore[arg-type]
    futures = [now.submit(served[0], bytes(40)) for _ in range(6)]
    for number in range(4):
        pool.answer(number)
    assert [len(files) for files, _ in pool.sent] == [1, 1, 2, 2]
    assert all(future.done() for future in futures)


def test_nothing_waits_for_a_model_whose_process_ended(served: tuple[ServedModel, ...]) -> None:
    pool = AnsweringPool()
    now = PredictNow(pool)  # type: ignore[arg-type]
    futures = [now.submit(served[0], b"%d" % n) for n in range(9)]
    pool.up = False
    pool.sent[0][1].set_exception(WorkerEnded("crash", "it crashed"))
    pool.sent[1][1].set_exception(WorkerEnded("crash", "it crashed"))
    assert all(isinstance(future.exception(0), WorkerEnded) for future in futures)
    pool.up = True
    again = [now.submit(served[0], b"%d" % n, alone=True) for n in range(3)]
    assert [files for files, _ in pool.sent[2:]] == [[b"0"], [b"1"], [b"2"]], (
        "a bad picture takes no other with it twice"
    )
    for number in (2, 3, 4):
        pool.answer(number)
    assert [future.result(0).values["of"] for future in again] == ["0", "1", "2"]
    assert now._lines[served[0].checksum].waiting == 0


def test_secrets_of_the_service_are_not_handed_to_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAGITTAL_SERVE__METRICS__TOKEN", "a secret")
    told = tmp_path / "environment"
    script = f"import os; open({str(told)!r}, 'w').write(repr(dict(os.environ)))"
    worker = Worker(Limits(), command=(sys.executable, "-c", script))
    worker.process.wait(20)
    assert "SAGITTAL_SERVE" not in told.read_text()
    assert "OMP_NUM_THREADS" in told.read_text()
