"""What every DICOM object made from a prediction has in common: who made it, in which study, and how it is saved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.charset import python_encoding
from pydicom.dataset import Dataset as Header

from sagittal.errors import DataError, require
from sagittal.model.archive import disk_errors
from sagittal.prediction import Failure, Prediction
from sagittal.write.equipment import MANUFACTURER, ModelFacts, Stamp, add_equipment
from sagittal.write.names import one_line
from sagittal.write.sources import Source
from sagittal.write.terminology import PRIVATE_SCHEME, Code, Term

#: Unicode, which has signs for everything.
UTF_8 = "ISO_IR 192"
#: Of the patient and the study: every object of a study repeats them, and a viewer may compare them (PS3.3 C.7.1, C.7.2).
_STUDY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "PatientBirthDate", "PatientBirthTime", "PatientSex", "QualityControlSubject", "OtherPatientIDsSequence",
    "OtherPatientNames", "EthnicGroup", "PatientComments", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName", "StudyID", "StudyDescription", "ProcedureCodeSequence", "PatientAge", "PatientSize",
    "PatientWeight", "PatientSexNeutered", "AdmissionID", "IssuerOfAdmissionIDSequence",
)  # fmt: skip
_CT, _CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
#: Segmentation and secondary capture have the General Series module, reports and structure sets another.
_OF_A_BODY_PART = ("1.2.840.10008.5.1.4.1.1.66.4", _CAPTURE)


@dataclass(frozen=True)
class Maker:
    """Which model, in which version, made a result.

    Parameters
    ----------
    name : str
    version : str
        Format and checksum of the package.
    software : str
        Version of Sagittal.
    checksum : str
        SHA-256 of the package, or what is known of it.
    """

    name: str
    version: str
    software: str
    checksum: str = ""

    @property
    def serial(self) -> str:
        """What tells one trained model from every other: its checksum, else its version."""
        return self.checksum if len(self.checksum) == 64 else self.version[-64:]


def maker_of(prediction: Prediction | Failure, stamp: Stamp | None = None) -> Maker:
    """Name and version from the stamp, or from the model's label, ``NAME (format 1, sha256 ...)``.

    >>> from sagittal.labels import LabelScheme
    >>> from sagittal.prediction import Prediction
    >>> found = Prediction("7", LabelScheme("structures", ("liver",)), None, (), None, model="abdomen (format 1, sha256 5f)")
    >>> maker_of(found).name, maker_of(found).version
    ('abdomen', 'format 1, sha256 5f')
    """
    from sagittal import __version__

    facts = ModelFacts.of(prediction) if stamp is None else stamp.model
    return Maker(
        one_line(facts.name) or "unnamed model",
        one_line(facts.version) or "not stated",
        __version__,
        facts.checksum[:64],
    )


def highdicom() -> Any:
    """The package highdicom, which makes standard objects.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    return require("highdicom", feature="writing DICOM results", extra="dicom")


def concept(code: Code) -> Any:
    """A code as highdicom takes it."""
    return highdicom().sr.CodedConcept(code.value, code.scheme, code.meaning)


def copy_study(made: Header, source: Header) -> None:
    """Repeat what the images say of the patient and the study; texts are in Unicode already (:mod:`sources`)."""
    for keyword in _STUDY:
        if keyword in source:
            made[keyword] = copy.deepcopy(source[keyword])


def seal(made: Header, source: Source, stamp: Stamp) -> None:
    """Give a made object its patient, study, part of the body, times and equipment, so that made again it is the same.

    The model is its contributing equipment; what highdicom drew at random or took from the clock is replaced.
    """
    header, clock = source.header, stamp.clock(source.header)
    copy_study(made, header)
    made.SpecificCharacterSet = _character_set(made, header)
    if header.get("TimezoneOffsetFromUTC"):
        made.TimezoneOffsetFromUTC = header.TimezoneOffsetFromUTC
    if str(made.SOPClassUID) in _OF_A_BODY_PART:
        for keyword in ("BodyPartExamined", "Laterality"):
            if header.get(keyword):
                made[keyword] = header[keyword]
        if str(made.SOPClassUID) == _CAPTURE and not made.get("BodyPartExamined") and "Laterality" not in made:
            made.Laterality = ""  # type 2C where no part of the body is named; of a segmentation it is not
    made.InstanceCreationDate = made.SeriesDate = clock.strftime("%Y%m%d")
    made.InstanceCreationTime = made.SeriesTime = clock.strftime("%H%M%S")
    for name in ("Content", "StructureSet"):
        if f"{name}Date" in made:
            setattr(made, f"{name}Date", made.SeriesDate)
            setattr(made, f"{name}Time", made.SeriesTime)
    organization = stamp.uid("dimensions")
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(keyword) or ():
            item.DimensionOrganizationUID = organization
    add_equipment(made, stamp, header)


