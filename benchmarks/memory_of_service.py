"""The running service with 100,000 studies: how fast its worklist answers over HTTP, and how much memory it takes.

    python benchmarks/memory_of_service.py [--studies 100000]

Fills the database as ``benchmarks/worklist.py`` does, starts the service without models, and asks for pages of the worklist,
studies and searches as a few readers would, one after the other and eight at a time, while pages are open that wait for
changes and 300 images arrive over four associations. Aims: a page under 200 ms (median, one reader), less than 600 MB
resident at the peak.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import tiny
from hospital import Sender, Service, until
from worklist import fill

AIM_MS, AIM_BYTES = 200.0, 600 * 10**6


class Reader:
    """A browser: one connection that is kept."""

    def __init__(self, service: Service) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        self.headers = {"Authorization": f"Bearer {service.token}", "Accept": "application/json"}

    def ask(self, path: str) -> tuple[float, bytes]:
        """Milliseconds until the whole answer is there, and the answer.

        Raises
        ------
        RuntimeError
            If it is refused.
        """
        began = time.perf_counter()
        self.connection.request("GET", path, headers=self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status not in {200, 204}:
            raise RuntimeError(f"{answer.status} for {path}")
        return 1000 * (time.perf_counter() - began), content


def memory(service: Service, name: str) -> int:
    """Bytes that the service's process takes: ``VmRSS`` now, ``VmHWM`` at most."""
    assert service.process is not None
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def pages(draw: random.Random, count: int) -> dict[str, Callable[[], str]]:
    """What is asked for, a new address each time."""
    return {
        "worklist, urgent first": lambda: "/api/studies?sort=urgency",
        "worklist, waiting": lambda: "/api/studies?status=waiting",
        "worklist, newest, CT of a year": lambda: "/api/studies?sort=newest&modality=CT&from=20240101&to=20241231",
        "worklist, by confidence": lambda: "/api/studies?sort=confidence",
        "worklist, a name": lambda: f"/api/studies?text={quote('muller an')}",
        "worklist, a rare name": lambda: f"/api/studies?text=p{draw.randrange(40000):07d}",
        "worklist, a name that nobody has": lambda: "/api/studies?text=zzz",
        "a study": lambda: f"/api/studies/{draw.randrange(count) + 1}",
        "QIDO-RS, a patient": lambda: f"/dicom-web/studies?PatientID=P{draw.randrange(40000):07d}",
        "storage": lambda: "/api/storage",
    }


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=25)
    arguments = parser.parse_args()
    draw = random.Random(3)
    with tempfile.TemporaryDirectory() as place:
        service = Service(Path(place) / "service", {"completeness": {"silence": "600s"}})
        service.admit()
        made_up(service, arguments.studies)
        with service:
            service.start(300)
            print(f"{arguments.studies:,} studies; after the start {memory(service, 'VmRSS') / 1e6:.0f} MB")
            with contextlib.ExitStack() as stack:
                for _ in range(10):  # pages that wait for changes
                    waiting = Reader(service).connection
                    stack.callback(waiting.close)
                    waiting.request("GET", "/api/changes", headers={"Authorization": f"Bearer {service.token}"})
                slow = ask_all(service, pages(draw, arguments.studies), arguments.times)
                arrive(service)
                together = ask_together(service, pages(draw, arguments.studies), arguments.times)
            peak, now = memory(service, "VmHWM"), memory(service, "VmRSS")
            print(f"eight readers at a time: median {together:.0f} ms a request")
            print(f"memory at the peak {peak / 1e6:.0f} MB (aim under {AIM_BYTES / 1e6:.0f}), now {now / 1e6:.0f} MB")
            service.stop()
    sys.exit(bool(slow) or peak > AIM_BYTES)


def made_up(service: Service, count: int) -> None:
    """Made-up studies in the service's database."""
    from sagittal.database.connect import Database

    db = Database.open(f"sqlite:///{service.database}")
    try:
        fill(db, count)
    finally:
        db.close()


def ask_all(service: Service, asked: dict[str, Callable[[], str]], times: int) -> list[str]:
    """Ask for each kind of page, one after the other; those that are too slow."""
    slow = []
    reader = Reader(service)
    print(f"{'one reader':36} median ms  slowest ms")
    for name, path in asked.items():
        reader.ask(path())
        spent = [reader.ask(path())[0] for _ in range(times)]
        print(f"{name:36} {statistics.median(spent):9.1f}  {max(spent):10.1f}", flush=True)
        if name.startswith("worklist") and statistics.median(spent) > AIM_MS:
            slow.append(name)
    position, spent = "", []
    for _ in range(times):  # further and further down
        took, content = reader.ask(f"/api/studies?sort=newest&after={quote(position)}")
        spent.append(took)
        position = json.loads(content)["next"]
    print(f"{'worklist, page after page':36} {statistics.median(spent):9.1f}  {max(spent):10.1f}")
    reader.connection.close()
    return slow


def arrive(service: Service) -> None:
    """Images arrive."""
    sender = Sender(service.dicom_port, [tiny.make_study(n + 1, 75, 128) for n in range(4)]).start()
    began = time.monotonic()
    until(lambda: sender.done, 120, "300 images are acknowledged")
    print(f"300 images over four associations meanwhile: {300 / (time.monotonic() - began):.0f} images/s")


def ask_together(service: Service, asked: dict[str, Callable[[], str]], times: int) -> float:
    """Eight readers ask at a time; milliseconds of the median request."""
    spent: list[float] = []

    def read() -> None:
        reader = Reader(service)
        for _ in range(times):
            spent.append(reader.ask(random.choice(list(asked.values()))())[0])
        reader.connection.close()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(spent)


if __name__ == "__main__":
    main()
