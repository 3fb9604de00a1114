"""Can the images be read, and do they hold what an image holds?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from sagittal.case import Case
from sagittal.check.findings import Finding, some
from sagittal.dataset import Dataset
from sagittal.errors import SagittalError
from sagittal.image import Image
from sagittal.progress import Quiet, Reporter


@dataclass
class Looked:
    """What reading a number of cases showed."""

    asked: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # case -> message
    infinite: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    kinds: dict[str, dict[str, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    hashes: dict[str, str] = field(default_factory=dict)


def look(cases: Iterable[Case], reporter: Reporter | None = None) -> Looked:
    """Read every image of some cases once and keep what matters, not the pixels."""
    chosen = list(cases)
    looked = Looked(asked=len(chosen))
    with (reporter or Quiet()).track("checking images", len(chosen)) as advance:
        for case in chosen:
            _look_at(case, looked)
            advance(1, "")
    return looked


def _look_at(case: Case, looked: Looked) -> None:
    digest = blake2b(digest_size=16)
    for name, source in case.images.items():
        try:
            image = source.load()
        except SagittalError as error:
            looked.failed[case.id] = str(error)
            return
        if not np.all(np.isfinite(image.data)):
            looked.infinite.append(case.id)
        elif image.data.min() == image.data.max():
            looked.constant.append(case.id)
        kinds = looked.kinds[name]
        kinds[f"channels:{image.channels}"].append(case.id)
        kinds[f"dimensions:{image.grid.dimensions}"].append(case.id)
        kinds[f"unit:{image.unit}"].append(case.id)
        kinds[f"modality:{image.modality}"].append(case.id)
        _update(digest, image)
    looked.hashes[case.id] = digest.hexdigest()


def _update(digest: blake2b, image: Image) -> None:
    digest.update(repr(image.data.shape).encode())
    # Readers give a transposed view of an array in storage order: hashed in that order nothing is copied.
    digest.update(np.ascontiguousarray(image.data.T).data)


def check_readable(dataset: Dataset, looked: Looked) -> Iterator[Finding]:
    """Findings from what was seen on reading."""
    if looked.failed:
        first = next(iter(looked.failed.values()))
        every = len(looked.failed) == looked.asked
        yield Finding(
            "error" if every else "warning",
            "unreadable",
            f"{len(looked.failed)} of {looked.asked} cases cannot be read and are left out; the first: {first}",
            tuple(looked.failed),
        )
    if looked.infinite:
        yield Finding(
            "warning",
            "not-finite",
            f"{len(looked.infinite)} cases hold NaN or infinite voxels: {some(looked.infinite)}. They cannot be "
            "trained on; convert them again, or leave them out.",
            tuple(looked.infinite),
        )
    if looked.constant:
        yield Finding(
            "warning",
            "constant",
            f"{len(looked.constant)} images have the same value everywhere: {some(looked.constant)}. They carry no information.",
            tuple(looked.constant),
        )
    for name, kinds in looked.kinds.items():
        for what, severity, advice in (
            ("channels", "warning", "Grey is repeated to colour; save them alike if that is not meant."),
            ("dimensions", "error", "Pictures and volumes cannot be learned from together; keep one kind."),
            ("unit", "warning", "Values of different units cannot be compared; export them alike."),
            ("modality", "warning", "A model learns the modality instead of the disease if they go together."),
        ):
            yield from _mixed(name, what, kinds, severity, advice)


def _mixed(image: str, what: str, kinds: dict[str, list[str]], severity: str, advice: str) -> Iterator[Finding]:
    counts = Counter({key.split(":", 1)[1]: len(ids) for key, ids in kinds.items() if key.startswith(what + ":")})
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    odd = tuple(c for key, ids in kinds.items() if key.startswith(what + ":") and key != f"{what}:{usual}" for c in ids)
    shown = ", ".join(f"{n} x {value}" for value, n in counts.most_common())
    yield Finding(
        "error" if severity == "error" else "warning",
        f"mixed-{what}",
        f"image '{image}' differs in {what} from case to case ({shown}; such as {some(odd, 3)}). {advice}",
        odd,
    )
