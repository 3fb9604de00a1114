"""Secondary Capture (PS3.3 A.8.1): a result as one page that every viewer shows beside the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from sagittal.case import Case
from sagittal.image import Image
from sagittal.prediction import Failure, Prediction
from sagittal.types import Array
from sagittal.write.dicom_result import maker_of, save_dicom, seal
from sagittal.write.dicom_sr import source_of
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.key_objects import HeatMap
from sagittal.write.lettering import find_chinese_font
from sagittal.write.names import one_line
from sagittal.write.result_page import draw_page
from sagittal.write.result_picture import draw_result
from sagittal.write.sources import Source
from sagittal.write.statement import Statement, make_statement
from sagittal.write.terminology import Terminology

_WHAT = "a secondary capture"
_CLASS = "1.2.840.10008.5.1.4.1.1.7"
_SERIES = 9105
#: Images whose pixels are computed by the machine and hold no text of it.
_WITHOUT_TEXT = {"CT", "MR", "PT", "NM"}


def write_dicom_sc(
    answer: Prediction | Failure,
    case: Case,
    path: Path,
    *,
    terminology: Terminology | None = None,
    language: str = "en",
) -> Path:
    """Write an answer as a page in DICOM. See :func:`make_dicom_sc`."""
    source = source_of(answer, case, _WHAT)
    save_dicom(make_dicom_sc(answer, source, case=case, terminology=terminology, language=language), path)
    return path


def make_dicom_sc(
    answer: Prediction | Failure,
    source: Source,
    *,
    case: Case | None = None,
    image: Image | None = None,
    heat: HeatMap | None = None,
    stamp: Stamp | None = None,
    statement: Statement | None = None,
    terminology: Terminology | None = None,
    language: str = "en",
) -> Header:
    """A page of 1024 x 1448 pixels in colour: see :mod:`sagittal.write.result_page`.

    It names all images of the series as its sources. Whether there are identifiers in its pixels is that of the image in the
    picture; the page adds none.

    Parameters
    ----------
    answer : Prediction or Failure
    source : Source
    case : Case, optional
        Its image is drawn, read for this unless `image` is given.
    image : Image, optional
        On the grid of the answer.
    heat : HeatMap, optional
        Drawn where the answer itself has no place.
    stamp : Stamp, optional
        UIDs, time and model; where left out, new UIDs and the present time.
    statement : Statement, optional
        The answer in words; made where left out.
    terminology : Terminology, optional
        For colours.
    language : {"en", "zh"}
        Of a statement that is made here; English where no font has Chinese signs.
    """
    stamp = stamp or Stamp.now(answer)
    if statement is None:
        statement = make_statement(answer, stamp.model, language=readable(language))
    drawn = draw_result(answer, statement, case=case, image=image, heat=heat, terminology=terminology)
    page = draw_page(statement, stamp.model, picture=drawn.png, caption=drawn.caption)
    return _capture(page, answer, source, stamp, statement, _burned_in(source, drawn.burned_in, drawn.png is not None))


def readable(language: str) -> str:
    """The language, or English where no font on this machine has its signs."""
    return "en" if language == "zh" and find_chinese_font() is None else language


def _burned_in(source: Source, stated: bool | None, picture: bool) -> str:
    """YES, NO, or nothing where the image in the picture does not say whether it holds names."""
    if not picture:
        return "NO"
    if stated is None:
        said = str(source.header.get("BurnedInAnnotation") or "")
        stated = said == "YES" if said in {"YES", "NO"} else None
    if stated is None and str(source.header.get("Modality") or "") in _WITHOUT_TEXT:
        stated = False
    return "" if stated is None else "YES" if stated else "NO"


def _capture(
    page: Array, answer: Prediction | Failure, source: Source, stamp: Stamp, statement: Statement, burned_in: str
) -> Header:
    maker = maker_of(answer, stamp)
    made = Header()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID(_CLASS)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID(stamp.uid("instance"))
    made.SeriesInstanceUID = UID(stamp.uid("series"))
    made.SeriesNumber, made.InstanceNumber = _SERIES, 1
    made.Modality = "OT"  # not that of the images: nobody shall take the page for one of them and read it again
    made.ConversionType = "WSD"
    made.SeriesDescription = one_line(f"Result by {maker.name}")
    made.Manufacturer, made.ManufacturerModelName = MANUFACTURER, maker.name
    made.DeviceSerialNumber = maker.serial
    made.SoftwareVersions = [maker.software, maker.version]
    made.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    made.SecondaryCaptureDeviceManufacturerModelName = maker.name
    made.SecondaryCaptureDeviceSoftwareVersions = [maker.software, maker.version]
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ContentDate = made.ContentTime = ""  # set when it is sealed
    made.DerivationDescription = f"Result of the algorithm {maker.name}, {maker.version}; not checked by a person"[
        :1024
    ]
    made.ImageComments = statement.text[:10240]
    made.PatientOrientation = ""
    if burned_in:
        made.BurnedInAnnotation = burned_in
    used = [*source.instances, *(one for other in source.others for one in other.instances)]
    made.SourceImageSequence = [_referred(sop_class, instance) for sop_class, instance in used]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = page.shape[:2]
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.LossyImageCompression = "00"
    made.PixelData = np.ascontiguousarray(page).tobytes()
    made["PixelData"].VR = "OB"
    seal(made, source, stamp)
    made.SecondaryCaptureDeviceID = "SAGITTAL"
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    return made


def _referred(sop_class: str, instance: str) -> Header:
    item = Header()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    item.SpatialLocationsPreserved = "NO"
    purpose = Header()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item
