"""Load a model without knowing what it answers."""

from __future__ import annotations

from pathlib import Path

from sagittal.model import archive
from sagittal.model.package import Model
from sagittal.model.parts import building, read_entry
from sagittal.model.place_model import PlaceModel
from sagittal.tasks.registry import PLACE_TASKS

#: A model of classes, of structures or of objects.
AnyModel = Model | PlaceModel


def load_model(path: str | Path, device: str = "cpu") -> AnyModel:
    """The model at a path, a folder or a single file: of classes, of structures or of objects.

    Nothing is parsed before its checksum was verified, and nothing is ever executed.

    Raises
    ------
    PackageError
        If the model is missing, damaged, unsafe or of a newer format.
    ResourceError
        If the device is missing.
    """
    path = Path(path)
    files, checksum = archive.read_files(path)
    with building(path.name):
        task = read_entry(files, archive.INDEX).get("task")
    kind = PlaceModel if task in PLACE_TASKS else Model
    return kind.from_files(files, checksum, device=device, where=path.name)
