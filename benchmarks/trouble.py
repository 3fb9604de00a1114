"""What a hospital's week brings, done to the running service: does it lose anything, and does it recover by itself?

    python benchmarks/trouble.py            # as root: one trouble fills a small disk of its own

One service with a model, and Orthanc as the PACS; for each trouble a study is sent, the trouble begins, is looked at through
the administrator's API, and ends:

- the PACS is away for a while;
- another process keeps the database locked for seconds;
- the process of the model hangs;
- the machine's clock is set back by two hours, and the service is started again so;
- the disk is full up to the reserve, then to the last byte, then while a model answers.

Afterwards every acknowledged object is there, every study is answered once and its results are in Orthanc.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
from hospital import Orthanc, Service, dp, send_all, small_disk, until

#: Seconds after which a model's process that says nothing is taken to hang; a minute as delivered.
SILENCE_S = 8.0
#: Run in the service's process: its clock is that of the machine and what stands in a file.
PATCH = """
import time as _time
_real, _shift = _time.time, {shift!r}
def _now():
    try:
        with open(_shift) as file:
            return _real() + float(file.read() or 0)
    except (OSError, ValueError):
        return _real()
_time.time = _now
import sagittal.jobs.worker as _worker
_worker.SILENCE_S = {silence}
"""


@dataclass
class Ward:
    """The service, its PACS, and what was found."""

    folder: Path
    service: Service
    orthanc: Orthanc
    disk: Path | None
    shift: Path
    slices: int = 12
    sent: int = 0
    broken: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def check(self, right: object, what: str) -> None:
        """Note what is not as it must be."""
        if not right:
            self.wrong.append(what)

    def study(self) -> list[tiny.Instance]:
        """A new study."""
        self.sent += 1
        return tiny.make_study(self.sent, self.slices)

    def send(self) -> None:
        """Send a new study, all of it."""
        statuses = send_all(self.service.dicom_port, self.study())
        self.check(set(statuses) == {0}, f"study {self.sent} was not taken: {sorted(set(statuses))}")

    def answered(self, seconds: float = 120.0) -> float:
        """Wait until all studies are answered and their results confirmed; seconds that it took."""
        began = time.monotonic()
        states = "select count(*) from studies where status = 'answered'"
        until(lambda: self.service.rows(states) == [(self.sent,)], seconds, f"{self.sent} studies are answered")
        sure = "select count(*) from deliveries d join results r on r.id = d.result_id where d.state = 'confirmed' and r.replaced_by is null"
        until(lambda: self.service.rows(sure) == [(self.sent,)], seconds, f"{self.sent} results are confirmed")
        return time.monotonic() - began

    def event(self, code: str, *, over: bool | None = None, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for an event in the administrator's list; with `over` true for its end, false for one that lasts."""

        def look() -> dict[str, Any] | None:
            found = self.service.events().get(code)
            return found if found is not None and over in {None, bool(found["over_at"])} else None

        found: dict[str, Any] = until(look, seconds, f"the list tells of {code}, over: {over}", 0.2)
        return found

    def tell(self, name: str, words: str) -> None:
        """Keep a line of what was found."""
        self.said.append(f"{name}: {words}")


@contextlib.contextmanager
def ward(folder: Path, outliner: Path, *, disk: bool = True) -> Iterator[Ward]:
    """A service that runs, with a study that was answered.

    Raises
    ------
    PermissionError
        If a disk of its own is wanted and this user may not mount one.
    """
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(small_disk(folder / "disk", 96)) if disk else None
        shift = folder / "shift"
        orthanc = stack.enter_context(Orthanc(folder / "orthanc"))
        tables: dict[str, Any] = {
            "server": {"data": (place or folder) / "data"},
            "destination": [orthanc.destination()],
            "model": [{"path": outliner, "results": ["seg", "sr"], "to": ["pacs"]}],
            "limits": {"disk_reserve": "4 MB"},
        }
        before = PATCH.format(shift=str(shift), silence=SILENCE_S)
        service = Service(folder / "service", tables, before=before, dicom_port=orthanc.sagittal_port)
        stack.enter_context(service)
        service.admit()
        service.start()
        made = Ward(folder, service, orthanc, place, shift)
        made.send()
        made.answered()
        yield made


