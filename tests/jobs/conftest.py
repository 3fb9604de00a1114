"""A database, an archive, small models as packages, and studies to send."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from sagittal.archive.archive import Archive, Limits
from sagittal.archive.complete import close_quiet_series
from sagittal.database.connect import Database
from sagittal.jobs.packages import ServedModel, read_packages
from sagittal.jobs.pool import Pool
from sagittal.jobs.queue import Queue
from sagittal.jobs.rules import ModelEntry

_spec = importlib.util.spec_from_file_location(
    "archive_fixtures", Path(__file__).parents[1] / "archive" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
#: A PostgreSQL of the tests' own, and empty databases in it.
postgresql, empty_postgresql = _fixtures.postgresql, _fixtures.empty_postgresql

CR, CT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    database = Database.open(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


@pytest.fixture
def queue(db: Database) -> Queue:
    """Its queue."""
    return Queue(db, rng=np.random.default_rng(0))


@pytest.fixture
def archive(db: Database, tmp_path: Path) -> Iterator[Archive]:
    """An empty archive."""
    made = Archive(db, tmp_path / "archive", Limits(disk_reserve=0))
    yield made
    made.close()


def header_of(study: str, series: str, number: int, pixels: np.ndarray, **fields: Any) -> Dataset:
    """An image whose identifiers follow from its study, series and number."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = fields.pop("SOPClassUID", CR)
    made.SOPInstanceUID = f"1.2.9.{study}.{series}.{number}"
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = (
        made.SOPClassUID,
        made.SOPInstanceUID,
    )
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.9.{study}", f"1.2.9.{study}.{series}"
    made.PatientID, made.PatientName = f"SECRET-{study}", "Secret^Name"
    made.PatientBirthDate, made.PatientSex, made.StudyDate, made.StudyTime = "19600101", "O", "20260301", "101500"
    made.AccessionNumber, made.StudyID, made.ReferringPhysicianName = f"A{study}", "1", ""
    made.Modality, made.InstanceNumber, made.SeriesNumber = "CR", number, 1
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def picture(study: str = "1", series: str = "1", number: int = 1, **fields: Any) -> Dataset:
    """A chest picture of 12 rows and 10 columns."""
    rng = np.random.default_rng(sum(f"{study}{series}{number}".encode()))
    return header_of(study, series, number, rng.integers(0, 255, (12, 10), dtype=np.uint8), **fields)


def volume(study: str = "1", series: str = "1", slices: int = 8, first: int = 0, **fields: Any) -> list[Dataset]:
    """Slices of a tilted CT of 20 rows and 24 columns, 3 mm apart."""
    row, column = np.array([0.8, 0.36, 0.48]), np.array([-0.6, 0.48, 0.64])
    normal = np.cross(row, column)
    made = []
    for k in range(first, first + slices):
        rng = np.random.default_rng(k)
        pixels = rng.integers(900, 1300, (20, 24)).astype(np.int16)
        given = {
            "SOPClassUID": CT,
            "Modality": "CT",
            "Manufacturer": "Phantom works",
            "SeriesDescription": "Liver 3.0 B30f",
            "BodyPartExamined": "ABDOMEN",
            "FrameOfReferenceUID": f"1.2.9.{study}.99",
            "PositionReferenceIndicator": "",
            "ImageOrientationPatient": [*row, *column],
            "ImagePositionPatient": [round(float(v), 4) for v in np.array([10, -20, 30]) + 3 * k * normal],
            "PixelSpacing": [1.0, 1.0],
            "SliceThickness": 3,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            **fields,
        }
        made.append(header_of(study, series, k + 1, pixels, **given))
    return made


def file_bytes(made: Dataset) -> bytes:
    """A file of PS3.10."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def send(db: Database, archive: Archive) -> Callable[..., int]:
    """Let images arrive and close their series: ``send(*headers)`` gives the study's row."""

    def arrive(*made: Dataset, close: bool = True) -> int:
        study_id = 0
        for one in made:
            with archive.receive("test") as incoming:
                incoming.write(file_bytes(one))
                study_id = incoming.finish().study_id
        if close:
            close_quiet_series(db, -1.0, db.clock.now())
        return study_id

    return arrive


