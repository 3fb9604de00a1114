"""The service as its operator meets it: the command, its streams and exit codes, stopping, health, counters, logs."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx

from sagittal.cli.main import main
from sagittal.database.connect import Database
from sagittal.database.events import report_event
from sagittal.protect.audit import read_records, verify
from sagittal.serve import listen
from sagittal.serve.logs import JsonLines, hide, start_logs, stop_logs
from sagittal.serve.service import Service

Ask = Callable[..., httpx.Response]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SAGITTAL_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@dataclass
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command to its end, in this process: ``run("users", "list")``."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SAGITTAL_")]:
        monkeypatch.delenv(name)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments: str) -> Done:
        code = main(arguments)
        for number, handler in before.items():
            signal.signal(number, handler)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], Path]]:
    """A service in a process of its own, what it said at first, and its folder."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "sagittal.cli.main", "serve", "--json", "--port", "0", "--dicom-port", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--data", "data"],
            cwd=folder,
            env={**environment(), "SAGITTAL_SERVE__LIMITS__DISK_RESERVE": "1 MiB"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("}"):
            break
    yield process, json.loads(said), folder
    process.kill()
    process.wait()
    process.stdout.close()


def test_service_starts_tells_its_link_and_stops_in_order(
    served: tuple[subprocess.Popen[str], dict[str, Any], Path],
) -> None:
    process, said, folder = served
    assert said["dicom_port"] is None
    with httpx.Client(base_url=said["address"], trust_env=False) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        found = re.search(r"/link#([\w-]{43})", (folder / "log").read_text())
        assert found is not None
        body = {"name": "root", "password": "bone window at dusk"}
        came_in = client.post(f"/api/links/{found[1]}", json=body)
        assert came_in.status_code == 200
        assert client.get("/api/me").json()["role"] == "administrator"
    assert "torch" not in loaded(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    log = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    assert found[1] not in json.dumps(log)
    assert [line["route"] for line in log if line["logger"] == "sagittal.access"].count("/api/links/{secret}") == 1
    db = Database.open(f"sqlite:///{folder / 'data' / 'sagittal.db'}", create=False)
    assert verify(db).sound
    assert [row["action"] for row in read_records(db)] == ["start", "users", "login", "stop"]
    db.close()


def loaded(pid: int) -> str:
    """Libraries that a process has in memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def test_port_that_is_taken_ends_in_1_with_the_reason(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port, "--dicom-port", "0", "--data", "data")
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_service_is_not_opened_to_strangers(run: Run) -> None:
    """CVE-2025-0896."""
    done = run("serve", "--host", "0.0.0.0", "--port", "0", "--dicom-port", "0", "--data", "data")
    assert done.returncode == 2
    assert "tls_certificate" in done.stderr
    assert done.stdout == ""


def test_check_tells_all_and_ends_in_2_where_something_is_wrong(run: Run, write_text: Callable[..., Path]) -> None:
    path = str(
        write_text("sagittal.toml", '[server]\nhost = "0.0.0.0"\n[dicom]\nport = 0\n[[model]]\npath = "nowhere"\n')
    )
    done = run("serve", "--config", path, "--check", "--json")
    assert done.returncode == 2
    told = {one["where"]: one["level"] for one in json.loads(done.stdout)["findings"]}
    assert told["server.host"] in ("error", "warning")
    assert any(where.startswith("model") for where in told)
    shown = run("serve", "--config", path, "--print-config", "--port", "99")
    assert shown.returncode == 0
    assert "port = 99" in shown.stdout


def test_users_are_managed_without_the_service(run: Run) -> None:
    made = run("users", "add", "Ada", "--role", "reader", "--data", "data", "--json")
    assert made.returncode == 0
    assert re.search(r"/link#[\w-]{43}$", json.loads(made.stdout)["link"])
    token = run("users", "token", "ada", "--data", "data")
    assert token.stdout.startswith("sg_")
    assert run("users", "deactivate", "ada", "--data", "data").returncode == 0
    assert json.loads(run("users", "--data", "data", "--json").stdout)[0]["state"] == "out of use"
    for wrong, reason in (
        (("users", "add", "Bob"), "in which role"),
        (("users", "add", "Bob", "--role", "boss"), "unknown role"),
        (("users", "link", "ad"), "Did you mean 'ada'"),
        (("users", "lst"), "Did you mean 'list'"),
        (("users", "link"), "which user"),
    ):
        done = run(*wrong, "--data", "data")
        assert done.returncode == 2
        assert reason in done.stderr


def test_trail_is_checked_and_exported(run: Run, tmp_path: Path) -> None:
    run("users", "add", "Ada", "--role", "reader", "--data", "data")
    done = run("audit", "verify", "--data", "data", "--json")
    assert done.returncode == 0
    verdict = json.loads(done.stdout)
    assert (verdict["sound"], verdict["records"]) == (True, 1)
    assert run("audit", "verify", "--data", "data", "--expect", verdict["head"]).returncode == 0
    assert run("audit", "verify", "--data", "data", "--expect", "1:" + "0" * 64).returncode == 5
    assert run("audit", "verify", "--data", "data", "--expect", "1:0").returncode == 2
    exported = run("audit", "export", "--data", "data", "-o", "trail.jsonl")
    assert exported.returncode == 0
    assert json.loads((tmp_path / "trail.jsonl").read_text())["action"] == "users"
    import sqlite3

    with sqlite3.connect(tmp_path / "data" / "sagittal.db") as c:
        c.execute("UPDATE audit SET actor = 'eve' WHERE number = 1")
    broken = run("audit", "verify", "--data", "data")
    assert broken.returncode == 5
    assert "BROKEN: record 1 was changed" in broken.stdout
    assert run("audit", "verify", "--data", "nowhere").returncode == 1


# Health and counters --------------------------------------------------------------------------------------------------


def test_service_that_cannot_work_says_why_in_one_word(
    ask: Ask, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask("GET", "/health/ready").status_code == 200
    service.health.checks["disk"] = lambda: "full"

    def fails() -> str:
        raise OSError("/data/DOE^JANE is away")

    service.health.checks["archive"] = fails
    monkeypatch.setattr("sagittal.serve.health._FRESH_S", 0.0)
    answer = ask("GET", "/health/ready")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == {"disk": "full", "archive": "OSError"}
    assert ask("GET", "/health/live").status_code == 200
    service.stopping.set()
    assert ask("GET", "/health/ready").json()["reasons"]["service"] == "stopping"


def test_disk_below_the_reserve_is_not_ready(make_service: Callable[..., Service]) -> None:
    assert make_service({"limits.disk_reserve": "1000000 TiB"}).health.reasons() == {"disk": "full"}


def test_counters_are_those_of_prometheus_and_name_nobody(
    ask: Ask, service: Service, token: Callable[[str], dict[str, str]]
) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    headers = token("engineer")
    ask("GET", "/api/me", headers=headers)
    ask("GET", "/dicom-web/studies/1.2.840.113619.2.55/series", headers=headers)
    ask("GET", "/nowhere/SECRET-ID")
    service.metrics.count("dicom_associations", outcome="refused")
    report_event(service.db, "disk-full", "error", "The disk is full.")
    text = ask("GET", "/metrics", headers=headers).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = {
        (s.labels["route"], s.labels["status"]): s.value
        for s in families["sagittal_http_requests"].samples
        if s.name.endswith("_total")
    }
    assert requests["/api/me", "200"] == 1
    assert requests["(none)", "401"] == 1
    assert families["sagittal_open_events"].samples[0].value == 1
    assert families["sagittal_dicom_associations"].samples[0].labels == {"outcome": "refused"}
    assert families["sagittal_disk_free_bytes"].samples[0].value > 0
    assert "1.2.840" not in text
    assert "SECRET" not in text


# Logs -----------------------------------------------------------------------------------------------------------------

SECRETS = (
    "1.2.840.113619.2.55.3.604688119.971",
    "2.25.329800735698586629295641978511506172918",
    "DOE^JANE",
    "Wang^XiaoDong=王^小東=",
    "19520413",
    "1952-04-13",
    "/srv/studies/DOE_JANE/1.dcm",
    "sg_" + "x" * 43,
)


@pytest.mark.parametrize("secret", SECRETS)
def test_line_of_any_library_loses_what_names_a_patient(secret: str) -> None:
    stream = io.StringIO()
    handler = start_logs("info", stream)
    try:
        logging.getLogger("some.library").warning("could not send %s (%s)", secret, "why")
        logging.getLogger("sagittal.x").info("x", extra={"kind": secret, "frames": [secret]})
    finally:
        stop_logs(handler)
    text = stream.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 2
    for part in re.split(r"[\^=/]", secret):
        if len(part) > 3 and part not in ("studies",):
            assert json.dumps(part)[1:-1] not in text


def test_what_is_no_identifier_stays() -> None:
    for text in (
        "listening at 127.0.0.1:8042",
        "took 12.25 s, 1.5 GiB",
        "version 0.1.0",
        "job 812 is queued again",
    ):
        assert hide(text) == text


def test_line_cannot_be_forged_and_an_error_loses_its_text() -> None:
    record = logging.LogRecord("x", logging.ERROR, "f.py", 1, 'a\n{"level": "info"}\x1b[2J', (), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    try:
        raise ValueError("DOE JANE has a mass")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "failed", (), sys.exc_info())
    told = json.loads(JsonLines().format(record))
    assert told["kind"] == "ValueError"
    assert "test_line_cannot_be_forged" in told["frames"][0]
    assert "DOE" not in json.dumps(told)


def test_thread_that_ends_by_an_error_loses_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("DOE JANE has a mass")

    stream = io.StringIO()
    handler = start_logs("info", stream)
    try:
        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
    finally:
        stop_logs(handler)
    told = json.loads(stream.getvalue())
    assert (told["kind"], told["message"]) == ("ValueError", "the thread worker ended")
    assert "DOE" not in stream.getvalue() + capfd.readouterr().err


def test_long_lines_take_no_time() -> None:
    stream = io.StringIO()
    handler = start_logs("info", stream)
    began = time.process_time()
    try:
        for long in ("x" * 10**6, "x" * 10**5 + "^", "^" * 10**5, "1." * 10**5, "/a" * 10**5, "A " * 10**5 + "^"):
            logging.getLogger("sagittal.x").warning("%s", long)
    finally:
        stop_logs(handler)
    assert time.process_time() - began < 2.0
    assert max(len(line) for line in stream.getvalue().splitlines()) < 10_000


def test_loud_libraries_are_quiet() -> None:
    stream = io.StringIO()
    handler = start_logs("debug", stream)
    try:
        logging.getLogger("pynetdicom.acse").error("Patient DOE")
        logging.getLogger("uvicorn.access").info("GET /dicom-web/studies/1.2")
        logging.getLogger("sqlalchemy.engine").info("SELECT 'DOE'")
    finally:
        stop_logs(handler)
    assert stream.getvalue() == ""


def test_access_log_has_patterns_not_paths(ask: Ask, token: Callable[[str], dict[str, str]]) -> None:
    stream = io.StringIO()
    headers = token("reader")
    handler = start_logs("info", stream)
    try:
        ask("GET", "/api/links/" + "s" * 40)
        ask("GET", "/dicom-web/studies/1.2.840.113619.2.55/metadata?PatientID=SECRET-ID", headers=headers)
        ask("GET", "/api/me", headers=headers)
    finally:
        stop_logs(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert next(line["route"] for line in lines if line["logger"] == "sagittal.access") == "/api/links/{secret}"
    assert lines[-1]["user"] == 1
    assert {"id", "status", "milliseconds", "address"} <= set(lines[-1])
    assert "113619" not in stream.getvalue()
    assert "SECRET" not in stream.getvalue()
    assert "ssss" not in stream.getvalue()


def test_no_default_password_is_in_the_source() -> None:
    """CVE-2025-0896 and CVE-2025-54862: nothing in the wheel lets anyone in."""
    source = Path(listen.__file__).resolve().parents[1]
    for path in source.rglob("*.py"):
        assert not re.search(r"""password\s*=\s*["'][^"'{]+["']""", path.read_text("utf-8")), path.name


def test_backup_is_made_checked_and_put_back_in_a_place_of_its_own(run: Run, tmp_path: Path) -> None:
    run("users", "add", "Ada", "--role", "reader", "--data", "data")
    made = run("backup", "copy", "--data", "data", "--json")
    assert (made.returncode, json.loads(made.stdout)["missing"]) == (0, 0)
    assert run("backup", "copy", "--data", "data").returncode == 1  # never over another one
    checked = run("backup", "copy", "--check")
    assert (checked.returncode, checked.stdout.split(":")[0]) == (0, "whole")
    assert run("restore", "copy", "--data", "again").returncode == 0
    assert json.loads(run("users", "--data", "again", "--json").stdout)[0]["name"] == "ada"
    assert run("audit", "verify", "--data", "again").stdout.startswith("sound: 3 records")
    assert run("restore", "copy", "--data", "data").returncode == 1  # nor over what is there
    (tmp_path / "copy" / "sagittal.db").write_bytes(b"nonsense")
    assert run("backup", "copy", "--check").returncode == 3
    assert run("restore", "copy", "--data", "third").returncode == 3