def pacs_away(ward: Ward, seconds: float = 6.0) -> None:
    """The PACS is shut down, a study is answered meanwhile, and it comes back."""
    ward.orthanc.stop()
    ward.send()
    ward.event("destination-away")
    time.sleep(seconds)
    ward.check(ward.service.rows("select status from studies order by id desc limit 1") == [("answered",)], "no answer")
    ward.orthanc.start()
    took = ward.answered()
    found = ward.event("destination-away", over=True)
    ward.tell("PACS away", f"told ({found['message']}), delivered {took:.1f} s after it was back")


def database_locked(ward: Ward, seconds: float = 6.0) -> None:
    """Another process writes into the database and does not end its transaction, while a study arrives."""
    with contextlib.closing(sqlite3.connect(ward.service.database, timeout=30, isolation_level=None)) as other:
        until(lambda: _begins(other), 30, "the database is locked")
        study, statuses = ward.study(), []
        sender = threading.Thread(target=lambda: statuses.extend(send_all(ward.service.dicom_port, study)))
        sender.start()
        time.sleep(seconds)
        ward.check(not statuses, "an image was acknowledged while nothing could be written")
        other.execute("ROLLBACK")
    sender.join(60)
    ward.check(statuses == [0] * ward.slices, "images were not taken after the database was free")
    took = ward.answered()
    found = ward.event("database-locked")
    ward.tell("database locked", f"told ({found['message']}), answered and delivered {took:.1f} s after it was free")


def _begins(other: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.OperationalError):
        other.execute("BEGIN IMMEDIATE")
        return True
    return False


def worker_hangs(ward: Ward) -> None:
    """The process of the model stops for good without ending."""
    workers = worker_processes(ward.service)
    ward.check(len(workers) == 1, f"{len(workers)} processes of models, expected 1")
    began = time.monotonic()
    os.kill(workers[0], signal.SIGSTOP)
    ward.send()
    found = ward.event("model-hangs")
    noticed = time.monotonic() - began
    took = ward.answered(240)
    ward.check(workers[0] not in worker_processes(ward.service), "the process that hung is still there")
    ward.event("model-hangs", over=True)
    ward.tell(
        "a worker that hangs",
        f"told after {noticed:.0f} s with a limit of {SILENCE_S:g} s ({found['message']}), answered by another after {took:.1f} s",
    )


def worker_processes(service: Service) -> list[int]:
    """The processes of models that a service has started."""
    assert service.process is not None
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == service.process.pid and b"worker_process" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def clock_back(ward: Ward, hours: float = 2.0) -> None:
    """Somebody sets the machine's clock back, and starts the service again."""
    ward.shift.write_text(f"{-3600 * hours}")
    ward.send()
    first = ward.answered()
    found = ward.event("clock-set-back")
    ward.service.stop()
    ward.service.start()
    ward.send()
    second = ward.answered()
    ward.shift.write_text("0")
    ward.event("clock-set-back", over=True)
    ward.tell(
        "clock set back",
        f"told ({found['message']}), answered and delivered in {first:.1f} s, after a start with the wrong clock in {second:.1f} s",
    )


def disk_full(ward: Ward) -> None:
    """Something else fills the disk: up to the reserve, to the last byte, and while a model is about to answer."""
    assert ward.disk is not None
    ballast, study = ward.disk / "ballast", ward.study()
    with dp.Peer(ward.service.dicom_port, timeout_s=60.0) as peer:
        peer.associate(dp.context(1, dp.CT, (dp.EXPLICIT,)), calling="SENDER")
        ward.check(peer.store(1, study[0].dataset, study[0].uid) == 0, "the first image is not taken")
        fill(ballast, ward.disk, leave=2 * 2**20)
        statuses = {peer.store(1, one.dataset, one.uid) for one in study[1:3]}
        ward.check(statuses == {0xA700}, f"C-STORE answers {sorted(statuses)} to a full disk, expected 0xA700")
        ward.check(refused(ward.service), "an association is taken though the disk is full")
        status = upload_status(ward.service, study[1].file)
        ward.check(status == 507, f"an upload is answered {status}, expected 507")
        found = ward.event("disk-full")
        fill(ballast, ward.disk, leave=0)
        statuses = {peer.store(1, one.dataset, one.uid) for one in study[1:3]}
        ward.check(
            statuses == {0xA700}, f"C-STORE answers {sorted(statuses)} to a disk without a byte, expected 0xA700"
        )
        ward.broken.add(ward.sent)  # the rest comes later than the silence is long
        # Whoever looks is put into the trail first: where that cannot be written, nobody looks, and the page says why.
        status = status_of(ward.service, "/api/studies?limit=1")
        ward.check(status in {200, 503}, f"the worklist is answered {status} on a disk without a byte, expected 503")
        ward.check(status_of(ward.service, "/health/live") == 200, "the service does not live on a full disk")
        ballast.unlink()
        statuses = {peer.store(1, one.dataset, one.uid) for one in study}
        ward.check(statuses == {0}, "images are not taken after the disk has room")
    took = ward.answered()
    ward.event("disk-full", over=True)
    ward.tell(
        "disk full",
        f"0xA700 and 507, told ({found['message']}), answered and delivered {took:.1f} s after it had room",
    )

    ward.service.call("/api/queue", {"paused": True})
    ward.send()
    time.sleep(2.0)
    fill(ballast, ward.disk, leave=2 * 2**20)
    ward.service.call("/api/queue", {"paused": False})
    ward.event("disk-full", over=False)
    ballast.unlink()
    took = ward.answered()
    ward.tell("disk full while a model answers", f"answered and delivered {took:.1f} s after it had room")


