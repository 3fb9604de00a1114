"""How long a hospital waits for a result: from the last image to SEG and SR stored in Orthanc.

    python benchmarks/clinic.py                                         # ten phantoms, a small model that outlines
    python benchmarks/clinic.py --model runs/chest --dicom studies/     # a model of your own, a folder for each study

Orthanc sends each study to the service over DICOM, as its routing does. The clock starts when the service acknowledges the
last image and stops when Orthanc holds the segmentation and the report (of a model that does not outline, the report). From
that the silence interval and the model's own time (reading and predicting, as the result states it) are taken away: what is
left is the service's, with the map of where a classifier looked, which may take ``--explain`` seconds. Aim: under 2 s. The parts
are read from the service's database afterwards.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pydicom

import tiny
from hospital import Orthanc, Service, until
from machine import describe

AIM_S = 2.0
CLASSES = {"seg": "1.2.840.10008.5.1.4.1.1.66.4", "sr": "1.2.840.10008.5.1.4.1.1.88."}


@dataclass(frozen=True)
class Times:
    """Seconds of one study; what follows `model` is the service's own."""

    images: int
    whole: float
    model: float
    closing: float
    choosing: float
    making: float
    sending: float
    beyond: float


def measure(service: Service, orthanc: Orthanc, study: str, *, silence_s: float, wanted: tuple[str, ...]) -> Times:
    """Send one study of Orthanc's, and wait for its result there."""
    seen = orthanc.call("/changes?last")["Last"]
    (name,) = orthanc.call("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": study}})
    orthanc.call("/modalities/sagittal/store", name.encode())
    left, arrived = set(wanted), 0.0
    due = time.monotonic() + 300
    while left:
        changes = orthanc.call(f"/changes?since={seen}&limit=100")
        seen = changes["Last"]
        for change in changes["Changes"]:
            if change["ChangeType"] == "NewInstance":
                kind = orthanc.call(f"/instances/{change['ID']}/metadata/SopClassUid").decode()
                left -= {one for one in left if kind.startswith(CLASSES[one])}
                arrived = time.time()
        if time.monotonic() > due:
            raise TimeoutError("no result within five minutes")
        time.sleep(0.005)
    row = "select id from studies where study_uid = ?"
    number = service.rows(row, study)[0][0]
    until(lambda: service.rows("select 1 from deliveries where sent_at is not null and result_id in "
                               "(select id from results where study_id = ?)", number), 30, "the delivery is noted")  # fmt: skip
    images, last, closed = service.rows(
        "select count(*), max(i.arrived_at), max(s.complete_at) from instances i join series s on s.id = i.series_id "
        "where s.study_id = ? and i.source != 'result'",
        number,
    )[0]
    chosen = service.rows("select finished_at from jobs where kind = 'choose' and study_id = ?", number)[0][0]
    made, own = service.rows("select created_at, seconds from results where study_id = ?", number)[0]
    return Times(
        images=images,
        whole=arrived - last,
        model=own,
        closing=closed - last - silence_s,
        choosing=chosen - closed,
        making=made - chosen - own,
        sending=arrived - made,
        beyond=arrived - last - silence_s - own,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a package or a run (default: a small one is trained first)")
    parser.add_argument("--dicom", type=Path, help="a folder with a folder of DICOM files for each study")
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--silence", type=float, default=1.0, help="seconds")
    parser.add_argument(
        "--explain", type=float, default=20.0, help="most seconds that a map of where it looked may take"
    )
    parser.add_argument("--pause", type=float, default=0.37, help="seconds between two studies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = arguments.model or tiny.save_outliner(folder / "outliner.sagittal")
        orthanc = Orthanc(folder / "orthanc")
        tables: dict[str, Any] = {
            "destination": [orthanc.destination()],
            "model": [
                {
                    "path": model.absolute(),
                    "results": ["seg", "sr", "sc", "json"],
                    "to": ["pacs"],
                    "explain": f"{arguments.explain}s",
                }
            ],
            "completeness": {"silence": f"{arguments.silence}s"},
        }
        service = Service(folder / "service", tables, dicom_port=orthanc.sagittal_port)
        with orthanc, service:
            service.admit()
            studies = give(orthanc, arguments)
            service.start()
            until(lambda: service.call("/api/models")["models"][0]["state"] == "ready", 300, "the model is loaded", 0.2)
            task = service.call("/api/models")["models"][0]["task"]
            wanted = ("seg", "sr") if task == "segment" else ("sr",)
            found = []
            for study in studies[: arguments.studies + 1]:
                found.append(measure(service, orthanc, study, silence_s=arguments.silence, wanted=wanted))
                time.sleep(arguments.pause)  # so that studies do not keep step with what the service does every second
    tell(found[1:], wanted, arguments.silence)  # the first warms up
    sys.exit(statistics.median(one.beyond for one in found[1:]) > AIM_S)


def give(orthanc: Orthanc, arguments: argparse.Namespace) -> list[str]:
    """Give Orthanc the studies; their UIDs."""
    studies: list[str] = []
    if arguments.dicom is not None:
        folders = sorted(path for path in arguments.dicom.iterdir() if path.is_dir())[: arguments.studies + 1]
        for folder in folders:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for path in files:
                orthanc.call("/instances", path.read_bytes())
            studies.append(str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID))
    else:
        for number in range(1, arguments.studies + 2):
            orthanc.take(tiny.make_study(number, arguments.slices, arguments.size))
            studies.append(f"{tiny.ROOT}.{number}")
    return studies


def tell(found: list[Times], wanted: tuple[str, ...], silence_s: float) -> None:
    """Print the medians and the slowest."""
    words = {
        "whole": "last image acknowledged to " + " and ".join(one.upper() for one in wanted) + " in Orthanc",
        "model": "the model's own time (reading, predicting)",
        "closing": "closing the series, after the silence",
        "choosing": "choosing series and model",
        "making": "making the objects and keeping them",
        "sending": "sending them",
        "beyond": f"beyond silence and model; aim under {AIM_S:g}",
    }
    print(describe())
    print(
        f"{len(found)} studies of {min(one.images for one in found)} to {max(one.images for one in found)} images, silence {silence_s:g} s"
    )
    print(f"{'seconds':60} median  slowest")
    for field in fields(Times)[1:]:
        values = [getattr(one, field.name) for one in found]
        print(f"{words[field.name]:60} {statistics.median(values):6.2f}  {max(values):7.2f}")


if __name__ == "__main__":
    main()
