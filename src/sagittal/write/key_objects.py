"""Key Object Selection (PS3.3 A.35.4): the images of a study on which a finding shows best, for viewers to jump to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.grid import Grid
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.types import Floats
from sagittal.write.dicom_result import UTF_8, concept, highdicom, made_by_highdicom, maker_of, seal
from sagittal.write.dicom_sr import device_observer
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.masks import planes_of
from sagittal.write.names import one_line
from sagittal.write.sources import Source
from sagittal.write.statement import Statement, make_statement
from sagittal.write.statement_words import WORDS
from sagittal.write.terminology import Code

_WHAT = "a key object selection"
_SERIES = 9106
_OF_INTEREST = Code("113000", "DCM", "Of Interest")
#: Images that a reader is sent to; more would be none.
MOST = 12


class HeatMap(Protocol):
    """What an answer rests on, as :class:`sagittal.explain.maps.Map` has it."""

    @property
    def heat(self) -> Floats:
        """(I, J, K), on `grid`."""
        ...

    @property
    def grid(self) -> Grid:
        """The study's own."""
        ...

    @property
    def method(self) -> str:
        """Its name."""
        ...


def decisive_slices(answer: Prediction | Failure, *, heat: HeatMap | None = None, most: int = MOST) -> list[int]:
    """The slices on which an answer shows best, by index k, ascending; none where it has no place.

    Of each structure that was found the slice with its largest area; of each chosen box the one through its middle, the
    surest first; of a heat map the one of its peak.

    Parameters
    ----------
    answer : Prediction or Failure
    heat : HeatMap, optional
        Used where the answer itself has no place.
    most : int
        No more than that many; of structures those with the largest areas.
    """
    if isinstance(answer, Failure):
        return []
    found = answer.finding
    if isinstance(found, Mask):
        best: dict[int, tuple[int, int]] = {}
        for n, k, plane in planes_of(found):
            area = int(np.count_nonzero(plane))
            if area > best.get(n, (0, 0))[0]:
                best[n] = (area, k)
        ranked = [k for _, k in sorted(best.values(), reverse=True)]
    elif isinstance(found, Detections):
        deep = found.grid.shape[2]
        middles = found.boxes.corners[found.chosen][:, :, 2].mean(axis=1)
        ranked = [int(np.clip(round(float(k)), 0, deep - 1)) for k in middles]
    elif heat is not None and np.isfinite(heat.heat).any() and float(np.nanmax(heat.heat)) > 0:
        ranked = [int(np.unravel_index(int(np.nanargmax(heat.heat)), heat.heat.shape)[2])]
    else:
        ranked = []
    return sorted(list(dict.fromkeys(ranked))[:most])


def make_key_objects(
    answer: Prediction | Failure,
    source: Source,
    *,
    heat: HeatMap | None = None,
    stamp: Stamp | None = None,
    statement: Statement | None = None,
) -> Any:
    """A selection titled "Of Interest" of the slices of :func:`decisive_slices`, with the finding as its description.

    Where no slice is decisive (nothing was found, the finding has no place, or there is none) the middle one stands for the
    series and the description says so: the object must name an image.

    Parameters
    ----------
    answer : Prediction or Failure
    source : Source
    heat : HeatMap, optional
    stamp : Stamp, optional
        UIDs, time and model; where left out, new UIDs and the present time.
    statement : Statement, optional
        The answer in words; made where left out.

    Returns
    -------
    highdicom.ko.KeyObjectSelectionDocument

    Raises
    ------
    MissingPackageError
        If highdicom is not installed.
    """
    stamp = stamp or Stamp.now(answer)
    statement = statement or make_statement(answer, stamp.model)
    hd, maker = highdicom(), maker_of(answer, stamp)
    slices = decisive_slices(answer, heat=heat) if statement.state == "answered" else []
    if heat is not None and slices and heat.heat.shape[2] != len(source.slices):
        slices = []
    chosen = [source.slices[k] for k in slices if k < len(source.slices)]
    description = _describe(statement, maker.name, bool(chosen))
    chosen = chosen or [source.slices[len(source.slices) // 2]]
    with made_by_highdicom(answer.case, _WHAT):
        frames = _frames(chosen)
        referred = [_referred(source, sop_class, instance) for sop_class, instance in frames]
        content = hd.ko.KeyObjectSelection(
            concept(_OF_INTEREST), referred, observer_device_context=device_observer(maker), description=description
        )
        for item in content[0].ContentSequence:
            if item.ValueType == "IMAGE":
                reference = item.ReferencedSOPSequence[0]
                key = (str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID))
                if numbers := [n for n in frames[key] if n]:
                    reference.ReferencedFrameNumber = numbers
        made = hd.ko.KeyObjectSelectionDocument(
            evidence=referred,
            content=content,
            series_instance_uid=stamp.uid("series"),
            series_number=_SERIES,
            sop_instance_uid=stamp.uid("instance"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.name,
            software_versions=maker.software,
            device_serial_number=maker.serial,
            specific_character_set=UTF_8,
            series_description=one_line(f"Key images by {maker.name}"),
        )
    made.SoftwareVersions = [maker.software, maker.version]
    seal(made, source, stamp)
    return made


def _describe(statement: Statement, model: str, decisive: bool) -> str:
    words = WORDS[statement.language]
    which = words["decisive" if decisive else "stands for" if statement.state == "answered" else "no decision"]
    return f"{which.format(model=model)}\n{statement.text}"


def _frames(chosen: Sequence[Any]) -> dict[tuple[str, str], list[int]]:
    """Instances in their order, and the frames of each that are meant."""
    frames: dict[tuple[str, str], list[int]] = {}
    for one in chosen:
        frames.setdefault((one.sop_class, one.sop_instance), []).append(one.frame)
    return frames


def _referred(source: Source, sop_class: str, instance: str) -> Header:
    """An instance with what highdicom takes from it: its UIDs, and that it is an image."""
    header = Header()
    for keyword in (
        "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
        "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
    ):  # fmt: skip
        header[keyword] = source.header[keyword]
    header.SOPClassUID, header.SOPInstanceUID = sop_class, instance
    header.Rows = header.Columns = 1
    return header
