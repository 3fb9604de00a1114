"""Predictor of answers that have a place: from a case to a mask or boxes on its own grid, in bounded memory."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.case import Case
from sagittal.errors import ConfigError, ResourceError, ScopeError
from sagittal.labels import LabelScheme
from sagittal.model.engines import Choice, Engines
from sagittal.model.gate import Gate
from sagittal.model.memory import free_memory, windows_bytes
from sagittal.model.predictor import BATCH_NUMBERS, MAX_BATCH, flip_sets, hold, out_of_memory, to_failure
from sagittal.model.windows import GROWTH, MOST_VOXELS, Layout, lay_out, run_windows
from sagittal.networks.heads import Head
from sagittal.networks.unet import pad_far
from sagittal.prediction import Detections, Failure, Finding, Mask, Prediction, Verdict
from sagittal.prepare.arrays import to_input
from sagittal.prepare.plan import Plan
from sagittal.prepare.turn import turn_back
from sagittal.prepare.volumes import PreparedVolume, prepare_volume
from sagittal.progress import Quiet, Reporter
from sagittal.tasks.task import PlaceTask
from sagittal.truth import Segmentation
from sagittal.types import Array, Floats

_log = logging.getLogger(__name__)

#: Numbers of the answer in one window that is larger than those of training, at most: 256 MB.
MOST_NUMBERS = 64_000_000


@dataclass(frozen=True, eq=False)
class PlacePredictor:
    """Everything between a case and its mask or boxes. Safe to use from several threads.

    Parameters
    ----------
    plan : Plan
    task : PlaceTask
    members : tuple of torch.nn.Module
        In eval mode, on `device`; images (N, C, *size) -> logits (N, outputs, *map).
    weights : tuple of float, one a member
        Of the average of their logits, sum 1.
    settled : mapping
        What the task settled on validation cases.
    gate : Gate, optional
    label : str
        Written into each prediction.
    device : torch.device
    engine : str
        ``auto`` for the fastest that gives torch's answer, or one of ``sagittal.model.engines.ENGINES``.
    """

    plan: Plan
    task: PlaceTask
    members: tuple[nn.Module, ...]
    weights: tuple[float, ...]
    settled: Mapping[str, Any]
    gate: Gate | None
    label: str
    device: torch.device
    engine: str = "auto"
    _engines: list[Engines] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.weights):
            raise ConfigError(
                f"a model needs networks and a weight for each, not {len(self.members)} and {self.weights}"
            )
        self._engines.extend(Engines(member, self.device, self.engine) for member in self.members)

    def find(
        self, volume: PreparedVolume, members: Sequence[int] | None = None, *, probability: bool = False
    ) -> Finding:
        """What networks find in a prepared study, before what was settled on validation cases is applied.

        Parameters
        ----------
        volume : PreparedVolume
        members : sequence of int, optional
            Those that answer, equally weighted among themselves as in the whole; all by default. Training asks those that
            did not learn from the case.
        probability : bool
            Whether a mask comes with the probability of each voxel.

        Raises
        ------
        ScopeError
            If the answer is not finite.
        ResourceError
            If memory does not hold the study's windows.
        """
        return self.look(volume, members, probability=probability)[0]

    def look(
        self,
        volume: PreparedVolume,
        members: Sequence[int] | None = None,
        *,
        batch: int | None = None,
        probability: bool = False,
    ) -> tuple[Finding, list[Floats]]:
        """What :meth:`find` finds, and what each of the networks saw: features (F,) float32, the mean over windows.

        The gate knows studies by those. They are empty, (0,), of a network without an encoder.
        """
        asked = tuple(range(len(self.members)) if members is None else members)
        size = volume.array.shape[1:]
        for number, growth in enumerate(_SMALLER):
            layout = self._lay_out(size, growth)
            # Where memory is short, nothing but torch is used, and one window at a time.
            at_once = (batch or self._batch(layout)) if number == 0 else 1
            last = number == len(_SMALLER) - 1
            if self._fits(layout, at_once, len(asked), last=last):
                try:
                    return self._collect(volume, layout, asked, at_once, probability=probability, plain=number > 0)
                except (MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
            if not last:
                _log.warning("memory does not hold windows of %s: going on with smaller ones", layout.window)
        need = windows_bytes(self.plan, layout, outputs=self.task.head.outputs, batch=1, views=len(asked))
        raise ResourceError(
            f"memory does not hold the answer on {' x '.join(map(str, size))} voxels on {self.device}: even in windows of "
            f"{' x '.join(map(str, layout.window))} it takes about {need / 2**30:.1f} GB. Close other programs, predict on a "
            "machine with more memory, or cut the study into parts."
        )

    def predict(self, case: Case, *, probability: bool = False) -> Prediction:
        """The prediction of one case.

        Raises
        ------
        ReadError, GeometryError, DataError
            If the study cannot be read.
        ScopeError
            If it is not what the model was made for.
        ResourceError
            If memory does not hold it.
        """
        return self._answer(self._read(case), probability=probability)

    def predict_many(
        self,
        cases: Iterable[Case],
        *,
        batch: int | None = None,
        workers: int | None = None,
        reporter: Reporter | None = None,
        probability: bool = False,
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of the cases; a case that fails gives a :class:`Failure` and the rest go on.

        Parameters
        ----------
        cases : iterable of Case
        batch : int, optional
            Windows that are answered at once.
        workers : int, optional
            Cases that are read ahead of the one that is answered, each in a thread; by default one, as each is held in
            memory.
        reporter : Reporter, optional
        probability : bool
        """
        if batch is not None and batch < 1:
            raise ConfigError(f"batch must be 1 or more, not {batch}")
        ahead = workers or 1
        total = len(cases) if isinstance(cases, Sized) else None
        waiting: deque[Future[_Read | Failure]] = deque()
        with (
            ThreadPoolExecutor(ahead, thread_name_prefix="sagittal-read") as pool,
            (reporter or Quiet()).track("predict", total) as advance,
        ):
            try:
                remaining = iter(cases)
                while True:
                    waiting.extend(
                        pool.submit(self._try_read, case)
                        for case in itertools.islice(remaining, ahead + 1 - len(waiting))
                    )
                    if not waiting:
                        return
                    yield self._try_answer(waiting.popleft().result(), batch, probability=probability)
                    advance(1, "")
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def engines(self) -> list[Mapping[tuple[int, ...], Choice]]:
        """By network, which engine was chosen for windows (C, *size) of each size that enough came of."""
        return [engines.choices for engines in self._engines]

    # One case

    def _read(self, case: Case) -> _Read:
        start = time.perf_counter()
        volume = prepare_volume(hold(case, self.plan), self.plan)
        return _Read(case.id, volume, time.perf_counter() - start)

    def _try_read(self, case: Case) -> _Read | Failure:
        try:
            return self._read(case)
        except Exception as error:  # one bad study never stops the rest
            return to_failure(case.id, error)

    def _try_answer(self, read: _Read | Failure, batch: int | None, *, probability: bool) -> Prediction | Failure:
        if isinstance(read, Failure):
            return read
        try:
            return self._answer(read, batch, probability=probability)
        except Exception as error:
            return to_failure(read.case, error)

    def _answer(self, read: _Read, batch: int | None = None, *, probability: bool) -> Prediction:
        start = time.perf_counter()
        try:
            raw, embeddings = self.look(read.volume, batch=batch, probability=probability)
        except (ScopeError, ResourceError) as error:
            raise type(error)(f"case {read.case}: {error}") from error
        finding = self.task.conclude(raw, self.settled)
        verdict = Verdict()
        if self.gate is not None:
            verdict = self.gate.judge([embedding[None] for embedding in embeddings])[0]
        abstains = self.gate is not None and self.gate.abstains and not verdict.accepted
        return Prediction(
            case=read.case,
            scheme=self.plan.scheme,
            finding=finding,
            decision=() if abstains else found_classes(finding, self.plan.scheme),
            logits=np.zeros(0),
            uncertainty=place_uncertainty(finding),
            verdict=verdict,
            model=self.label,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=read.seconds + time.perf_counter() - start,
        )

    # The networks

    def _fits(self, layout: Layout, batch: int, members: int, *, last: bool) -> bool:
        """Whether memory is likely to hold the windows; who takes too much of it is ended without an error to catch."""
        free = free_memory() if self.device.type == "cpu" else None
        views = members * len(flip_sets(self.plan.decide.flips))
        need = windows_bytes(self.plan, layout, outputs=self.task.head.outputs, batch=batch, views=views)
        return free is None or need < (1.0 if last else 0.8) * free

    def _lay_out(self, size: Sequence[int], growth: float) -> Layout:
        patch = [max(int(p * min(growth, 1)), 1) for p in self.plan.prepare.size]
        multiple = getattr(self.members[0], "multiple", None)
        head, strides = self.task.head, self.plan.network.strides
        stem = math.prod(strides[0]) if strides else 1  # no map is as fine as the window where the first layer strides
        return lay_out(
            size,
            patch,
            overlap=self.plan.decide.overlap,
            align=multiple if isinstance(multiple, tuple) else None,
            stride=head.stride,
            outputs=head.outputs,
            growth=max(growth, 1),
            most=max(MOST_VOXELS, min(MOST_VOXELS * stem, MOST_NUMBERS // head.outputs)),
        )

    def _collect(
        self,
        volume: PreparedVolume,
        layout: Layout,
        members: Sequence[int],
        batch: int,
        *,
        probability: bool,
        plain: bool,
    ) -> tuple[Finding, list[Floats]]:
        views = _Views(self, members, layout.count, plain=plain)
        collector = self.task.collector(volume.lattice, probability=probability)
        with np.errstate(invalid="ignore", over="ignore"):  # an answer that is not finite is refused
            for slab in run_windows(views.answer, volume.array, layout, batch=batch):
                if not np.isfinite(slab.logits.sum()):
                    raise ScopeError(
                        "the network's answer is not finite; the study's values are far from those of the training cases"
                    )
                collector.add(slab.start, slab.logits, slab.doubt)
        return turn_back(collector.finish()), views.embeddings()

    def _batch(self, layout: Layout) -> int:
        numbers = self.plan.input.channels * int(np.prod(layout.window))
        return int(np.clip(BATCH_NUMBERS // 4 // numbers, 1, MAX_BATCH))


#: Growth of the windows of prediction beyond those of training, and what follows where memory does not hold them.
_SMALLER = (GROWTH, 1.0, 0.5)


@dataclass(frozen=True, eq=False)
class _Read:
    """A case that could be read and prepared."""

    case: str
    volume: PreparedVolume
    seconds: float


class _Views:
    """What several networks say of windows, each seen as it is and mirrored."""

    def __init__(self, predictor: PlacePredictor, members: Sequence[int], windows: int, *, plain: bool) -> None:
        self.predictor, self.windows, self.plain = predictor, windows, plain
        chosen = [predictor.weights[n] for n in members]
        self.members = list(zip(members, [w / sum(chosen) for w in chosen], strict=True))
        self.flips = flip_sets(predictor.plan.decide.flips)
        self.exclusive = predictor.plan.outputs == "exclusive"
        several = len(self.members) * len(self.flips) > 1
        self.doubts = several and predictor.plan.scheme.kind == "structures"
        self._sums: list[Floats] = [np.zeros(0) for _ in self.members]
        self._seen = 0

    def answer(self, windows: Array) -> tuple[Floats, Floats | None]:
        """Mean logits (N, outputs, *map) of stored windows (N, C, *size), and their doubt (N, *map)."""
        predictor = self.predictor
        stored = torch.from_numpy(np.ascontiguousarray(windows)).to(predictor.device)
        image = to_input(stored, predictor.plan.prepare)
        stride = predictor.task.head.stride
        if stride > 1 and len(self.flips) > 1:  # so that the cells of a mirrored view are those of the image
            image = pad_far(image, (stride,) * (image.ndim - 2))
        logits: Tensor | None = None
        mean = square = None
        for number, (member, weight) in enumerate(self.members):
            engines = predictor._engines[member]
            for n, axes in enumerate(self.flips):
                coming = (self.windows - self._seen) * len(self.flips) - n * len(windows)
                view = torch.flip(image, axes) if axes else image
                found, embedding = engines.run(view, coming=coming, plain=self.plain)
                if embedding is not None and not axes:
                    total = embedding.cpu().numpy().sum(axis=0, dtype=np.float64)
                    self._sums[number] = self._sums[number] + total if len(self._sums[number]) else total
                found = unmirror(found, axes, predictor.task.head)
                share = weight / len(self.flips)
                if self.doubts:
                    p = torch.softmax(found, dim=1) if self.exclusive else torch.sigmoid(found)
                    mean = p * share if mean is None else mean.add_(p, alpha=share)
                    square = p.square_().mul_(share) if square is None else square.add_(p.square_(), alpha=share)
                logits = found.mul(share) if logits is None else logits.add_(found, alpha=share)
        self._seen += len(windows)
        assert logits is not None
        doubt = None
        if mean is not None and square is not None:
            spread = (square - mean.square_()).clamp_(min=0)
            doubt = (spread.sum(dim=1) if self.exclusive else 2 * spread.amax(dim=1)).sqrt_().cpu().numpy()
        return logits.cpu().numpy(), doubt

    def embeddings(self) -> list[Floats]:
        """By member, the mean (F,) over all windows that were answered."""
        return [(total / max(self._seen, 1)).astype(np.float32) for total in self._sums]


def unmirror(found: Tensor, axes: tuple[int, ...], head: Head) -> Tensor:
    """A map (N, outputs, *map) of an image that was mirrored along dimensions of the batch, as that of the image itself."""
    for axis in axes:
        if head.mirror:
            found = found[:, list(head.mirror[axis - 2])]
    return torch.flip(found, axes) if axes else found


def found_classes(finding: Finding, scheme: LabelScheme) -> tuple[str, ...]:
    """Structures with a voxel at least, or classes of which a box was chosen."""
    if isinstance(finding, Mask):
        return present(finding.segmentation)
    if isinstance(finding, Detections):
        chosen = set(finding.boxes.classes[finding.chosen].tolist())
        return tuple(name for n, name in enumerate(scheme.classes) if n in chosen)
    return ()


def present(segmentation: Segmentation) -> tuple[str, ...]:
    """Names of the structures that have a voxel at least."""
    seen: list[set[int]] = []
    for layer in segmentation.layers:
        values: set[int] = set()
        for plane in layer.transpose(2, 1, 0):
            values.update(np.flatnonzero(np.bincount(plane.reshape(-1))).tolist())
        seen.append(values)
    return tuple(s.name for s in segmentation.structures if seen[s.layer].intersection(s.values))


def place_uncertainty(finding: Finding) -> float:
    """One minus the mean expected Dice of a mask; nan where no structure has one, and for boxes."""
    if not isinstance(finding, Mask):
        return float("nan")
    expected = [value for value in finding.expected_dice.values() if np.isfinite(value)]
    return 1 - float(np.mean(expected)) if expected else float("nan")