@pytest.fixture(scope="session")
def headers() -> SimpleNamespace:
    """The functions that make images."""
    return SimpleNamespace(picture=picture, volume=volume, file_bytes=file_bytes)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Small models on disk: ``chest`` answers pictures with classes, ``chest2`` is another version, ``liver`` outlines."""
    folder = tmp_path_factory.mktemp("models")
    _classifier(0).save(folder / "chest.sagittal")
    _classifier(1).save(folder / "chest2.sagittal")
    _outliner().save(folder / "liver.sagittal")
    return SimpleNamespace(
        **{name: str(folder / f"{name}.sagittal") for name in ("chest", "chest2", "liver")},
    )


def _classifier(seed: int) -> Any:
    import torch

    from sagittal.labels import LabelScheme
    from sagittal.model.package import Model
    from sagittal.model.parts import IntendedUse
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_task

    plan = Plan(
        scheme=LabelScheme("binary", ("benign", "malignant"), target="diagnosis"),
        input=InputPlan(modality="CR"),
        network=NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        prepare=PreparePlan(size=(12, 10), offset=(120.0,), scale=(60.0,), store="uint8"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(plan.network, channels=1, dimensions=2, head=make_task(plan).head, table=0)
        network.train()
        network(torch.randn(16, 1, 12, 10), None)
    rng = np.random.default_rng(seed)
    truth = np.eye(2)[np.arange(120) % 2]
    return Model.assemble(
        "chest",
        plan,
        [network.eval()],
        logits=2.0 * truth + rng.normal(0, 1, truth.shape),
        truth=truth,
        references=[rng.integers(0, 256, (120, 1, 12, 10)).astype(np.uint8)],
        intended_use=IntendedUse.of(plan, size=((12.0, 12.0), (10.0, 10.0))),
    )


def _outliner() -> Any:
    import torch

    from sagittal.labels import LabelScheme
    from sagittal.model.parts import IntendedUse
    from sagittal.model.place_model import PlaceModel
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import DecidePlan, InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_place_task

    plan = Plan(
        scheme=LabelScheme("structures", ("liver", "lesion")),
        task="segment",
        input=InputPlan(dimensions=3, modality="CT", unit="HU", body_part="ABDOMEN"),
        prepare=PreparePlan(
            size=(8, 16, 16),
            spacing_mm=(3.0, 1.0, 1.0),
            whole=False,
            clip=(-1000.0, 1000.0),
            offset=(0.0,),
            scale=(100.0,),
            store="float16",
        ),
        network=NetworkPlan(
            name="unet", width=8, depth=(1, 1), strides=((1, 2, 2), (2, 2, 2)), kernels=((3, 3, 3),) * 2
        ),
        decide=DecidePlan(overlap=0.5, clean=False),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(plan.network, channels=1, dimensions=3, head=make_place_task(plan).head, table=0)
    return PlaceModel(
        "liver",
        plan,
        (network.eval(),),
        intended_use=IntendedUse.of(plan, spacing_mm=((2.5, 5.0), (0.6, 1.2), (0.6, 1.2))),
        created="2026-11-21T00:00:00+00:00",
    )


@pytest.fixture(scope="session")
def served(packages: SimpleNamespace) -> tuple[ServedModel, ...]:
    """The models as a service has them: ``chest`` answers, its other version watches, ``liver`` answers."""
    return read_packages(
        [
            ModelEntry(packages.chest, results=("sr", "sc", "json"), to=("pacs",)),
            ModelEntry(packages.chest2, role="watches", results=("json",), explain_s=0.0),
            ModelEntry(packages.liver, results=("seg", "sr", "sc", "ko", "json"), to=("pacs",)),
        ]
    )


@pytest.fixture(scope="session")
def real_pool(served: tuple[ServedModel, ...]) -> Iterator[Pool]:
    """Those that answer, in processes of their own."""
    pool = Pool((served[0], served[2]), threads=1)
    yield pool
    pool.stop()