def fill(ballast: Path, disk: Path, *, leave: int) -> None:
    """Write a file until so many bytes are left."""
    with ballast.open("ab", buffering=0) as file:
        while True:
            stat = os.statvfs(disk)
            room = stat.f_bavail * stat.f_frsize - leave
            if room <= 0:
                return
            try:
                file.write(bytes(min(room, 2**20)))
            except OSError:
                return


def refused(service: Service) -> bool:
    """Whether an association is refused."""
    with dp.Peer(service.dicom_port) as peer:
        return not peer.associate(dp.context(1, dp.CT, (dp.EXPLICIT,)), calling="SENDER")


def upload_status(service: Service, content: bytes) -> int:
    """What the upload of a file is answered."""
    return status_of(service, "/v1/predict", content, headers={"Content-Type": "application/dicom"})


def status_of(service: Service, *request: Any, **more: Any) -> int:
    """What a request is answered."""
    try:
        service.call(*request, **more)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def check_whole(ward: Ward) -> None:
    """Afterwards nothing is lost."""
    service = ward.service
    until(service.settled, 60, "nothing is left to do")
    images = "select count(*) from instances i join series s on s.id = i.series_id where s.modality = 'CT'"
    ward.check(service.rows(images) == [(ward.sent * ward.slices,)], "images are missing")
    standing = "select count(*), count(distinct study_id) from results where replaced_by is null"
    ward.check(service.rows(standing) == [(ward.sent, ward.sent)], "not one result for each study")
    replaced = service.rows("select study_id from results where replaced_by is not null")
    ward.check({one for (one,) in replaced} <= ward.broken, f"studies were answered before they were whole: {replaced}")
    states = dict(service.rows("select state, count(*) from jobs group by state"))
    ward.check(set(states) == {"done"}, f"jobs are left: {states}")
    there = {*ward.orthanc.objects("SEG"), *ward.orthanc.objects("SR")}
    kept = {
        uid
        for (uid,) in service.rows("select i.sop_instance_uid from objects o join instances i on i.id = o.instance_id")
    }
    ward.check(there == kept, "Orthanc does not hold the objects of the results and nothing else")
    ward.check(service.call("/api/audit/verify")["sound"], "the chain of the trail is broken")
    ward.check(service.stop() == 0, "the service does not stop in order")
    ward.check(service.rows("pragma integrity_check") == [("ok",)], "SQLite finds the database damaged")


TROUBLES: tuple[Callable[[Ward], None], ...] = (pacs_away, database_locked, worker_hangs, clock_back, disk_full)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to use (default: the system's for temporary files)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        with ward(folder, tiny.save_outliner(folder / "outliner.sagittal"), disk=os.geteuid() == 0) as found:
            for trouble in TROUBLES:
                if trouble is disk_full and found.disk is None:
                    found.tell("disk full", "left out: only root mounts a small disk")
                    continue
                trouble(found)
                print(*found.said, sep="\n", flush=True)
                found.said.clear()
            check_whole(found)
    for what in found.wrong:
        print(f"WRONG: {what}")
    print("nothing was lost" if not found.wrong else "something is wrong")
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
