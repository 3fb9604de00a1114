"""A service on a free port of this machine, and studies to send to it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

UID = "1.3.6.1.4.1.99999.7"


def make_slice(
    study: int = 1,
    series: int = 1,
    number: int = 1,
    *,
    pixels: np.ndarray | None = None,
    patient: str = "P1",
    name: str = "Wang^XiaoDong=王^小東",
    **fields: Any,
) -> Dataset:
    """A CT slice, 2 mm from the one before, of a grid along no axis of its own size."""
    values = (
        np.random.default_rng(1000 * study + 10 * series + number).integers(-1000, 1500, (40, 32)).astype(np.int16)
        if pixels is None
        else pixels
    )
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = fields.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = fields.pop("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2")
    header.SOPInstanceUID = f"{UID}.{study}.{series}.{number}"
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{UID}.{study}", f"{UID}.{study}.{series}"
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.PatientID, header.PatientName, header.PatientSex = patient, name, "M"
    header.PatientBirthDate, header.StudyDate, header.StudyTime = "19500101", f"2024010{study % 9 + 1}", "101500"
    header.AccessionNumber, header.StudyID, header.Modality = f"ACC-{study}", str(study), "CT"
    header.StudyDescription, header.SeriesDescription = "Chest", "Thin"
    header.SeriesNumber, header.InstanceNumber = series, number
    header.FrameOfReferenceUID = f"{UID}.{study}.9"
    header.ImageOrientationPatient = [1, 0, 0, 0, 0.8, 0.6]
    normal = np.cross([1, 0, 0], [0, 0.8, 0.6])
    header.ImagePositionPatient = [round(float(v), 6) for v in np.array([-10.0, 5.0, 7.0]) + 2.0 * number * normal]
    header.PixelSpacing, header.SliceThickness = [0.7, 0.5], 2.0
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, 0, "HU"
    header.Rows, header.Columns = values.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8 * values.dtype.itemsize
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(values.dtype.kind == "i")
    header.WindowCenter, header.WindowWidth = 40, 400
    header.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    header["PixelData"].VR = "OW"
    for key, value in fields.items():
        if value is None:
            delattr(header, key)
        else:
            setattr(header, key, value)
    return header


def as_file(header: Dataset) -> bytes:
    """The bytes of a file of PS3.10."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, header, enforce_file_format=True)
    return stream.getvalue()


@dataclass
class Running:
    """A service that listens."""

    service: Any
    url: str
    tokens: dict[str, str]

    def headers(self, role: str = "administrator") -> dict[str, str]:
        """The header that says who calls."""
        return {"Authorization": f"Bearer {self.tokens[role]}"}

    def add(self, *headers: Dataset) -> list[Any]:
        """Put instances into the archive."""
        receipts = []
        for header in headers:
            with self.service.archive.receive("test") as incoming:
                incoming.write(as_file(header))
                receipts.append(incoming.finish())
        return receipts


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """The parts of a service, of which no thread runs: ``make_service(limits__most_files=3)``, ``make_service(pool=pool)``."""
    pytest.importorskip("fastapi")
    opened: list[Any] = []

    def make(*, pool: Any = None, **flags: Any) -> Any:
        from sagittal.archive.archive import Archive, Limits
        from sagittal.database.connect import Database
        from sagittal.jobs.pool import Pool
        from sagittal.jobs.predict_now import PredictNow
        from sagittal.jobs.queue import Queue
        from sagittal.jobs.supervise import Supervisor
        from sagittal.protect.audit import Audit
        from sagittal.serve.config import read_config
        from sagittal.serve.service import Service

        given = {"server.data": str(tmp_path / "data"), "limits.disk_reserve": "1 MiB", "dicom.port": 0}
        config = read_config(flags={**given, **{key.replace("__", "."): v for key, v in flags.items()}})
        config.server.data.mkdir(parents=True, exist_ok=True)
        db = Database.open(config.server.database_url)
        archive = Archive(db, config.server.data / "archive", Limits(config.limits.disk_reserve_bytes, 2**30))
        queue = Queue(db, rng=np.random.default_rng(0))
        pool = Pool(()) if pool is None else pool
        service = Service(config, db, archive, Audit(db), queue, pool, Supervisor(queue, {}), PredictNow(pool))
        service.closers.append(("database", db.close))
        opened.append(service)
        return service

    yield make
    for service in opened:
        service.stop()


@pytest.fixture
def running(make_service: Callable[..., Any]) -> Iterator[Running]:
    """A service with uvicorn on a free port of this machine, a user and a token of each role."""
    yield from _run(make_service())


@pytest.fixture
def run_service() -> Iterator[Callable[[Any], Running]]:
    """Run a service that a test has opened."""
    going: list[Iterator[Running]] = []

    def run(service: Any) -> Running:
        going.append(_run(service))
        return next(going[-1])

    yield run
    for one in going:
        next(one, None)


def _run(service: Any) -> Iterator[Running]:
    import uvicorn

    from sagittal.protect.roles import ROLES
    from sagittal.protect.tokens import make_token
    from sagittal.protect.users import add_user
    from sagittal.serve.app import make_app
    from sagittal.serve.connections import Connection

    tokens = {}
    for role in ROLES:
        user = add_user(service.db, f"the-{role}", role)
        tokens[role] = make_token(service.db, user.id, "test")[0]
    app = make_app(service)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", loop="uvloop", http=Connection, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(1000):
        if server.started:
            break
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(service, f"http://127.0.0.1:{port}", tokens)
    finally:
        changes = getattr(app.state, "changes", None)
        if changes is not None:
            changes.close()
        server.force_exit = server.should_exit = True
        thread.join(10)


@dataclass(frozen=True)
class Forge:
    """Makes DICOM objects."""

    uid: str = UID
    slice: Callable[..., Dataset] = make_slice
    file: Callable[[Dataset], bytes] = as_file

    def series(self, count: int, **given: Any) -> list[Dataset]:
        """Slices 1 to `count` of one series."""
        return [make_slice(number=n, **given) for n in range(1, count + 1)]


@pytest.fixture(scope="session")
def forge() -> Forge:
    """Makes DICOM objects: ``forge.slice(study, series, number)``, ``forge.file(header)``."""
    return Forge()
