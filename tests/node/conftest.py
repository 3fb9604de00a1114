"""An archive, a DICOM node that receives into it, and slices to send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from sagittal.archive.archive import Archive, Limits
from sagittal.database.connect import Database
from sagittal.node.dicom_node import DicomNode
from sagittal.node.options import Dicom
from sagittal.node.upper_layer import WireLimits


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """An archive with its database, both on the disk."""
    db = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    yield Archive(db, tmp_path / "archive", Limits(disk_reserve=0))
    db.close()


@pytest.fixture
def start(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DicomNode]]:
    """Starts a node; options of ``[dicom]`` and of the node by name."""
    monkeypatch.setattr("sagittal.node.upper_layer.TICK_S", 0.05)  # so that nodes stop at once
    nodes: list[DicomNode] = []

    def start(wire: WireLimits | None = None, **fields: Any) -> DicomNode:
        own = {name: fields.pop(name) for name in ("audit", "count", "on_committed", "on_report") if name in fields}
        node = DicomNode(Dicom(port=0, **fields), archive, wire=wire, **own)
        node.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.stop(0.0)


@pytest.fixture
def make_slice(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CT slice of noise; the same bytes for the same number."""

    def make(number: int = 0, *, size: int = 64, uid: str = "", folder: str = "sent") -> Path:
        source = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        pixels = np.random.default_rng(number).integers(0, 2000, (size, size), np.int16)
        source.Rows = source.Columns = size
        source.PixelData = pixels.tobytes()
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = uid or f"1.2.826.0.1.77.{number + 1}"
        source.PatientName, source.PatientID = "Secret^Name", "SECRET-ID"
        path = tmp_path / folder / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        source.save_as(path)
        return path

    return make


@pytest.fixture
def ct(make_slice: Callable[..., Path]) -> Path:
    """A CT slice in a file."""
    return make_slice()
