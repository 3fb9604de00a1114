"""Predictor: from cases to predictions, with the preprocessing of training, in batches of bounded memory."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, ResourceError, SagittalError, ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.model.calibrate import Calibration, to_probabilities
from sagittal.model.conformal import Conformal
from sagittal.model.engines import ENOUGH, Choice, Engine, Parts, TorchEngine, choose_engine, installed
from sagittal.model.gate import Gate, check_scope
from sagittal.model.operating import OperatingPoint
from sagittal.networks.heads import Network, pool
from sagittal.prediction import Failure, Prediction, Verdict
from sagittal.prepare.arrays import Prepared, planned_images, prepare_case, to_input
from sagittal.prepare.plan import Plan
from sagittal.progress import Quiet, Reporter
from sagittal.tasks.task import Task
from sagittal.types import Array, Floats

_log = logging.getLogger(__name__)

#: Numbers of the network's input in one batch, where the caller states no batch: 32 MB of float32.
BATCH_NUMBERS = 8_000_000
MAX_BATCH = 256
#: Up to this many voxels it is tried whether a lone volume is faster computed twice at once.
LONE_VOLUME = 96**3
#: A network that answers within so many milliseconds is not converted: what is around it takes longer.
QUICK_MS = 2.0
#: Images that are timed together, and seconds after which no further engine is tried, where engines are compared.
_TIMED, _COMPARE_S = 4, 3.0


@dataclass(frozen=True, eq=False)
class Predictor:
    """Everything between a case and its prediction. Safe to use from several threads.

    Parameters
    ----------
    plan : Plan
    task : Task
    members : tuple of Network
        In eval mode, on `device`. Their logits are averaged, which is the geometric mean of their odds; calibration
        follows the averaging (Rahaman and Thiery, NeurIPS 2021).
    weights : tuple of float, one a member
        Of that average, sum 1.
    calibration, point, conformal, gate
        Fitted on validation cases; the last two may be missing.
    label : str
        Written into each prediction.
    device : torch.device
    """

    plan: Plan
    task: Task
    members: tuple[Network, ...]
    weights: tuple[float, ...]
    calibration: Calibration
    point: OperatingPoint
    conformal: Conformal | None
    gate: Gate | None
    label: str
    device: torch.device
    _learned: dict[str, float] = field(default_factory=dict, repr=False)
    _engines: dict[int, Engine] = field(default_factory=dict, repr=False)

    def speed_up(self) -> tuple[Choice, ...]:
        """Look for the fastest engine of each network, for someone who will ask for long, as a service does.

        An engine is taken only where its feature maps are those of torch; see :mod:`sagittal.model.engines`. What the
        networks have answered before stays as it is.

        Returns
        -------
        tuple of Choice, one a network
        """
        if self.device.type != "cpu":
            return tuple(Choice("torch") for _ in self.members)
        shape = (_TIMED, self.plan.input.channels, *self.plan.prepare.size)
        with torch.inference_mode():
            images = self._to_device(np.zeros(shape, dtype=self.plan.prepare.store))
        return tuple(self._speed_up(n, images) for n in range(len(self.members)))

    def _speed_up(self, number: int, images: Tensor) -> Choice:
        self._engines.pop(number, None)
        reference = TorchEngine(Parts(self.members[number].encoder, embed=False), self.device)
        reference.run(images)
        start = time.perf_counter()
        reference.run(images)
        each_ms = 1000 * (time.perf_counter() - start) / len(images)
        if each_ms < QUICK_MS:
            return Choice("torch", {"torch": each_ms}, refused={"others": "not tried: torch is quick enough"})
        engine, choice = choose_engine(
            reference, images, candidates=installed(), limit_s=_COMPARE_S, enough=ENOUGH, together=len(images)
        )
        if engine is not reference:
            self._engines[number] = engine
        _log.info("network %d: %s", number, choice)
        return choice

    def logits(self, arrays: Array, tables: Array | None = None, *, batch: int | None = None) -> Floats:
        """Mean logits of the members before calibration, (N, outputs) float64.

        Parameters
        ----------
        arrays : (N, C, *size)
            Prepared arrays in the plan's store type.
        tables : (N, T) float32, optional
            Encoded clinical columns, for a plan that has them.
        batch : int, optional

        Raises
        ------
        ResourceError
            If memory does not even hold one case.
        """
        return self._forward(arrays, tables, batch=batch, embed=False)[0]  # (N, outputs)

    def embed(self, member: int, arrays: Array, *, batch: int | None = None) -> Floats:
        """Pooled features (N, F) float32 of prepared arrays by one member, before its head."""
        size = self._batch(batch)
        with torch.inference_mode():
            parts = [
                self.members[member].embed(self._to_device(arrays[start : start + size])).cpu().numpy()
                for start in range(0, len(arrays), size)
            ]
        return np.concatenate(parts)

    def predict(self, case: Case) -> Prediction:
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
        start = time.perf_counter()
        read = self._read(case)
        logits, embeddings = self._forward(read.prepared.array[None], read.prepared.table[None], batch=1)
        forward_s = time.perf_counter() - start - read.seconds
        answer = self._decide([read], logits, embeddings, forward_s)[0]
        if isinstance(answer, Failure):
            raise ScopeError(answer.error)
        return answer

    def predict_many(
        self,
        cases: Iterable[Case],
        *,
        batch: int | None = None,
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of the cases; a case that fails gives a :class:`Failure` and the rest go on.

        Reading runs in threads ahead of the network, at most two batches ahead, so that memory stays bounded however
        many cases come.

        Parameters
        ----------
        cases : iterable of Case
        batch : int, optional
            Cases at a time; by default as many as fill 32 MB.
        workers : int, optional
            Reading threads; by default one a core, at most 8.
        reporter : Reporter, optional
        """
        size = self._batch(batch)
        threads = workers or min(8, max(1, os.cpu_count() or 1))
        total = len(cases) if isinstance(cases, Sized) else None
        waiting: deque[list[Future[list[_Read | Failure]]]] = deque()
        with (
            ThreadPoolExecutor(threads, thread_name_prefix="sagittal-read") as pool,
            (reporter or Quiet()).track("predict", total) as advance,
        ):
            try:
                for group in _batched(cases, size):
                    share = -(-len(group) // (2 * threads))  # cases at a time: a task for each would cost more than it
                    waiting.append([pool.submit(self._read_all, part) for part in _batched(group, share)])
                    if len(waiting) > 2:
                        yield from self._finish(waiting.popleft(), advance)
                while waiting:
                    yield from self._finish(waiting.popleft(), advance)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def predict_together(self, cases: Sequence[Case]) -> list[Prediction | Failure]:
        """Predictions of a few cases as one batch, read in this thread: for someone who waits.

        A case that fails gives a :class:`Failure` and the rest go on.
        """
        results = self._read_all(cases)
        answers = iter(self._answer([r for r in results if isinstance(r, _Read)]))
        return [next(answers) if isinstance(result, _Read) else result for result in results]

    # One case

    def _read(self, case: Case) -> _Read:
        start = time.perf_counter()
        prepared = prepare_case(hold(case, self.plan), self.plan)
        return _Read(case, prepared, time.perf_counter() - start)

    def _read_all(self, cases: Sequence[Case]) -> list[_Read | Failure]:
        results: list[_Read | Failure] = []
        for case in cases:
            try:
                results.append(self._read(case))
            except Exception as error:  # one bad study never stops the rest
                results.append(to_failure(case.id, error))
        return results

    def _finish(
        self, parts: Sequence[Future[list[_Read | Failure]]], advance: Callable[[float, str], None]
    ) -> Iterator[Prediction | Failure]:
        results = [result for part in parts for result in part.result()]
        answers = iter(self._answer([r for r in results if isinstance(r, _Read)]))
        for result in results:
            yield next(answers) if isinstance(result, _Read) else result
        advance(len(results), "")

    def _answer(self, reads: Sequence[_Read]) -> Sequence[Prediction | Failure]:
        """Answers to cases that could be read; if they fail together, each is tried alone."""
        if not reads:
            return []
        start = time.perf_counter()
        try:
            arrays = np.stack([r.prepared.array for r in reads])
            tables = np.stack([r.prepared.table for r in reads])
            logits, embeddings = self._forward(arrays, tables, batch=len(reads))
            return self._decide(reads, logits, embeddings, (time.perf_counter() - start) / len(reads))
        except Exception as error:
            if len(reads) == 1:
                return [to_failure(reads[0].case.id, error)]
            return [answer for read in reads for answer in self._answer([read])]

    def _decide(
        self, reads: Sequence[_Read], logits: Floats, embeddings: Sequence[Floats], forward_s: float
    ) -> list[Prediction | Failure]:
        """Predictions from the logits (N, C) and each network's embeddings (N, F) of cases."""
        verdicts: Sequence[Verdict] = ()
        if self.gate is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # an answer that is not finite is refused below
                verdicts = self.gate.judge(embeddings)
        return self.decide(
            [read.case.id for read in reads],
            logits,
            [read.prepared.grid for read in reads],
            verdicts=verdicts,
            seconds=[read.seconds + forward_s for read in reads],
        )

    def decide(
        self,
        ids: Sequence[str],
        logits: Floats,
        grids: Sequence[Grid],
        *,
        verdicts: Sequence[Verdict] = (),
        seconds: Sequence[float] = (),
    ) -> list[Prediction | Failure]:
        """What uncalibrated logits of cases mean: calibrated, decided, with conformal sets.

        Parameters
        ----------
        ids : sequence of str
        logits : (N, outputs) float
        grids : sequence of Grid
            Of the studies.
        verdicts : sequence of Verdict, optional
            What the gate said of each.
        seconds : sequence of float, optional
            Wall time of each.
        """
        scheme = self.plan.scheme
        with np.errstate(invalid="ignore", over="ignore"):  # an answer that is not finite is refused below
            calibrated = self.calibration.apply(logits)  # (N, C)
            held = self.point.holds(to_probabilities(calibrated, self.calibration.link), scheme)  # (N, C)
            sets = None if self.conformal is None else self.conformal.contains(logits, scheme, also=held)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        answers: list[Prediction | Failure] = []
        for n, case in enumerate(ids):
            if not np.all(np.isfinite(logits[n])):
                what = "the network's answer is not finite; the study's values are far from those of the training cases"
                answers.append(Failure(case, f"case {case}: {what}", ScopeError.__name__))
                continue
            finding = self.task.decode(calibrated[n], grids[n])
            verdict = verdicts[n] if verdicts else Verdict()
            abstains = self.gate is not None and self.gate.abstains and not verdict.accepted
            answers.append(
                Prediction(
                    case=case,
                    scheme=scheme,
                    finding=finding,
                    decision=() if abstains else tuple(itertools.compress(scheme.classes, held[n])),
                    logits=logits[n],
                    conformal=() if sets is None else tuple(itertools.compress(scheme.classes, sets[n])),
                    uncertainty=uncertainty(finding.values, exclusive=scheme.exclusive),
                    verdict=verdict,
                    model=self.label,
                    made_at=now,
                    seconds=seconds[n] if seconds else float("nan"),
                )
            )
        return answers

    # The networks

    def _batch(self, asked: int | None) -> int:
        if asked is not None:
            if asked < 1:
                raise ConfigError(f"batch must be 1 or more, not {asked}")
            return asked
        numbers = self.plan.input.channels * int(np.prod(self.plan.prepare.size))
        return int(np.clip(BATCH_NUMBERS // numbers, 1, MAX_BATCH))

    def _forward(
        self, arrays: Array, tables: Array | None, *, batch: int | None = None, embed: bool = True
    ) -> tuple[Floats, list[Floats]]:
        """Mean logits (N, outputs) and, where the gate needs them, the embeddings (N, F) of each member."""
        size = min(self._batch(batch), max(len(arrays), 1))
        if tables is not None and tables.shape[-1] == 0:
            tables = None
        embed = embed and self.gate is not None
        logits: list[Floats] = []
        embeddings: list[list[Floats]] = []
        start = 0
        while start < len(arrays):
            stop = start + size
            try:
                mean, features = self._step(arrays[start:stop], None if tables is None else tables[start:stop], embed)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if size == 1:
                    raise ResourceError(
                        f"memory does not hold one case of size {arrays.shape[1:]} on {self.device}. "
                        "Close other programs, or predict on another device."
                    ) from error
                size = max(1, size // 2)
                _log.info("out of memory: going on with batches of %d", size)
                continue
            logits.append(mean)
            embeddings.append(features)
            start = stop
        if not logits:
            return np.zeros((0, self.task.head.outputs)), []
        return np.concatenate(logits), [np.concatenate(parts) for parts in zip(*embeddings, strict=True)]

    def _step(self, arrays: Array, tables: Array | None, embed: bool) -> tuple[Floats, list[Floats]]:
        with torch.inference_mode():
            image = self._to_device(arrays)
            table = None
            if tables is not None:
                table = torch.from_numpy(np.ascontiguousarray(tables, np.float32)).to(self.device)
            lone = image.ndim == 5 and len(image) == 1 and image.device.type == "cpu" and not self._engines
            if lone and image[0, 0].numel() <= LONE_VOLUME:
                return self._run_lone(image, table, embed)
            return self._run(image, table, embed)

    def _run_lone(self, image: Tensor, table: Tensor | None, embed: bool) -> tuple[Floats, list[Floats]]:
        """One volume, computed twice at once where that was the faster way with the first one.

        torch has no fast path for some 3-D convolutions of a single volume on a CPU: measured on two cores, twice at once
        takes a third to nearly twice the time, depending on the network.
        """
        copies = int(self._learned.get("copies", 0))
        for count in (copies,) if copies else (2, 1):
            start = time.perf_counter()
            images = image.expand(count, *image.shape[1:])
            logits, features = self._run(images, None if table is None else table.expand(count, -1), embed)
            self._learned[f"seconds {count}"] = time.perf_counter() - start
        if not copies:
            self._learned["copies"] = 2 if self._learned["seconds 2"] < self._learned["seconds 1"] else 1
        return logits[:1], [f[:1] for f in features]

    def _run(self, image: Tensor, table: Tensor | None, embed: bool) -> tuple[Floats, list[Floats]]:
        flips = flip_sets(self.plan.decide.flips)
        total: Tensor | None = None
        features: list[Floats] = []
        for number, (member, weight) in enumerate(zip(self.members, self.weights, strict=True)):
            for axes in flips:
                maps = self.feature_map(number, torch.flip(image, axes) if axes else image)
                answer = member.classify_features(maps, table).double() * (weight / len(flips))
                total = answer if total is None else total + answer
                if embed and not axes:
                    features.append(pool(maps).cpu().numpy())
        if total is None:
            raise ConfigError("a model needs at least one network")
        return total.cpu().numpy(), features

    def feature_map(self, number: int, image: Tensor) -> Tensor:
        """The last feature map (N, F, *map) of one member, without gradients, by the engine that was found for it.

        Parameters
        ----------
        number : int
            Of the member, from 0.
        image : (N, C, *size) float32 Tensor
            The network's input.
        """
        engine = self._engines.get(number)
        if engine is not None:
            try:
                return engine.run(image)[0]
            except Exception as error:
                _log.warning("engine %s failed (%s): going on with torch", engine.name, type(error).__name__)
                self._engines.pop(number, None)
        return self.members[number].feature_map(image)

    def _to_device(self, arrays: Array) -> Tensor:
        stored = torch.from_numpy(np.ascontiguousarray(arrays)).to(self.device)
        image = to_input(stored, self.plan.prepare)
        # Pictures with channels last are 1.5 to 2 times as fast on a CPU (28 px, measured); volumes are not.
        return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image


@dataclass(frozen=True, eq=False)
class _Read:
    """A case that could be read and prepared."""

    case: Case
    prepared: Prepared
    seconds: float


def flip_sets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every combination of mirrored array axes, as dimensions of a batch (N, C, *size); the first mirrors none.

    >>> flip_sets((0, 1))
    [(), (2,), (3,), (2, 3)]
    """
    dims = [axis + 2 for axis in axes]
    return [some for count in range(len(dims) + 1) for some in itertools.combinations(dims, count)]


def uncertainty(probabilities: Floats, *, exclusive: bool) -> float:
    """Entropy divided by its maximum, 0 (sure) to 1; of several labels the mean of theirs.

    >>> uncertainty(np.array([0.5, 0.5]), exclusive=True)
    1.0
    """
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 0, 1)
    parts = -p * np.log(np.maximum(p, 1e-300))
    if exclusive:
        return float(np.clip(np.sum(parts) / np.log(len(p)), 0, 1))
    parts += -(1 - p) * np.log(np.maximum(1 - p, 1e-300))
    return float(np.clip(np.mean(parts) / np.log(2), 0, 1))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def hold(case: Case, plan: Plan) -> Case:
    """The case with the plan's images in memory, each read once and found to be of the kind that the plan is for.

    Raises
    ------
    ReadError, GeometryError
        As the reader says.
    DataError
        If an image is missing.
    ScopeError
        If one is of another modality or unit.
    """
    images = dict(zip(plan.input.images, planned_images(case, plan.input), strict=True))
    for image in images.values():
        check_scope(image, plan, case.id)
    return replace(case, images={name: ImageSource(partial(_held, image)) for name, image in images.items()})


def _held(image: Image) -> Image:
    return image


def _batched(cases: Iterable[Case], size: int) -> Iterator[tuple[Case, ...]]:
    iterator = iter(cases)
    while group := tuple(itertools.islice(iterator, size)):
        yield group


def to_failure(case: str, error: Exception) -> Failure:
    """What went wrong, without words that may name a patient: only our own messages are passed on."""
    if isinstance(error, SagittalError):
        return Failure(case, str(error), type(error).__name__)
    if out_of_memory(error):
        return Failure(case, f"case {case}: memory does not hold the study", ResourceError.__name__)
    _log.error("case %s: %s while predicting", case, type(error).__name__)
    kind = type(error).__name__
    return Failure(case, f"case {case}: an unexpected {kind} stopped its prediction. Please report it as a bug.", kind)
