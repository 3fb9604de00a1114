"""Which reviewed answers of a model are truths, and of which images: what an export is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from sagittal.database.schema import jobs, objects, results, reviews, studies
from sagittal.errors import DataError
from sagittal.jobs.choose import inputs_hash
from sagittal.labels import LabelScheme
from sagittal.serve.instance_rows import Stored, find_stored
from sagittal.serve.page_rows import iso

if TYPE_CHECKING:
    from sagittal.serve.service import Service

_MOST_CASES = 20_000


@dataclass
class Exported:
    """One case of the data set.

    Attributes
    ----------
    name : str
    patient : str
        Identifier of the patient; only its key goes out.
    images : dict of str to list of Stored
        By name of the model's image.
    truth : dict
        ``classes``: names that hold; ``mask``: path below the archive and structures by value; or ``boxes``.
    verdict, at : str
    """

    name: str
    patient: str
    images: dict[str, list[Stored]]
    truth: dict[str, Any]
    verdict: str
    at: str


@dataclass
class Collected:
    """All of a data set, and what is not in it."""

    scheme: LabelScheme
    model: str
    cases: list[Exported] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)


def collect_truth(
    service: Service, model: str = "", since: float | None = None, until: float | None = None
) -> Collected:
    """Reviewed answers of one model.

    Parameters
    ----------
    model : str
        May be empty where only one was reviewed.
    since, until : float, optional
        Seconds since 1970: of the last review of each answer.

    Raises
    ------
    DataError
        If several models were reviewed and none is named.
    """
    latest = sa.select(sa.func.max(reviews.c.id)).group_by(reviews.c.result_id)
    statement = (
        sa.select(reviews, results, studies.c.patient_id)
        .join(results, reviews.c.result_id == results.c.id)
        .join(studies, results.c.study_id == studies.c.id)
        .where(reviews.c.id.in_(latest), studies.c.deleted_at.is_(None))
        .set_label_style(sa.LABEL_STYLE_TABLENAME_PLUS_COL)
        .order_by(results.c.id)
        .limit(_MOST_CASES)
    )
    if model:
        statement = statement.where(results.c.model == model)
    if since is not None:
        statement = statement.where(reviews.c.at >= since)
    if until is not None:
        statement = statement.where(reviews.c.at < until)
    with service.db.read() as c:
        rows = c.execute(statement).mappings().all()
    names = sorted({row["results_model"] for row in rows})
    if len(names) > 1:
        raise DataError(f"several models were reviewed ({', '.join(names)}); say which, as each has classes of its own")
    collected = Collected(_scheme(service, rows), names[0] if names else model)
    for row in rows:
        _add(service, row, collected)
    return collected


def _scheme(service: Service, rows: Sequence[Mapping[Any, Any]]) -> LabelScheme:
    """The scheme of the newest version that is served, or else what the answers themselves show."""
    if not rows:
        return LabelScheme("binary", ("no", "yes"), "review")
    checksums = [row["results_checksum"] for row in rows]
    from sagittal.model import archive as package

    for served in service.pool.models:
        if served.checksum in checksums:
            files, _ = package.read_files(served.path)
            return LabelScheme.from_json(package.parse_json(files["plan.json"], "plan.json")["scheme"])
    finding = rows[-1]["results_finding"] or {}
    if finding.get("kind") == "mask":
        return LabelScheme("structures", tuple(one["name"] for one in finding["structures"]), "review")
    if finding.get("kind") == "boxes":
        labels = {box["label"] for row in rows for box in (row["results_finding"] or {}).get("boxes", [])}
        return LabelScheme("objects", tuple(sorted(labels)) or ("object",), "review")
    classes = tuple(one["name"] for one in finding.get("classes", ()))
    several = any(len((row["results_finding"] or {}).get("decision", [])) > 1 for row in rows)
    kind: Any = "multilabel" if several or len(classes) < 2 else "binary" if len(classes) == 2 else "multiclass"
    return LabelScheme(kind, classes, "review")


def _add(service: Service, row: Mapping[Any, Any], collected: Collected) -> None:
    name = f"result-{row['results_id']}"

    def leave_out(why: str) -> None:
        collected.left_out.append((name, row["reviews_verdict"], why))

    if row["reviews_verdict"] == "reject":
        leave_out("rejected: nothing says what is right")
        return
    try:
        truth = _truth(service, row, collected.scheme)
    except DataError as error:
        leave_out(str(error))
        return
    images = _images(service, row)
    if not images or not all(images.values()):
        leave_out("its images changed after the answer, or are no longer there")
        return
    collected.cases.append(
        Exported(
            name, row["studies_patient_id"] or name, images, truth, row["reviews_verdict"], iso(row["reviews_at"]) or ""
        )
    )


def _truth(service: Service, row: Mapping[Any, Any], scheme: LabelScheme) -> dict[str, Any]:
    finding, correction = row["results_finding"] or {}, row["reviews_correction"] or {}
    accepted = row["reviews_verdict"] == "accept"
    if accepted and row["results_state"] != "answered":
        raise DataError("the model did not answer; to agree with that gives no truth")
    if scheme.kind == "structures":
        return _mask(service, row, scheme, None if accepted else correction.get("mask"))
    if scheme.kind == "objects":
        boxes = (
            [box for box in finding.get("boxes", []) if box.get("chosen", True)]
            if accepted
            else correction.get("boxes")
        )
        if boxes is None:
            raise DataError("the correction holds no boxes")
        if strange := sorted({box["label"] for box in boxes} - set(scheme.classes)):
            raise DataError(f"'{strange[0]}' is no class of the model")
        return {
            "boxes": [[scheme.classes.index(box["label"]), *np.ravel(box["corners_voxels"]).tolist()] for box in boxes]
        }
    if accepted:
        names = list(finding.get("decision", []))
    else:
        names = [correction["class"]] if "class" in correction else list(correction.get("classes", []))
    scheme.truth(*names)  # raises where it is none
    return {"classes": names}


def _mask(
    service: Service, row: Mapping[Any, Any], scheme: LabelScheme, corrected: Mapping[str, Any] | None
) -> dict[str, Any]:
    structures = {one["name"]: [int(one["index"])] for one in (row["results_finding"] or {}).get("structures", [])}
    if corrected is not None:
        path = corrected["path"]
    elif row["reviews_verdict"] == "accept":
        with service.db.read() as c:
            path = c.execute(
                sa.select(objects.c.path).where(objects.c.result_id == row["results_id"], objects.c.kind == "mask")
            ).scalar()
    else:
        path = None
    if path is None or not structures or not service.archive.path_of(path).is_file():
        raise DataError("there is no mask")
    if strange := sorted(set(structures) - set(scheme.classes)):
        raise DataError(f"'{strange[0]}' is no class of the model")
    return {"mask": path, "structures": structures}


def _images(service: Service, row: Mapping[Any, Any]) -> dict[str, list[Stored]]:
    """The images that the answer is about, by name; nothing where the series hold others now."""
    ids = sorted(row["results_series"])
    wanted = sa.and_(jobs.c.study_id == row["results_study_id"], jobs.c.kind == "answer")
    with service.db.read() as c:
        payloads = c.execute(sa.select(jobs.c.payload).where(wanted)).scalars().all()
        same = (one for one in payloads if one.get("inputs") == row["results_inputs"])
        named = next((one["series"] for one in same if sorted(one.get("series", {}).values()) == ids), None)
        if named is None and len(ids) == 1:
            named = {"image": ids[0]}
        if named is None or inputs_hash(c, named) != row["results_inputs"]:
            return {}
    return {
        str(key): [one for one in find_stored(service.db, series_id=int(value)) if one.rows]
        for key, value in named.items()
    }
