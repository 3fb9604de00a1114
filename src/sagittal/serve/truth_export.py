"""What readers said, as a data set that ``sagittal ingest`` reads: a zip with a manifest, images and masks.

An accepted answer is a truth, a corrected one is a truth as corrected; a rejected one is none, and is listed. The images
hold no name, number or date of a patient (:mod:`sagittal.serve.nameless`).
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from starlette.responses import Response

from sagittal.errors import DataError, SagittalError
from sagittal.guard.limited import run_limited
from sagittal.labels import ClassScores, LabelScheme
from sagittal.serve.file_streams import PIECE, PiecesResponse
from sagittal.serve.nameless import nameless_file
from sagittal.serve.security import Caller, allow
from sagittal.serve.truth_collect import Collected, Exported, collect_truth

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["pages"])
Exporter = Annotated[Caller, Depends(allow("export"))]
_SHEETS = ("dataset.json", "cases.schema.json", "cases.parquet", "reviews.csv", "README.md")


@router.get("/export/truth")
def export_truth(
    request: Request,
    caller: Exporter,
    model: Annotated[str, Query(max_length=256)] = "",
    from_: Annotated[str, Query(alias="from", max_length=32)] = "",
    to: Annotated[str, Query(max_length=32)] = "",
) -> Response:
    """Reviewed answers of one model as a zip for the next training; days of the reviews, from and to, both included."""
    service: Service = request.app.state.service
    found = collect_truth(service, model, _day(from_, 0), _day(to, 1))
    if not found.cases:
        raise HTTPException(404, "no reviewed answer of this model gives a truth in this time")
    sheets = write_sheets(found)
    service.audit.record(
        caller.name,
        "export",
        role=caller.role,
        address=caller.address,
        details={"what": "truth", "model": found.model, "cases": len(found.cases)},
    )
    headers = {
        "content-disposition": f'attachment; filename="truth-{_word(found.model)}.zip"',
        "cache-control": "no-store",
    }
    return PiecesResponse(zip_pieces(service.archive.path_of, found, sheets), "application/zip", headers=headers)


def _day(text: str, more: int) -> float | None:
    if not text:
        return None
    try:
        day = datetime.fromisoformat(text.strip())
        if day.tzinfo is None:
            day = day.replace(tzinfo=UTC)
        return day.timestamp() + (86400.0 * more if len(text.strip()) <= 10 else 0.0)
    except (ValueError, OverflowError) as error:
        raise DataError("from and to are days such as 2027-01-31") from error


def _word(text: str) -> str:
    return (
        "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_") else "-" for sign in text)[:60] or "model"
    )


def image_name(case: Exported, image: str, number: int) -> str:
    """Where a file of an image lies in the zip."""
    return f"images/{case.name}/{_word(image)}/{number:06d}.dcm"


def mask_name(case: Exported) -> str:
    """Where a mask lies in the zip."""
    return f"masks/{case.name}{'.nii.gz' if str(case.truth['mask']).endswith('.nii.gz') else '.png'}"


def write_sheets(found: Collected) -> dict[str, bytes]:
    """The manifest and what people read, by name; made in a process of its own, as tables ask for large packages."""
    cases = []
    for case in found.cases:
        images = {
            name: [image_name(case, name, n) for n in range(1, len(own) + 1)] for name, own in case.images.items()
        }
        truth = {**case.truth, "mask": mask_name(case)} if "mask" in case.truth else dict(case.truth)
        cases.append(
            {
                "name": case.name,
                "patient": case.patient,
                "images": images,
                "truth": truth,
                "verdict": case.verdict,
                "at": case.at,
            }
        )
    item = {
        "scheme": found.scheme.to_json(),
        "model": found.model,
        "cases": cases,
        "left_out": [list(one) for one in found.left_out],
    }
    with closing(run_limited(make_sheets, [item], workers=1, memory_bytes=4 * 2**30, timeout_s=300.0)) as running:
        for _, result in running:
            if isinstance(result, SagittalError):
                raise result
            return {name: bytes(data) for name, data in result.items()}
    raise DataError("the manifest could not be made")


def make_sheets(item: dict[str, Any]) -> dict[str, bytes]:
    """The files of :func:`write_sheets`, of plain values; run in a process with limits."""
    from sagittal.case import Case
    from sagittal.dataset import Dataset, Skipped
    from sagittal.read.manifest import write_manifest
    from sagittal.read.sources import make_mask_source, make_source, patient_key
    from sagittal.truth import Boxes

    scheme = LabelScheme.from_json(item["scheme"])
    folder = Path(tempfile.mkdtemp(prefix="sagittal-"))
    try:
        cases = []
        for one in item["cases"]:
            name, truth = one["name"], one["truth"]
            images = {
                key: make_source(name, "series", [folder / path for path in paths])
                for key, paths in one["images"].items()
            }
            told: Any
            if "mask" in truth:
                told = make_mask_source(
                    name,
                    "label_map",
                    [folder / truth["mask"]],
                    {"structures": truth["structures"]},
                    structures=list(truth["structures"]),
                )
            elif "boxes" in truth:
                rows = np.array(truth["boxes"], dtype=np.float64).reshape(-1, 7)
                told = Boxes(rows[:, 1:].reshape(-1, 2, 3), rows[:, 0].astype(np.int64))
            else:
                told = scheme.truth(*truth["classes"])
                assert isinstance(told, ClassScores)
            cases.append(
                Case(name, patient_key(one["patient"]), images, {}, "", told, None, f"review: {one['verdict']}")
            )
        skipped = tuple(Skipped(name, why, "no-truth") for name, _, why in item["left_out"])
        notes = (f"answers of the model '{item['model']}' as readers accepted or corrected them",)
        write_manifest(Dataset(_word(item["model"]), tuple(cases), scheme, (), skipped, "manifest", notes), folder)
        _without_place(folder / "dataset.json")
        made = {name: (folder / name).read_bytes() for name in _SHEETS[:3]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("case", "verdict", "at", "used", "reason"))
    for one in item["cases"]:
        writer.writerow((one["name"], one["verdict"], one["at"], "yes", ""))
    for name, verdict, why in item["left_out"]:
        writer.writerow((name, verdict, "", "no", why))
    made["reviews.csv"] = table.getvalue().encode()
    made["README.md"] = _readme(item).encode()
    return made


def _without_place(path: Path) -> None:
    """A manifest knows its files by its own place; where that was on the server is nobody's business."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["absolute_root"] = values["root"]
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _readme(item: Mapping[str, Any]) -> str:
    return (
        f"# Truth from reviews\n\nAnswers of the model '{item['model']}' that readers accepted or corrected: "
        f"{len(item['cases'])} cases; {len(item['left_out'])} are left out (reviews.csv says why).\n\n"
        "Read it with `sagittal ingest` on this zip or on the unpacked folder.\n\n"
        "The images hold no name, number or date of a patient, and other UIDs than the originals. What is burned into pixels "
        "stays there: look at them before they leave the hospital.\n"
    )


class _Sink(io.RawIOBase):
    """Where a zip is written to: bytes are taken away as they come."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self.pieces.append(piece)
        self.count += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self.count

    def taken(self) -> bytes:
        data = b"".join(self.pieces)
        self.pieces = []
        return data


def zip_pieces(path_of: Callable[[str], Path], found: Collected, sheets: Mapping[str, bytes]) -> Iterator[bytes]:
    """The bytes of the zip as they are made; one file at a time is in memory.

    Raises
    ------
    ReadError
        If an image is damaged; the zip then ends there, and is no zip.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as packed:
        for name in _SHEETS:
            packed.writestr(_entry(name), sheets[name])
        for case in found.cases:
            for image, own in case.images.items():
                for number, one in enumerate(own, start=1):
                    packed.writestr(_entry(image_name(case, image, number)), nameless_file(path_of(one.path)))
                    if sink.count and sum(map(len, sink.pieces)) >= PIECE:
                        yield sink.taken()
            if "mask" in case.truth:
                packed.writestr(_entry(mask_name(case)), path_of(case.truth["mask"]).read_bytes())
    yield sink.taken()


def _entry(name: str) -> zipfile.ZipInfo:
    """Always of the same date: nothing tells when a study was exported beside the trail."""
    return zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
