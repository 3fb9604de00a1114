"""The worklist and the searches with 100,000 studies: ``python benchmarks/worklist.py [--studies 100000]``.

Fills a database with made-up studies (two series and a result each), then asks for every kind of page many times, each
with a fresh position, as readers would, and prints the median and the slowest time and the memory of this process. A page
must take less than 200 ms, whatever it is filtered by.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sagittal.archive.query import find
from sagittal.archive.rows import search_text
from sagittal.archive.worklist import worklist
from sagittal.database.connect import Database
from sagittal.database.schema import STATUS, instances, series, studies

FAMILY = (
    "Müller",
    "Wang",
    "Smith",
    "García",
    "Nguyen",
    "Kowalska",
    "Öztürk",
    "Ivanova",
    "Haddad",
    "Okafor",
    "Silva",
    "Kim",
)
GIVEN = ("Anna", "Wei", "John", "José", "Linh", "Zofia", "Emre", "Olga", "Nour", "Chidi", "Ana", "Min-jun")
LIMIT_S = 0.2


def fill(db: Database, count: int) -> None:
    """Made-up studies over five years, most of them answered and reviewed."""
    draw = random.Random(1)
    begun = time.time() - 5 * 365 * 86400
    for first in range(0, count, 5000):
        made, below, objects = [], [], []
        for n in range(first, min(first + 5000, count)):
            name, id_, accession = f"{draw.choice(FAMILY)}^{draw.choice(GIVEN)}", f"P{n % 40000:07d}", f"A{n:08d}"
            arrived = begun + n * 5 * 365 * 86400 / count
            date = time.strftime("%Y%m%d", time.gmtime(arrived))
            modality = draw.choice(("CT", "MR", "DX", "MG"))
            reviewed = n < count * 0.97
            made.append(
                {
                    "study_uid": f"1.2.826.0.1.3680043.99.{n}", "patient_id": id_, "patient_name": name,
                    "patient_search": search_text(name, id_, accession), "birth_date": "19600101", "sex": "F",
                    "accession": accession, "study_date": date, "study_time": "101112", "description": f"{modality} of something",
                    "modalities": modality, "series_count": 2, "instance_count": 2, "arrived_at": arrived, "changed_at": arrived,
                    "attributes": {f"0008{k:04X}": {"vr": "LO", "Value": ["a value of some length"]} for k in range(16)},
                    "status": draw.choice(("answered", "answered", "abstained")) if reviewed else draw.choice(STATUS),
                    "urgency": draw.choice((0, 0, 0, 0, 1, 2)), "finding": "no sign of what was looked for",
                    "confidence": round(draw.random(), 6), "verdict": draw.choice(("accept", "accept", "reject")) if reviewed else "",
                }
            )  # fmt: skip
            for k in (1, 2):
                below.append(
                    {
                        "series_uid": f"1.2.826.0.1.3680043.99.{n}.{k}", "study_id": n + 1, "modality": modality, "number": k,
                        "arrived_at": arrived, "changed_at": arrived, "complete_at": arrived, "instance_count": 1,
                        "attributes": {"00080060": {"vr": "CS", "Value": [modality]}},
                    }
                )  # fmt: skip
                objects.append(
                    {
                        "sop_instance_uid": f"1.2.826.0.1.3680043.99.{n}.{k}.1", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
                        "series_id": 2 * n + k, "transfer_syntax_uid": "1.2.840.10008.1.2.1", "number": 1, "sha256": f"{n:064d}",
                        "size": 1, "path": f"objects/{n // 4096:06d}/{n}-{k}.dcm", "arrived_at": arrived, "attributes": {},
                    }
                )  # fmt: skip
        with db.write() as c:
            for table, rows in ((studies, made), (series, below), (instances, objects)):
                c.execute(sa.insert(table), rows)


def measure(name: str, ask: Callable[[], Any], times: int = 15) -> bool:
    """Print one line; whether it was fast enough."""
    ask()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - begun)
    fine = statistics.median(seconds) < LIMIT_S
    print(
        f"| {name} | {statistics.median(seconds) * 1e3:.1f} | {max(seconds) * 1e3:.1f} | {'yes' if fine else 'NO'} |",
        flush=True,
    )
    return fine


def main() -> int:
    """Fill, measure, print; 1 if a page was too slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument(
        "--database", default="", help="URL of an empty database; SQLite in a temporary folder otherwise"
    )
    given = parser.parse_args()
    draw = random.Random(2)
    with tempfile.TemporaryDirectory() as folder:
        db = Database.open(given.database or f"sqlite:///{Path(folder) / 'sagittal.db'}")
        begun = time.perf_counter()
        fill(db, given.studies)
        print(f"{given.studies:,} studies made in {time.perf_counter() - begun:.0f} s, {db.dialect}\n")
        print("| page of 50 | median ms | slowest ms | under 200 ms |")
        print("|---|---|---|---|")

        def page(sort: str, **filters: str) -> Callable[[], Any]:
            place: dict[str, str | None] = {"after": None}

            def ask() -> None:
                place["after"] = worklist(db, filters, sort, 50, place["after"]).next

            return ask

        fine = [
            measure("urgent first", page("urgency")),
            measure("newest first", page("newest")),
            measure("oldest first", page("oldest")),
            measure("by confidence", page("confidence")),
            measure("by name", page("name")),
            measure("by study date", page("date")),
            measure("status waiting", page("urgency", status="waiting")),
            measure(
                "a year, CT, accepted",
                page("newest", modality="CT", verdict="accept", **{"from": "20240101", "to": "20241231"}),
            ),
            measure("a rare name", page("urgency", text="p0039999")),
            measure("a name that nobody has", page("urgency", text="zzz")),
            measure("a common name", page("newest", text="muller an")),
            measure("search: patient id", lambda: find(db, "study", {"PatientID": f"P{draw.randrange(40000):07d}"})),
            measure(
                "search: study UID",
                lambda: find(
                    db, "series", {"StudyInstanceUID": f"1.2.826.0.1.3680043.99.{draw.randrange(given.studies)}"}
                ),
            ),
            measure("search: name", lambda: find(db, "study", {"PatientName": f"{draw.choice(FAMILY)}*"}, limit=100)),
            measure("search: date", lambda: find(db, "study", {"StudyDate": "20240101-20240107"}, limit=100)),
        ]
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\nMemory of this process at its peak: {peak:.0f} MiB; database on disk: {size:.0f} MiB")
        db.close()
    return 0 if all(fine) and peak < 600 else 1


if __name__ == "__main__":
    raise SystemExit(main())
