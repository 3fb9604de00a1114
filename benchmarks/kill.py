"""Kill the service again and again while studies arrive, and see whether anything that it acknowledged is lost.

    python benchmarks/kill.py                                    # 30 kills, 5,000 instances of 60 studies, 4 associations
    python benchmarks/kill.py --kills 3 --instances 240 --studies 6

The service, its models' processes and everything they started get SIGKILL at random moments: while it starts, while images
arrive, while a model computes, while results go to Orthanc. The sender remembers what was acknowledged and sends the rest
again. Afterwards it is checked, by programs that share no code with the service where that can be:

- every acknowledged instance is a row and a file, whose SHA-256 is the row's and whose data set is the bytes that were sent;
- every study is answered, with one result of each model's version that was made from all of its images;
- Orthanc holds the objects of the results and nothing else, and every delivery is confirmed;
- no unfinished or unknown file is left, nothing is refused or in conflict, the trail's chain is whole, SQLite finds its
  database sound, and no process is left over.

Sizes are small on purpose (64 x 64 images, a network of a few thousand weights): what is measured is not speed.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import tiny
from hospital import Orthanc, Sender, Service, until


@dataclass
class Outcome:
    """What was done and found; `wrong` is empty where all is well."""

    instances: int = 0
    studies: int = 0
    kills: int = 0
    starting: int = 0
    arriving: int = 0
    working: int = 0
    seconds: float = 0.0
    alive_s: float = 0.0
    broken: int = 0
    results: int = 0
    replaced: int = 0
    objects: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    recovered: int = 0
    wrong: list[str] = field(default_factory=list)

    def check(self, right: object, what: str) -> None:
        """Note what is not as it must be."""
        if not right:
            self.wrong.append(what)


def run(
    folder: Path,
    outliner: Path,
    classifier: Path | None = None,
    *,
    kills: int = 30,
    instances: int = 5000,
    studies: int = 60,
    seed: int = 0,
    size: int = 64,
    longest_s: float = 20.0,
    silence_s: float = 1.5,
    tell: bool = False,
) -> Outcome:
    """Kill, and check."""
    rng, made, began = random.Random(seed), Outcome(instances, studies, kills), time.monotonic()
    counts = [instances // studies + (n < instances % studies) for n in range(studies)]
    sent = [tiny.make_study(n + 1, count, size) for n, count in enumerate(counts)]
    orthanc = Orthanc(folder / "orthanc")
    models = [{"path": outliner, "results": ["seg", "sr", "json"], "to": ["pacs"]}]
    if classifier is not None:
        models.append({"path": classifier, "role": "watches", "results": ["json"], "explain_s": 0.0})
    tables = {
        "destination": [orthanc.destination()],
        "model": models,
        "completeness": {"silence": f"{silence_s}s"},
        "dicom": {"idle": "20s"},
    }
    service = Service(folder / "service", tables, dicom_port=orthanc.sagittal_port)
    with orthanc, service:
        service.admit()
        allowed = [0.0]

        def pace() -> bool:
            return len(sender.acknowledged) < allowed[0]

        sender = Sender(service.dicom_port, sent, pace=pace)
        sender.start()
        for kill in range(kills):
            # So many by the end of this life, one by one, so that the last kill still meets images on their way.
            start, goal = allowed[0], instances * (kill + 1) / (kills + 1)
            if rng.random() < 0.15:  # while it starts
                made.starting += 1
                service.launch()
                time.sleep(rng.uniform(0.2, 3.0))
                service.kill()
                continue
            service.start()
            life = rng.uniform(0.2, longest_s if rng.random() < 0.4 else 3.0)
            birth = time.monotonic()
            while (age := time.monotonic() - birth) < life:
                allowed[0] = start + (goal - start) * age / life + 1
                time.sleep(0.01)
            made.arriving += not sender.done
            made.working += service.rows("select count(*) from jobs where state = 'leased'") != [(0,)]
            service.kill()
            made.alive_s += life
            allowed[0] = max(float(len(sender.acknowledged)), start)
            if tell:
                print(f"{kill + 1}: after {life:.1f} s, {len(sender.acknowledged)} acknowledged", flush=True)
        allowed[0] = float("inf")
        service.start()
        until(lambda: sender.done, 300, "everything is acknowledged")
        sender.stop()
        made.broken = sender.broken
        pending = "select count(*) from deliveries where state != 'confirmed'"
        until(service.settled, 900, "every study is answered", 0.5)
        until(lambda: service.rows(pending) == [(0,)], 120, "every delivery is confirmed", 0.5)
        check_archive(service, sender, made)
        check_answers(service, sent, made, len(models))
        check_deliveries(service, orthanc, sender, made)
        made.check(service.call("/api/audit/verify")["sound"], "the chain of the trail is broken")
        made.recovered = service.events().get("recovered", {}).get("count", 0)
        made.check(service.stop() == 0, "the service does not stop in order")
        made.check(service.rows("pragma integrity_check") == [("ok",)], "SQLite finds the database damaged")
        made.check(not left_over(service.folder), "processes are left over")
    made.seconds = time.monotonic() - began
    return made


def check_archive(service: Service, sender: Sender, made: Outcome) -> None:
    """Every acknowledged instance is there, byte for byte, and nothing else is."""
    there = {row[0]: row[1:] for row in service.rows("select sop_instance_uid, path, sha256, damage from instances")}
    made.check(len(sender.acknowledged) == made.instances, "not everything was acknowledged")
    for uid, one in sender.acknowledged.items():
        row = there.get(uid)
        if row is None:
            made.wrong.append("an acknowledged instance has no row")
            continue
        path = service.data / "archive" / row[0]
        if not path.is_file():
            made.wrong.append("an acknowledged instance has no file")
            continue
        content = path.read_bytes()
        made.check(hashlib.sha256(content).hexdigest() == row[1], "a file has not the hash of its row")
        made.check(content[144 + int.from_bytes(content[140:144], "little") :] == one.dataset, "other bytes were kept")
        made.check(not row[2], "a file is marked as damaged")
    tables = ("instances", "conflicts", "objects")
    known = {row[0] for table in tables for row in service.rows(f"select path from {table}")}
    archive = service.data / "archive"
    files = {
        str(p.relative_to(archive)) for top in ("objects", "files") for p in (archive / top).rglob("*") if p.is_file()
    }
    made.check(not files - known, f"{len(files - known)} files have no row")
    made.check(not known - files, f"{len(known - files)} rows have no file")
    made.check(not list((archive / "incoming").glob("*.part")), "unfinished files are left")
    for table in ("conflicts", "refusals"):
        made.check(service.rows(f"select count(*) from {table}") == [(0,)], f"there are {table}")


def check_answers(service: Service, sent: list[list[tiny.Instance]], made: Outcome, models: int) -> None:
    """Every study is answered, once by each version, from all of its images."""
    states = Counter(state for (state,) in service.rows("select status from studies"))
    made.check(states == {"answered": made.studies}, f"not every study is answered: {dict(states)}")
    rows = service.rows("select study_id, checksum, inputs, replaced_by, series from results")
    made.results, made.replaced = len(rows), sum(row[3] is not None for row in rows)
    standing = Counter((row[0], row[1]) for row in rows if row[3] is None)
    made.check(len(standing) == models * made.studies, "a version has not answered a study")
    made.check(set(standing.values()) <= {1}, "a version answers a study more than once")
    made.check(max(Counter(row[:3] for row in rows).values()) == 1, "the same images were answered twice")
    images = dict(service.rows("select id, instance_count from series"))
    whole = {tuple(hashes) for hashes in _inputs(service)}
    now = {(row[0], row[2]) for row in rows if row[3] is None}
    made.check(now <= whole, "a result that stands was not made from all images of its study")
    made.check(sum(len(study) for study in sent) <= sum(images.values()), "a series counts fewer images than were sent")
    made.jobs = dict(Counter(state for (state,) in service.rows("select state from jobs")))
    made.check(set(made.jobs) <= {"done", "cancelled"}, f"jobs are left: {made.jobs}")
    loose = "select count(*) from instances where source = 'result' and id not in (select instance_id from objects where instance_id is not null)"
    made.check(service.rows(loose) == [(0,)], "objects are in the archive that no result names")


def _inputs(service: Service) -> list[tuple[int, str]]:
    """Of each study the hash over all of its images, as the newest of its answers were queued with."""
    last = (
        "select study_id, json_extract(payload, '$.inputs') from jobs where kind = 'answer' and id in "
        "(select max(id) from jobs where kind = 'answer' group by study_id, json_extract(payload, '$.checksum'))"
    )
    return service.rows(last)


def check_deliveries(service: Service, orthanc: Orthanc, sender: Sender, made: Outcome) -> None:
    """Orthanc holds the objects of the results that were delivered, and nothing else."""
    kept = {
        row[0]: row[1]
        for row in service.rows(
            "select i.sop_instance_uid, r.replaced_by is not null from objects o join instances i on i.id = o.instance_id "
            "join results r on r.id = o.result_id where o.kind in ('seg', 'sr') and r.role = 'answers'"
        )
    }
    there = {
        one["MainDicomTags"]["SOPInstanceUID"]
        for one in orthanc.call("/tools/find", {"Level": "Instance", "Expand": True, "Query": {}})
    }
    wanted = {uid for uid, replaced in kept.items() if not replaced}
    made.objects = len(there)
    made.check(wanted <= there, f"{len(wanted - there)} objects did not arrive")
    made.check(there <= set(kept), f"{len(there - set(kept))} objects are at the destination that no result has")
    made.check(len(wanted) == 2 * made.studies, f"{len(wanted)} objects stand, expected {2 * made.studies}")
    made.check(not set(sender.acknowledged) & there, "images were delivered")


def left_over(folder: Path) -> list[int]:
    """Processes that still work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to use (default: the system's for temporary files)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        outliner = tiny.save_outliner(folder / "outliner.sagittal")
        classifier = tiny.save_classifier(folder / "classifier.sagittal")
        found = run(
            folder,
            outliner,
            classifier,
            kills=arguments.kills,
            instances=arguments.instances,
            studies=arguments.studies,
            seed=arguments.seed,
            tell=True,
        )
    print(
        f"{found.kills} kills ({found.starting} while it started, {found.arriving} while images arrived, "
        f"{found.working} of them while jobs were at work), "
        f"{found.instances} instances of {found.studies} studies, {found.seconds:.0f} s"
    )
    print(
        f"broken associations {found.broken}, results {found.results} (replaced by late images {found.replaced}), "
        f"objects at the destination {found.objects}, jobs {found.jobs}, starts that put something right {found.recovered}"
    )
    for what, count in Counter(found.wrong).most_common():
        print(f"WRONG {count} x: {what}")
    print("nothing was lost" if not found.wrong else "something is wrong")
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
