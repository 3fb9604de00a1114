"""Small models that learn in seconds, and the CT studies they are made for: a bright block in a tilted volume of noise.

The benchmarks of the service and its tests use them. Where the block lies in the patient is known in closed form, so that a
result can be judged in millimetres; identifiers follow from the study's number, and every file says that it is synthetic.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"
ROOT = "1.2.826.0.1.3680043.8.498.88"
#: A tilted plane: not along any axis.
ROW, COLUMN = np.array([0.8, 0.36, 0.48]), np.array([-0.6, 0.48, 0.64])
ORIGIN = np.array([10.0, -20.0, 30.0])
#: Millimetres between slices, rows and columns.
SPACING = (3.0, 1.0, 1.0)


@dataclass(frozen=True)
class Instance:
    """One image to send: its UID, its file, and the bare data set that goes over DIMSE."""

    uid: str
    file: bytes
    dataset: bytes
    sop_class: str = CT


def block_of(number: int, slices: int, size: int) -> tuple[slice, slice, slice]:
    """Where the block of a study lies: slices, rows, columns. Off the middle, and elsewhere in each study."""
    rng = np.random.default_rng(number)
    depth, side = max(slices // 3, 2), size // 3
    k = int(rng.integers(1, slices - depth))
    i, j = (int(v) for v in rng.integers(2, size - side - 2, 2))
    return slice(k, k + depth), slice(i, i + side), slice(j, j + side)


def voxels(number: int, slices: int = 12, size: int = 32, *, block: bool = True, base: int = 0) -> np.ndarray:
    """Values of a study in HU, (slices, rows, columns) int16: noise about a base, and a block of 600 above it."""
    made = np.random.default_rng(1000 + number).normal(base, 40, (slices, size, size)).astype(np.int16)
    if block:
        made[block_of(number, slices, size)] += 600
    return made


def place_mm(index: np.ndarray) -> np.ndarray:
    """(N, 3) slice, row and column -> (N, 3) millimetres in the patient, LPS."""
    normal = np.cross(ROW, COLUMN)
    k, i, j = np.moveaxis(np.asarray(index, float), -1, 0)[..., None]
    return ORIGIN + k * SPACING[0] * normal + i * SPACING[1] * COLUMN + j * SPACING[2] * ROW


def header_of(number: int, series: int = 1, **fields: Any) -> Dataset:
    """What all images of a study have in common; ``None`` leaves a field out."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = CT
    made.StudyInstanceUID, made.SeriesInstanceUID = f"{ROOT}.{number}", f"{ROOT}.{number}.{series}"
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = f"{ROOT}.{number}.99", ""
    made.PatientName, made.PatientID = f"Phantom^Number {number}", f"P{number:06d}"
    made.PatientBirthDate, made.PatientSex, made.ReferringPhysicianName = "19600101", "O", ""
    made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20260301", "101500", "1", f"A{number:06d}"
    made.StudyDescription, made.SeriesDescription = "Synthetic block", f"Synthetic {SPACING[0]:g} mm"
    made.Modality, made.Manufacturer, made.BodyPartExamined, made.PatientPosition = (
        "CT",
        "Phantom works",
        "ABDOMEN",
        "HFS",
    )
    made.SeriesNumber, made.AcquisitionNumber, made.KVP, made.QualityControlImage = series, 1, "120", "YES"
    made.ImageOrientationPatient, made.PixelSpacing = [*ROW, *COLUMN], [SPACING[1], SPACING[2]]
    made.SliceThickness, made.RescaleIntercept, made.RescaleSlope, made.RescaleType = SPACING[0], -1024, 1, "HU"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 1
    for name, value in fields.items():
        if value is not None:
            setattr(made, name, value)
        elif name in made:
            delattr(made, name)
    return made


def make_study(
    number: int,
    slices: int = 12,
    size: int = 32,
    *,
    series: int = 1,
    block: bool = True,
    base: int = 0,
    leave_out: tuple[int, ...] = (),
    **fields: Any,
) -> list[Instance]:
    """The images of a study, in order of their slices; those of `leave_out` are missing."""
    header = header_of(number, series, **fields)
    values = voxels(number, slices, size, block=block, base=base) + 1024
    header.Rows = header.Columns = size
    made = []
    for k, plane in enumerate(values):
        if k in leave_out:
            continue
        header.SOPInstanceUID = f"{ROOT}.{number}.{series}.{k + 1}"
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.InstanceNumber = k + 1
        header.ImagePositionPatient = [round(float(v), 4) for v in place_mm(np.array([[k, 0, 0]]))[0]]
        header.PixelData = plane.astype("<i2").tobytes()
        header["PixelData"].VR = "OW"
        made.append(instance_of(header))
    return made


def instance_of(header: Dataset) -> Instance:
    """A header with its pixels as it is sent."""
    stream = io.BytesIO()
    header.save_as(stream, enforce_file_format=True)
    whole = stream.getvalue()
    at = 144 + int.from_bytes(whole[140:144], "little")
    return Instance(str(header.SOPInstanceUID), whole, whole[at:], str(header.SOPClassUID))


