"""DICOM images without who they are of: what an image needs to be read and understood is kept, everything else is left out.

A list of what is kept, not of what is taken away (PS3.15 E.1.1 names hundreds of attributes, and private ones hold anything).
UIDs become others, the same for the same; the patient becomes a key. What stands in the pixels stays.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset as Header
from pydicom.uid import UID

from sagittal.formats.dicom_file import open_dicom
from sagittal.guard.limits import as_read_error
from sagittal.read.sources import patient_key

#: Codes and numbers of these groups are kept as they are: how the pixels lie, and the pixels.
_GROUPS = frozenset({0x0028, 0x7FE0})
_KEPT = (
    # What kind of image
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "ConversionType", "PresentationIntentType",
    "NumberOfFrames", "BodyPartExamined", "Laterality", "ImageLaterality", "ViewPosition", "PatientOrientation",
    "PatientSex", "PatientAge", "PatientWeight", "PatientSize",
    # Where it lies
    "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SliceThickness", "SpacingBetweenSlices",
    "ImagerPixelSpacing", "NominalScannedPixelSpacing", "EstimatedRadiographicMagnificationFactor", "PatientPosition",
    "GantryDetectorTilt", "InstanceNumber", "AcquisitionNumber", "SeriesNumber", "TemporalPositionIdentifier",
    "NumberOfTemporalPositions", "InStackPositionNumber", "StackID", "DimensionIndexValues", "TriggerTime",
    "FrameAcquisitionNumber", "FrameTime", "FrameTimeVector", "SliceVector", "DetectorVector", "NumberOfSlices",
    # How it was made, in numbers and codes
    "KVP", "ExposureTime", "XRayTubeCurrent", "ConvolutionKernel", "ScanOptions", "ContrastBolusAgent",
    "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "MagneticFieldStrength", "RepetitionTime", "EchoTime",
    "EchoTimes", "EchoNumbers", "InversionTime", "FlipAngle", "DiffusionBValue", "DiffusionGradientOrientation",
    "ImagingFrequency", "PixelBandwidth", "EchoTrainLength", "Manufacturer", "ManufacturerModelName",
    # What its values mean
    "Units", "CountsSource", "SeriesType", "CorrectedImage", "DecayCorrection", "FrameReferenceTime", "AcquisitionTime",
    "SeriesTime", "RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime", "DoseUnits", "DoseType",
    "DoseGridScaling", "GridFrameOffsetVector", "RescaleType", "RealWorldValueFirstValueMapped",
    "RealWorldValueLastValueMapped", "RealWorldValueSlope", "RealWorldValueIntercept", "RealWorldValueLUTData",
    "CodeValue", "CodingSchemeDesignator", "CodeMeaning", "PhysicalUnitsXDirection", "PhysicalUnitsYDirection",
    "PhysicalDeltaX", "PhysicalDeltaY", "RegionSpatialFormat", "RegionDataType", "RegionFlags", "RegionLocationMinX0",
    "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1",
    # Where such elements stand in groups of their own
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence",
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence",
    "FrameContentSequence", "CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence",
    "FrameType", "MRDiffusionSequence", "MREchoSequence", "EffectiveEchoTime", "DiffusionGradientDirectionSequence",
    "RealWorldValueMappingSequence", "MeasurementUnitsCodeSequence", "RadiopharmaceuticalInformationSequence",
    "SequenceOfUltrasoundRegions", "ModalityLUTSequence", "VOILUTSequence", "DimensionOrganizationType",
)  # fmt: skip
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


def _tags() -> frozenset[int]:
    found = {tag_for_keyword(name) for name in _KEPT}
    return frozenset(tag for tag in found if tag is not None)


_TAGS = _tags()


def other_uid(uid: str) -> UID:
    """The UID that stands for another: the same for the same (PS3.5 B.2)."""
    digest = hashlib.blake2s(uid.encode(), digest_size=16, person=b"uid").digest()
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def nameless_file(path: Path) -> bytes:
    """The file without who it is of; its pixels as they are.

    Raises
    ------
    ReadError
        If it is damaged.
    """
    with as_read_error("DICOM"):
        given = open_dicom(path)
        kept = _kept(given)
        for name in _UIDS:
            if given.get(name):
                setattr(kept, name, other_uid(str(given.get(name))))
        kept.PatientID = patient_key(str(given.get("PatientID") or ""))
        kept.PatientName = ""
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = "Sagittal: only attributes of the image kept"
        kept.file_meta = pydicom.dataset.FileMetaDataset()
        kept.file_meta.TransferSyntaxUID = given.file_meta.TransferSyntaxUID
        kept.file_meta.MediaStorageSOPClassUID = given.get("SOPClassUID")
        kept.file_meta.MediaStorageSOPInstanceUID = kept.get("SOPInstanceUID")
        stream = io.BytesIO()
        implicit, little = given.original_encoding
        kept.set_original_encoding(implicit, little, given.original_character_set)
        pydicom.dcmwrite(stream, kept, enforce_file_format=True)
        return stream.getvalue()


def _kept(given: Header) -> Header:
    kept = Header()
    for raw in given.elements():
        tag = int(raw.tag)
        if tag not in _TAGS and tag >> 16 not in _GROUPS:
            continue
        element = given[tag]
        if element.VR == "SQ":
            items = [_kept(item) for item in element.value or []]
            element = pydicom.DataElement(element.tag, "SQ", items)
        kept.add(element)
    return kept