def _character_set(made: Header, source: Header) -> str:
    """That of the source, as its archive knows it, where it holds every sign of the object; else Unicode.

    Objects of one study are then alike to programs that compare bytes. Code extensions (ISO 2022) become Unicode.
    """
    given = source.get("SpecificCharacterSet")
    given = "GB18030" if given == "GBK" else given  # the same bytes, under the name that more readers know
    codec = python_encoding.get(given) if isinstance(given, str) else None
    if codec is None or given == UTF_8:
        return UTF_8
    try:
        for text in _texts(made):
            text.encode(codec)
    except (UnicodeEncodeError, LookupError):
        return UTF_8
    return str(given)


def _texts(made: Header) -> Iterator[str]:
    """Every text of a data set but those of its frames, which may be thousands and hold codes alone."""
    for element in made:
        if element.VR == "SQ" and element.keyword != "PerFrameFunctionalGroupsSequence":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in {"SH", "LO", "ST", "LT", "UC", "UT", "PN"}:
            yield str(element.value)


def algorithm(maker: Maker) -> Any:
    """Algorithm Identification Sequence (PS3.3 10.16)."""
    hd = highdicom()
    family = hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    seal = {"sha256": maker.checksum} if maker.checksum else None
    return hd.AlgorithmIdentificationSequence(maker.name, family, maker.version, source=MANUFACTURER, parameters=seal)


def declare_schemes(made: Header, terms: tuple[Term, ...], *, always: bool = False) -> None:
    """Say what the private coding scheme is where a name of it is used (PS3.3 C.12.1.1.8)."""
    if not always and all(term.known for term in terms):
        return
    item = Header()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Names that Sagittal and its models give to findings and decisions"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    made.CodingSchemeIdentificationSequence = [item]


def stand_ins(source: Source) -> list[Header]:
    """A single-frame image of one pixel for each slice, from which highdicom takes all but the pixels.

    They have the study, the series and the positions of the source. Masks of the whole study then need not be held in memory
    at once, slices of all kinds of instances are treated alike, and rounding in the headers does not matter.
    """
    made = []
    for k, one in enumerate(source.slices):
        header = copy.copy(source.header) if k == 0 else Header()
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            setattr(header, keyword, source.header[keyword].value)
        # Of a class that is known to have one frame; references are set right afterwards.
        header.SOPClassUID = _CT if source.placed else _CAPTURE
        header.SOPInstanceUID = f"2.25.{k + 1}"
        header.Rows = header.Columns = 1
        if "NumberOfFrames" in header:
            del header.NumberOfFrames
        for keyword in ("ImageOrientationSlide", "ImageCenterPointCoordinatesSequence", "ImagePositionPatient"):
            if keyword in header:
                delattr(header, keyword)
        if source.placed:
            header.FrameOfReferenceUID = source.header.FrameOfReferenceUID
            header.ImagePositionPatient = [_decimal(v) for v in one.position or ()]
            header.ImageOrientationPatient = [_decimal(v) for v in source.orientation or ()]
            header.PixelSpacing = [_decimal(v) for v in source.pixel_spacing or ()]
            header.SliceThickness = _decimal(_thickness(source))
            if "SpacingBetweenSlices" in header:
                del (
                    header.SpacingBetweenSlices
                )  # of some makers it is no distance; highdicom finds it from the positions
        else:
            # The pixels are those of the image, which tells their size; without a thickness it would be half a size.
            for keyword in ("FrameOfReferenceUID", "PixelSpacing"):
                if keyword in header:
                    delattr(header, keyword)
        made.append(header)
    return made


def _thickness(source: Source) -> float:
    stated = source.header.get("SliceThickness")
    try:
        thick = float(stated)
    except (TypeError, ValueError):
        thick = 0.0
    return thick if thick > 0 else float(source.grid.spacing[2])  # type: ignore[index]


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    from pydicom.valuerep import format_number_as_ds

    return str(format_number_as_ds(float(value)))


@contextmanager
def made_by_highdicom(case: str, what: str) -> Iterator[None]:
    """Turn what highdicom says of a source that does not suit it into a :class:`DataError`, without its words.

    They may hold values of the header, as its warnings do: the one on names of one part shows the patient's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        if type(error).__module__.startswith("sagittal"):
            raise
        raise DataError(
            f"case {case}: {what} cannot be made from the headers of its series ({type(error).__name__}); write another "
            "format: --format nifti"
        ) from error


def save_dicom(made: Header, path: Path) -> None:
    """Write a DICOM file, whole or not at all.

    Raises
    ------
    ResourceError
        If the disk is full or cannot be written to.
    """
    import pydicom

    need = len(made.get("PixelData") or b"")
    with disk_errors(path.name, need=need):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{path.name}")
        try:
            pydicom.dcmwrite(part, made, enforce_file_format=True)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