def write_study(folder: Path, instances: list[Instance]) -> list[Path]:
    """The images of a study as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{n:04d}.dcm" for n, _ in enumerate(instances)]
    for path, one in zip(paths, instances, strict=True):
        path.write_bytes(one.file)
    return paths


def found_mm(seg: pydicom.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Of a segmentation object the name of each segment and where its voxels lie, (N, 3) mm; read by highdicom alone."""
    import highdicom as hd

    read = hd.seg.Segmentation.from_dataset(seg)
    volume = read.get_volume(combine_segments=False)
    for n, item in enumerate(read.SegmentSequence):
        index = np.argwhere(volume.array[..., n] > 0)
        yield str(item.SegmentLabel), volume.map_indices_to_reference(index) if len(index) else np.empty((0, 3))


def save_outliner(path: Path, name: str = "block", *, seed: int = 0, steps: int = 150) -> Path:
    """A U-Net that outlines the block, after some seconds of training, as a package."""
    import torch

    from sagittal.labels import LabelScheme
    from sagittal.model.parts import IntendedUse
    from sagittal.model.place_model import PlaceModel
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import DecidePlan, InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_place_task

    plan = Plan(
        scheme=LabelScheme("structures", ("lesion",)),
        task="segment",
        input=InputPlan(dimensions=3, modality="CT", unit="HU", body_part="ABDOMEN"),
        prepare=PreparePlan(
            size=(8, 16, 16),
            spacing_mm=SPACING,
            whole=False,
            clip=(-1000.0, 1000.0),
            offset=(0.0,),
            scale=(300.0,),
            store="float16",
        ),
        network=NetworkPlan(
            name="unet", width=8, depth=(1, 1), strides=((1, 2, 2), (2, 2, 2)), kernels=((3, 3, 3),) * 2
        ),
        decide=DecidePlan(overlap=0.5, clean=False),
    )
    task, rng = make_place_task(plan), np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = build_network(plan.network, channels=1, dimensions=3, head=task.head, table=0)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(steps):
            image = rng.normal(0, 40 / 300, (4, 1, 8, 16, 16)).astype(np.float32)
            label = np.zeros((4, 8, 16, 16), np.uint8)
            for n in range(4):
                at = tuple(
                    slice(a, a + w)
                    for a, w in zip(rng.integers(0, (5, 10, 10)), rng.integers(2, (5, 9, 9)), strict=True)
                )
                if rng.random() < 0.8:
                    image[n, 0][at] += 2.0
                    label[n][at] = 1
            out = network(torch.from_numpy(image))
            loss = task.loss(out if isinstance(out, (list, tuple)) else [out], torch.from_numpy(label))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    PlaceModel(
        name,
        plan,
        (network.eval(),),
        intended_use=IntendedUse.of(plan, spacing_mm=((2.5, 5.0), (0.6, 1.2), (0.6, 1.2))),
        created="2026-11-21T00:00:00+00:00",
    ).save(path)
    return path


def save_classifier(path: Path, name: str = "block-or-not", *, seed: int = 0, steps: int = 60) -> Path:
    """A network that says whether a volume holds a block, with a gate that knows such volumes, as a package."""
    import torch

    from sagittal.labels import LabelScheme
    from sagittal.model.package import Model
    from sagittal.model.parts import IntendedUse
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import DecidePlan, InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_task

    plan = Plan(
        scheme=LabelScheme("binary", ("no", "yes"), target="block"),
        input=InputPlan(dimensions=3, modality="CT", unit="HU", body_part="ABDOMEN"),
        network=NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        prepare=PreparePlan(size=(8, 16, 16), clip=(-1000.0, 1000.0), offset=(0.0,), scale=(300.0,), store="float16"),
        decide=DecidePlan(gate="abstain"),
    )
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        images = np.stack([voxels(int(rng.integers(1 << 30)), 16, 32, block=bool(one)) for one in labels])
        halved = images.reshape(count, 1, 8, 2, 16, 2, 16, 2).mean((3, 5, 7))  # (N, 1, 8, 16, 16) HU
        return halved.astype(np.float32), labels

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = build_network(plan.network, channels=1, dimensions=3, head=make_task(plan).head, table=0)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(steps):
            images, labels = draw(16)
            loss = torch.nn.functional.cross_entropy(
                network(torch.from_numpy(images / 300), None), torch.from_numpy(labels)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        images, labels = draw(120)
        with torch.no_grad():
            logits = network(torch.from_numpy(images / 300), None).double().numpy()
    Model.assemble(
        name,
        plan,
        [network],
        logits=logits + rng.normal(0, 0.5, logits.shape),  # a calibration of perfect answers has no end
        truth=np.eye(2)[labels],
        references=[images.astype(np.float16)],
        intended_use=IntendedUse.of(plan, size=((6.0, 40.0), (16.0, 64.0), (16.0, 64.0))),
    ).save(path)
    return path
