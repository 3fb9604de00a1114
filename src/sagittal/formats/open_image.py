"""Any single image file: the format is told by its content first, by its suffix where the content does not say."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

from sagittal.errors import ReadError
from sagittal.formats.dicom import read_dicom
from sagittal.formats.metaimage import metaimage_data_file, read_metaimage
from sagittal.formats.nifti import read_nifti
from sagittal.formats.npz import read_npz
from sagittal.formats.nrrd import nrrd_data_file, read_nrrd
from sagittal.formats.raster import read_raster
from sagittal.guard.limits import check_file
from sagittal.image import Image

#: Suffix, lower case -> reader. ``.nii.gz`` is one suffix here.
READERS: dict[str, Callable[[Path], Image]] = {
    ".bmp": read_raster,
    ".dcm": read_dicom,
    ".dicom": read_dicom,
    ".ima": read_dicom,
    ".j2k": read_raster,
    ".jp2": read_raster,
    ".jpeg": read_raster,
    ".jpg": read_raster,
    ".mha": read_metaimage,
    ".mhd": read_metaimage,
    ".nhdr": read_nrrd,
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".npy": read_npz,
    ".npz": read_npz,
    ".nrrd": read_nrrd,
    ".png": read_raster,
    ".tif": read_raster,
    ".tiff": read_raster,
    ".webp": read_raster,
}

#: Where in a file, the bytes that stand there, the reader.
MAGIC: tuple[tuple[int, bytes, Callable[[Path], Image]], ...] = (
    (128, b"DICM", read_dicom),
    (0, b"\x89PNG\r\n\x1a\n", read_raster),
    (0, b"\xff\xd8\xff", read_raster),
    (0, b"II*\0", read_raster),
    (0, b"MM\0*", read_raster),
    (0, b"II+\0", read_raster),
    (0, b"MM\0+", read_raster),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", read_raster),
    (0, b"\xff\x4f\xff\x51", read_raster),
    (8, b"WEBPVP8", read_raster),
    (0, b"BM", read_raster),
    (344, b"n+1\0", read_nifti),
    (344, b"ni1\0", read_nifti),
    (4, b"n+2\0", read_nifti),
    (0, b"NRRD000", read_nrrd),
    (0, b"ObjectType = Image", read_metaimage),
    (0, b"\x93NUMPY", read_npz),
    (0, b"PK\x03\x04", read_npz),
)


def read_image(path: str | Path) -> Image:
    """Read one image file of any format that is known.

    The content decides, so that a JPEG called ``scan.png`` or a DICOM file without suffix is read for what it is.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Image
        Values in file order, nothing resampled, on a grid in LPS+ mm where the file gives a position.

    Raises
    ------
    ReadError
        If the file is missing, empty, cut off, damaged, absurdly large or of no known format.
    GeometryError
        If its position is not usable.
    MissingPackageError
        If a decoder is not installed.
    """
    path = Path(path)
    check_file(path)
    reader = reader_of(path)
    if reader is None:
        raise ReadError(f"not an image file of a known kind. {_known()}")
    return reader(path)


def reader_of(path: Path) -> Callable[[Path], Image] | None:
    """The reader for a file, by its content, else by its suffix; ``None`` where neither is known."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                start = file.read(512)
            return read_nifti if any(start[o : o + 4] == m for o, m, r in MAGIC if r is read_nifti) else None
    except (OSError, EOFError, zlib.error):
        return READERS.get(image_suffix(path))
    for offset, mark, reader in MAGIC:
        if start[offset : offset + len(mark)] == mark and not (mark == b"BM" and image_suffix(path) != ".bmp"):
            return reader
    return READERS.get(image_suffix(path))


def image_suffix(path: Path) -> str:
    """The suffix in lower case; ``.nii.gz`` counts as one.

    >>> image_suffix(Path("a/scan.NII.gz")), image_suffix(Path("b/1.2.840.113"))
    ('.nii.gz', '.113')
    """
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def stem(path: Path) -> str:
    """The file's name without the suffix of its format.

    >>> stem(Path("a/scan.nii.gz")), stem(Path("b/1.2.840.113"))
    ('scan', '1.2.840.113')
    """
    suffix = image_suffix(path)
    return path.name[: -len(suffix)] if suffix in READERS else path.name


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that hold an image: itself, and for a header of its own (``.mhd``, ``.nhdr``) the data beside it.

    Raises
    ------
    ReadError
        If the header is damaged or names a file elsewhere.
    """
    finders = {read_nrrd: nrrd_data_file, read_metaimage: metaimage_data_file}
    reader = reader_of(path)
    other = finders[reader](path) if reader in finders else None
    return (path,) if other is None else (path, other)


def _known() -> str:
    return f"Known: {', '.join(sorted(READERS))}, and DICOM of any name."
