"""Where the images below a folder lie: found by path, name, stem or folder, whatever system wrote the name."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from sagittal.formats.open_image import READERS, stem
from sagittal.read.files import group, image_files, is_image


class ImageIndex:
    """Where the images below some folders lie, by path, name, stem and folder.

    Parameters
    ----------
    root : Path
        Folder whose images are listed.
    beside : Path
        Another folder from which relative paths may start, such as that of a table.
    without : collection of str
        Folders right below `root` whose files are no images of cases, such as masks.
    """

    def __init__(self, root: Path, beside: Path, without: Collection[str] = ()) -> None:
        self.roots = list(dict.fromkeys((root, beside)))
        self.files = [file for file in image_files(root) if file.relative_to(root).parts[0] not in without]
        self.names: dict[str, list[Path]] = defaultdict(list)
        self.folders: dict[str, list[Path]] = defaultdict(list)
        self._groups: dict[Path, tuple[Path, ...]] = {}
        self._paths = {same_name(str(file)): file for file in self.files}
        self._stems: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            below = file.relative_to(root)
            for name in dict.fromkeys(
                (below.as_posix(), file.name, stem(file), below.with_name(stem(file)).as_posix())
            ):
                self.names[same_name(name)].append(file)
            for parent in below.parents[:-1]:
                for name in dict.fromkeys((parent.as_posix(), parent.name)):
                    self.folders[same_name(name)].append(file)
            self._stems[same_name(str(file.with_name(stem(file))))].append(file)

    def find(self, cell: str) -> tuple[Path, ...]:
        """The files that a cell names; empty where there are none, or it is not clear which."""
        name = cell.strip().replace("\\", "/").removeprefix("./").rstrip("/")
        if not name:
            return ()
        files = self.names.get(same_name(name), [])
        if len(files) == 1:
            return (files[0],)
        if not files and same_name(name) in self.folders:
            return self._one_image(self.folders[same_name(name)])
        for root in self.roots:
            try:
                path = root / name
                if path.is_file() and is_image(path):
                    return (path,)
            except (OSError, ValueError):  # too long, or with a NUL
                return ()
        return ()

    def at(self, path: Path) -> Path | None:
        """The image at exactly this place; ``None`` where none of the listed ones is."""
        return self._paths.get(same_name(str(path)))

    def stems(self, path: Path) -> list[Path]:
        """The listed images at a place of which the suffix is left out."""
        return self._stems.get(same_name(str(path)), [])

    def _one_image(self, files: list[Path]) -> tuple[Path, ...]:
        if len(files) == 1:
            return (files[0],)
        first = files[0]
        if first not in self._groups:
            groups = group(files)
            self._groups[first] = groups[0].files if len(groups) == 1 else ()
        return self._groups[first]


def same_name(name: str) -> str:
    """A name as it compares: accents in one code point (files from a Mac have two), the suffix in lower case.

    >>> same_name("a/Scan.PNG"), same_name("Zu\u0308rich") == "Z\u00fcrich"
    ('a/Scan.png', True)
    """
    name = unicodedata.normalize("NFC", name)
    head, dot, suffix = name.rpartition(".")
    return f"{head}.{suffix.lower()}" if dot and f".{suffix.lower()}" in READERS else name
