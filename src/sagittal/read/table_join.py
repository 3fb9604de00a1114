"""A table of images beside one of their objects: every image that was looked at, also where nothing was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Protocol

from sagittal.errors import DataError
from sagittal.read.table_file import Rows


class Finder(Protocol):
    """What tells which cells mean the same image."""

    def find(self, cell: str) -> Hashable:
        """What a cell names; empty where it names nothing."""


def join_tables(images: Rows, rows: Rows, key: str, other: str, places: Finder) -> tuple[Rows, int]:
    """The rows of objects with what a table of images says of their image, and a row for each image without any.

    Parameters
    ----------
    images : Rows
        A row an image.
    rows : Rows
        Any number of rows an image; cells of the rows that are added are empty.
    key, other : str
        The columns that name the image, in `images` and in `rows`.
    places : Finder
        As :class:`sagittal.read.image_index.ImageIndex`: both columns may name the image in other ways.

    Returns
    -------
    joined : Rows
        Columns of `rows`, then those of `images` that it does not have. Rows of images that `images` does not list come
        last, as they were.
    added : int
        How many images have no row.

    Raises
    ------
    DataError
        If `images` names an image twice.

    Examples
    --------
    >>> class Same:
    ...     def find(self, cell):
    ...         return cell
    >>> objects = {"id": ["a", "a"], "x": ["1", "2"]}
    >>> join_tables({"uid": ["b", "a"], "age": ["40", "50"]}, objects, "uid", "id", Same())
    ({'id': ['b', 'a', 'a'], 'x': ['', '1', '2'], 'age': ['40', '50', '50']}, 1)
    """
    of: dict[Hashable, list[int]] = defaultdict(list)
    for row, cell in enumerate(rows[other]):
        of[places.find(cell) or cell.strip()].append(row)
    more = [name for name in images if name not in rows and name != key]
    joined: Rows = {name: [] for name in [*rows, *more]}
    seen: set[Hashable] = set()
    added = 0

    def put(of_rows: Sequence[str], of_images: Sequence[str]) -> None:
        for name, cell in zip(joined, [*of_rows, *of_images], strict=True):
            joined[name].append(cell)

    for row, cell in enumerate(images[key]):
        image = places.find(cell) or cell.strip()
        if image in seen:
            raise DataError(f"the table of images names one of them twice, in row {row + 2}")
        seen.add(image)
        told = [images[name][row] for name in more]
        for mine in of.get(image, []):
            put([rows[name][mine] for name in rows], told)
        if image not in of:
            added += 1
            put([cell if name == other else "" for name in rows], told)
    for image, left in of.items():
        if image not in seen:
            for mine in left:
                put([rows[name][mine] for name in rows], [""] * len(more))
    return joined, added
