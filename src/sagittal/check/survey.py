"""One pass over the images of a data set, in processes with limits: what check and its page are made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.check.facts import CaseFacts, case_facts, look_at
from sagittal.errors import SagittalError
from sagittal.guard.limited import run_limited
from sagittal.progress import Quiet, Reporter
from sagittal.read.sources import make_mask_source, make_source
from sagittal.truth import Boxes, SegmentationSource

#: Memory and time that one case may take.
MEMORY_BYTES, TIMEOUT_S = 6 * 2**30, 600.0


def survey(
    cases: Iterable[Case], *, pictures: bool = True, workers: int = 0, reporter: Reporter | None = None
) -> dict[str, CaseFacts]:
    """Read every image and segmentation of some cases once.

    Cases whose files are known are read in processes of their own, where a crash, a hang or a bomb in a decoder becomes an
    error of that case; others, made in memory, in this process.

    Parameters
    ----------
    cases : iterable of Case
    pictures : bool
        Whether small pictures are kept for the page.
    workers : int
        Processes; 0 for one a core.
    reporter : Reporter, optional

    Returns
    -------
    dict of case id to CaseFacts
        In the order of the cases. A case that broke its process has a message for each of its images.
    """
    chosen = list(cases)
    found: dict[str, CaseFacts] = {}
    with (reporter or Quiet()).track("checking images", len(chosen)) as advance:
        for case, values in _looked(chosen, pictures, workers):
            found[case.id] = _broken(case, values) if isinstance(values, SagittalError) else case_facts(values)
            advance(1, "")
    return {case.id: found[case.id] for case in chosen}


def _looked(cases: list[Case], pictures: bool, workers: int) -> Iterator[tuple[Case, Any]]:
    apart = [case for case in cases if _named(case)]
    here = [case for case in cases if not _named(case)]
    for case in here:
        yield case, look_at(case, pictures=pictures)
    items = (_item(case, pictures) for case in apart)
    for number, values in run_limited(
        look_at_item, items, workers=workers, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S
    ):
        yield apart[number], values


def look_at_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`sagittal.check.facts.look_at` for a case that was written down as plain values."""
    case = item["case"]
    images = {
        name: make_source(case, one["way"], [Path(f) for f in one["files"]], one["options"], member=one["member"])
        for name, one in item["images"].items()
    }
    truth: Any = None
    if item["mask"] is not None:
        mask = item["mask"]
        files = [Path(f) for f in mask["files"]]
        truth = make_mask_source(case, mask["way"], files, mask["options"], structures=mask["structures"])
    return look_at(Case(case, case, images, truth=truth), pictures=item["pictures"], large=item["large"])


def _item(case: Case, pictures: bool) -> dict[str, Any]:
    mask = case.truth if isinstance(case.truth, SegmentationSource) else None
    return {
        "case": case.id,
        "pictures": pictures,
        "large": isinstance(case.truth, Boxes),
        "images": {
            name: {
                "way": source.way,
                "files": _absolute(source.files),
                "options": dict(source.options),
                "member": source.member,
            }
            for name, source in case.images.items()
        },
        "mask": None
        if mask is None
        else {
            "way": mask.way,
            "files": _absolute(mask.files),
            "options": dict(mask.options),
            "structures": list(mask.structures),
        },
    }


def _absolute(files: Iterable[Path]) -> list[str]:
    """Paths that mean the same in a process that was started in another folder."""
    return [str(file.absolute()) for file in files]


def _named(case: Case) -> bool:
    """Whether everything of a case is read from files in a way that has a name."""
    named = not isinstance(case.truth, SegmentationSource) or bool(case.truth.way)
    return named and all(source.way for source in case.images.values())


def _broken(case: Case, error: SagittalError) -> CaseFacts:
    message = str(error)
    told = message if message.startswith(f"case {case.id}:") else f"case {case.id}: {message}"
    mask = told if isinstance(case.truth, SegmentationSource) else ""
    return CaseFacts(case.id, {}, dict.fromkeys(case.images, told), None, mask)
