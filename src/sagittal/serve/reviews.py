"""What readers say of a result: accepted, corrected or rejected, with a reason; a corrected mask only where it fits the study."""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from sagittal.database.schema import results, reviews, studies
from sagittal.errors import DataError, SagittalError
from sagittal.guard.limited import run_limited
from sagittal.guard.limits import as_read_error
from sagittal.serve.page_rows import iso
from sagittal.serve.security import Caller, allow
from sagittal.serve.study_page import check_key, intended_use, shown_correction

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["pages"])
Reviewer = Annotated[Caller, Depends(allow("review"))]
#: Voxels of a corrected mask, and how far its corners may lie from those of the study, in mm.
_MOST_VOXELS, TOLERANCE_MM = 2**29, 0.01
_MOST_BOXES = 1000
_MASK_TEXT = 48 * 2**20
_WORDS = {"name": "class", "classes": "classes", "boxes": "boxes", "mask": "mask"}


class BoxAnswer(BaseModel):
    """A box in voxel indices of the study's first image."""

    model_config = ConfigDict(extra="ignore")
    label: str = Field(max_length=256)
    corners_voxels: list[list[float]]


class Correction(BaseModel):
    """What is right in the place of the answer; one of the four."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    name: str | None = Field(None, alias="class", max_length=256)
    classes: list[str] | None = Field(None, max_length=256)
    boxes: list[BoxAnswer] | None = Field(None, max_length=_MOST_BOXES)
    mask: str | None = Field(None, max_length=_MASK_TEXT)


class ReviewAnswer(BaseModel):
    """What a reader says."""

    model_config = ConfigDict(extra="forbid")
    verdict: Literal["accept", "correct", "reject"]
    reason: str = Field("", max_length=4000)
    correction: Correction | None = None


@router.post("/results/{result_id}/reviews", status_code=201)
def add_review(request: Request, caller: Reviewer, result_id: int, answer: ReviewAnswer) -> dict[str, Any]:
    """Say what is to be thought of a result; kept with name and time, and nothing that was said before is changed."""
    service: Service = request.app.state.service
    if caller.user_id is None:
        raise HTTPException(403, "only a person can review")
    with service.db.read() as c:
        row = (
            c.execute(
                sa.select(results)
                .join(studies, results.c.study_id == studies.c.id)
                .where(results.c.id == check_key(result_id), studies.c.deleted_at.is_(None))
            )
            .mappings()
            .first()
        )
    if row is None:
        raise HTTPException(404, "there is no such result")
    correction = _checked(answer, row, service)
    at = time.time()
    values = {
        "result_id": result_id,
        "study_id": row["study_id"],
        "user_id": caller.user_id,
        "at": at,
        "verdict": answer.verdict,
        "reason": answer.reason.strip(),
        "correction": correction,
    }
    with service.db.write() as c:
        review_id = c.execute(sa.insert(reviews).values(**values).returning(reviews.c.id)).scalar_one()
        if row["role"] == "answers" and row["replaced_by"] is None:
            c.execute(
                sa.update(studies).where(studies.c.id == row["study_id"]).values(verdict=answer.verdict, changed_at=at)
            )
    service.audit.record(
        caller.name,
        "review",
        role=caller.role,
        address=caller.address,
        study_id=row["study_id"],
        details={"result": result_id, "review": review_id, "verdict": answer.verdict},
    )
    return {
        "id": review_id,
        "user": caller.name,
        "at": iso(at),
        "verdict": answer.verdict,
        "reason": values["reason"],
        "correction": shown_correction(review_id, correction),
    }


def _checked(answer: ReviewAnswer, row: Mapping[Any, Any], service: Service) -> dict[str, Any] | None:
    """The correction as it is kept.

    Raises
    ------
    DataError
        If it does not fit the verdict or the result.
    """
    given = answer.correction.model_dump(exclude_none=True) if answer.correction is not None else {}
    if answer.verdict == "reject" and not answer.reason.strip():
        raise DataError("a rejection needs a reason")
    if answer.verdict != "correct":
        if given:
            raise DataError(f"'{answer.verdict}' comes without a correction; to correct, say 'correct'")
        return None
    if len(given) != 1:
        raise DataError("a correction holds one of class, classes, boxes, mask")
    ((key, value),) = given.items()
    finding = row["finding"] or {}
    fitting = _fitting(row, finding, service)
    if key not in fitting:
        raise DataError(f"this answer is corrected by {' or '.join(_WORDS[one] for one in fitting)}")
    if key == "mask":
        return {"mask": _kept_mask(str(value), finding, service)}
    if key == "boxes":
        return {"boxes": _boxes(value, finding, _classes(row, finding, service))}
    names = [value] if key == "name" else list(value)
    known = _classes(row, finding, service)
    strange = [name for name in names if known and name not in known]
    if strange:
        raise DataError(f"there is no such class; the model knows {', '.join(known)}")
    return {"class": names[0]} if key == "name" else {"classes": names}


def _fitting(row: Mapping[Any, Any], finding: Mapping[str, Any], service: Service) -> tuple[str, ...]:
    """What a correction of an answer may hold: what the model answers, also where it refused to."""
    task = intended_use(service, row["checksum"]).get("task")
    kind = {"classify": "classes", "segment": "mask", "detect": "boxes"}.get(str(task), finding.get("kind"))
    return {"mask": ("mask",), "boxes": ("boxes",)}.get(str(kind), ("name", "classes"))


def _classes(row: Mapping[Any, Any], finding: Mapping[str, Any], service: Service) -> list[str]:
    known = intended_use(service, row["checksum"]).get("classes")
    return list(known or [one["name"] for one in finding.get("classes", finding.get("structures", []))])


def _boxes(given: list[dict[str, Any]], finding: Mapping[str, Any], known: list[str]) -> list[dict[str, Any]]:
    shape = finding.get("shape")
    kept = []
    for box in given:
        corners = np.array(box["corners_voxels"], dtype=float) if _is_pair(box["corners_voxels"]) else None
        if corners is None or not np.isfinite(corners).all() or (corners[1] <= corners[0]).any():
            raise DataError("a box has two corners of three voxel indices, the lower one first")
        if shape and ((corners[0] < -0.5).any() or (corners[1] > np.array(shape) - 0.5).any()):
            raise DataError("a box reaches out of the image")
        if known and box["label"] not in known:
            raise DataError(f"there is no such class; the model knows {', '.join(known)}")
        kept.append({"label": box["label"], "corners_voxels": corners.tolist()})
    return kept


def _is_pair(corners: list[list[float]]) -> bool:
    return len(corners) == 2 and all(len(corner) == 3 for corner in corners)


def _kept_mask(text: str, finding: Mapping[str, Any], service: Service) -> dict[str, Any]:
    structures = finding.get("structures")
    if not structures or not finding.get("shape"):
        raise DataError("this result holds no mask that could be corrected")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("the mask is not base64 of a .nii.gz file") from error
    item = {
        "data": data,
        "shape": [int(n) for n in finding["shape"]],
        "affine_lps": finding.get("affine_lps"),
        "most": max(int(one["index"]) for one in structures),
    }
    with closing(run_limited(check_mask, [item], workers=1, timeout_s=60.0)) as running:
        for _, result in running:
            if isinstance(result, SagittalError):
                raise DataError(str(result)) from result
            clean, counts = result["data"], result["counts"]
    kept = service.archive.store_file(bytes(clean), ".nii.gz")
    names = {str(one["index"]): one["name"] for one in structures}
    return {"path": kept.path, "sha256": kept.sha256, "size": kept.size, "structures": names, "voxels": counts}


def check_mask(item: dict[str, Any]) -> dict[str, Any]:
    """A corrected mask, checked and written anew; run in a process with limits.

    Parameters
    ----------
    item : dict
        ``data``: the ``.nii.gz``; ``shape``: (I, J, K) of the study; ``affine_lps``: its affine or None; ``most``: the
        highest value of a structure.

    Returns
    -------
    dict
        ``data``: a ``.nii.gz`` of uint8 or int16 that holds nothing but voxels and affine; ``counts``: voxels by value.

    Raises
    ------
    DataError
        If it lies on another grid, or holds values that no structure has.
    ReadError
        If it is damaged, or no NIfTI.
    """
    import nibabel as nib

    from sagittal.guard.limits import inflate

    shape = tuple(item["shape"])
    if math.prod(shape) > _MOST_VOXELS:
        raise DataError("the study has too many voxels for a mask to be corrected")
    with as_read_error("the corrected mask"):
        raw = inflate(bytes(item["data"]), wbits=31, limit=math.prod(shape) * 8 + 65536)
        loaded: Any = nib.Nifti1Image.from_bytes(raw)
        given = tuple(loaded.shape[:3])
        if tuple(loaded.shape) != shape and (given != shape or math.prod(loaded.shape[3:]) != 1):
            raise DataError(f"the corrected mask has {_times(loaded.shape)} voxels, the study {_times(shape)}")
        values = np.asarray(loaded.dataobj).reshape(shape)
        affine = np.asarray(loaded.affine, dtype=float)
    whole = np.round(np.nan_to_num(values.astype(np.float32), nan=-1)).astype(np.int32)
    if not np.array_equal(whole, values) or whole.min() < 0 or whole.max() > item["most"]:
        raise DataError(
            f"the corrected mask holds values that no structure has: whole numbers from 0 to {item['most']}"
        )
    if item["affine_lps"] is not None:
        placed = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(item["affine_lps"], dtype=float)
        corners = np.array(
            [[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)]
        )
        off = float(np.linalg.norm((corners @ (placed - affine).T)[:, :3], axis=1).max())
        if not off <= TOLERANCE_MM:
            raise DataError(f"the corrected mask lies {off:.2f} mm beside the study: it was made on another grid")
        affine = placed
    kind = np.uint8 if item["most"] < 256 else np.int16
    make: Any = nib.Nifti1Image
    clean = make(whole.astype(kind), affine)
    clean.header.set_xyzt_units("mm")
    code = 1 if item["affine_lps"] is not None else 0
    clean.set_sform(affine, code)
    clean.set_qform(affine, code, strip_shears=True)
    import gzip

    numbers, counts = np.unique(whole, return_counts=True)
    found = {str(int(n)): int(count) for n, count in zip(numbers, counts, strict=True) if n}
    return {"data": gzip.compress(clean.to_bytes(), 6, mtime=0), "counts": found}


def _times(shape: Any) -> str:
    return " x ".join(str(int(n)) for n in shape)
