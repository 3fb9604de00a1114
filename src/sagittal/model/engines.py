"""Engines: ways to run a trained network on this machine, each taken only if its answer is that of torch.

An engine that is faster and slightly wrong is a different model. So torch's float32 answer is the measure: another engine is
used where it gives the same numbers on noise and on a part of the study, to a thousandth, and where enough windows are to
come for its conversion to pay. Narrower numbers (bfloat16) never pass that; they are used only where asked for by name.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sagittal.errors import ConfigError, nearest, require
from sagittal.networks.heads import pool

_log = logging.getLogger(__name__)

#: Largest difference of an answer from torch's, relative to torch's largest logit (1 at least).
TOLERANCE = 1e-3
#: Seconds that converting and checking take beside the windows that are computed for it, and how many those are.
CONVERSION_S = 15.0
CHECKED_WINDOWS = 12
#: An engine must take less than this part of torch's time.
FASTER = 0.9
#: What takes less than this part of torch's time ends the search: exporting for one more engine takes longest.
ENOUGH = 0.8
#: Seconds after which no further candidate is tried.
PROBE_S = 60.0
#: How often a run is timed at most, and seconds after which it is not timed again.
_TIMES, _SHORT_S = 5, 0.2
#: Up to this many voxels torch may compute a lone volume faster twice at once.
LONE_VOXELS = 96**3


class Parts(nn.Module):
    """A network's answer and, where it has an encoder, its embedding, from one pass.

    The embedding is the mean of the encoder's last map, as ``network.embed`` gives it.
    """

    def __init__(self, network: nn.Module, *, embed: bool = True) -> None:
        super().__init__()
        self.network = network
        self.embeds = embed and isinstance(getattr(network, "encoder", None), nn.Module)
        self._seen = threading.local()
        if self.embeds:
            self._hook = network.encoder.register_forward_hook(self._keep)  # type: ignore[union-attr]

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._seen.maps = output[-1] if isinstance(output, (list, tuple)) else output

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, outputs, *map), and embeddings (N, F) where the network gives them."""
        logits = self.network(image)
        return (logits, pool(self._seen.maps)) if self.embeds else (logits,)

    def close(self) -> None:
        """Take the hook off the network."""
        if self.embeds:
            self._hook.remove()


class Engine(Protocol):
    """One way to run one network; safe to use from several threads."""

    @property
    def name(self) -> str:
        """A key of :data:`ENGINES`."""
        ...

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (N, outputs, *map) and embeddings (N, F) of images (N, C, *size), all float32."""
        ...


class TorchEngine:
    """torch as it is, in float32 or, where asked for, in bfloat16."""

    def __init__(self, parts: Parts, device: torch.device, *, bf16: bool = False) -> None:
        self.parts, self.device, self.bf16 = parts, device, bf16
        self.name = "torch-bf16" if bf16 else "torch"
        self._copies: dict[int, int] = {}

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and embeddings, on the engine's device."""
        images = images.to(self.device)
        if images.ndim == 4:  # pictures with channels last are 1.5 to 2 times as fast on a CPU; volumes are not
            images = images.contiguous(memory_format=torch.channels_last)
        copies = self._lone(images)
        if copies > 1:
            logits, embedding = self._run(images.expand(copies, *images.shape[1:]))
            return logits[:1], None if embedding is None else embedding[:1]
        return self._run(images)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits, *rest = self.parts(images)
        return logits.float(), rest[0].float() if rest else None

    def _lone(self, images: Tensor) -> int:
        """How often to compute a lone small volume at once: torch has no fast path for some convolutions of one.

        Tried once for all sizes between two powers of two.
        """
        voxels = images[0, 0].numel()
        if images.ndim < 5 or len(images) > 1 or self.device.type != "cpu" or voxels > LONE_VOXELS:
            return 1
        octave = voxels.bit_length()
        if octave not in self._copies:
            seconds = {}
            for count in (1, 2, 1):  # the first is a warm-up
                start = time.perf_counter()
                self._run(images.expand(count, *images.shape[1:]))
                seconds[count] = time.perf_counter() - start
            self._copies[octave] = min(seconds, key=lambda count: seconds[count])
        return self._copies[octave]

    def warm_up(self, images: Tensor) -> None:
        """Try whatever is tried once, so that the next run takes its usual time."""
        self._lone(images)


class OpenVinoEngine:
    """OpenVINO on the CPU, compiled for one size of window."""

    def __init__(self, parts: Parts, images: Tensor, *, bf16: bool = False) -> None:
        openvino = import_openvino()
        self.name = "openvino-bf16" if bf16 else "openvino"
        example = images[:1].cpu()
        with _silence(), torch.no_grad():
            traced = torch.jit.trace(parts, example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
            model = openvino.convert_model(traced, example_input=example)
        model.reshape(list(example.shape))
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # without it, bf16 where the processor has it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and embeddings, one window after the other."""
        found = []
        for image in _singly(images):
            with self._lock:
                results = self._request.infer([image.numpy()])
                found.append([torch.from_numpy(results[n].copy()) for n in range(len(results))])
        return _joined(found)


class OnnxEngine:
    """ONNX Runtime on the CPU, exported for one size of window."""

    name = "onnxruntime"

    def __init__(self, parts: Parts, images: Tensor) -> None:
        runtime = require("onnxruntime", feature="the engine 'onnxruntime'", extra="engines")
        require("onnxscript", feature="the engine 'onnxruntime'", extra="engines")
        with _silence():
            program = torch.onnx.export(parts, (images[:1].cpu(),), dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("torch exported nothing")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        model = program.model_proto.SerializeToString()
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and embeddings, one window after the other."""
        found = [self._session.run(None, {self._input: window.numpy()}) for window in _singly(images)]
        return _joined([[torch.from_numpy(part) for part in parts] for parts in found])


def _singly(images: Tensor) -> list[Tensor]:
    return [images[n : n + 1].cpu().contiguous() for n in range(len(images))]


def _joined(found: list[list[Tensor]]) -> tuple[Tensor, Tensor | None]:
    logits, *rest = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, rest[0] if rest else None


def import_openvino() -> Any:
    """OpenVINO without its telemetry, which sends from the moment of import unless it is not to be found.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return require("openvino", feature="the engine 'openvino'", extra="engines")


@contextmanager
def _silence() -> Iterator[None]:
    """Converters warn of their own parts that are going to change; nothing there is the user's to mend."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            exporter.setLevel(level)


Candidate = Callable[["Parts", Tensor], Engine]


def installed() -> dict[str, Candidate]:
    """Engines of :data:`SAME_ANSWER` whose package is there."""
    return {name: make for name, (make, package) in SAME_ANSWER.items() if importlib.util.find_spec(package)}


def _torch_bf16(parts: Parts, images: Tensor) -> Engine:
    return TorchEngine(parts, images.device, bf16=True)


def _openvino_bf16(parts: Parts, images: Tensor) -> Engine:
    return OpenVinoEngine(parts, images, bf16=True)


#: Engines whose answer must be torch's, in the order in which they are tried, and the package each needs.
SAME_ANSWER: Mapping[str, tuple[Candidate, str]] = {
    "openvino": (OpenVinoEngine, "openvino"),
    "onnxruntime": (OnnxEngine, "onnxruntime"),
}
#: Engines that answer in narrower numbers, for those who ask for them by name.
NARROWER: Mapping[str, Candidate] = {"torch-bf16": _torch_bf16, "openvino-bf16": _openvino_bf16}
#: Every name that may be asked for.
ENGINES = ("auto", "torch", *SAME_ANSWER, *NARROWER)


@dataclass(frozen=True)
class Choice:
    """Which engine runs a network on windows of one size, and why.

    Parameters
    ----------
    name : str
    ms : mapping of str to float
        Milliseconds a window, of those that were tried and gave torch's answer.
    difference : mapping of str to float
        Largest difference from torch's answer, relative to its largest logit (1 at least).
    refused : mapping of str to str
        Why others are not used.
    """

    name: str
    ms: Mapping[str, float] = field(default_factory=dict)
    difference: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def choose_engine(
    reference: TorchEngine,
    images: Tensor,
    *,
    candidates: Mapping[str, Candidate],
    limit_s: float = PROBE_S,
    enough: float = 0.0,
    asked: bool = False,
    narrower: bool = False,
    together: int = 1,
) -> tuple[Engine, Choice]:
    """The fastest of the engines that give torch's answer.

    Each candidate answers noise and the first of `images`; one that fails, differs or is slower is refused with the reason.

    Parameters
    ----------
    reference : TorchEngine
    images : (N, C, *size) float32
        A part of a study.
    candidates : mapping of str to callable (parts, images) -> Engine
    limit_s : float
        No candidate is begun after so many seconds; the first always is.
    enough : float
        No candidate is begun after one that takes less than this part of torch's time.
    asked : bool
        Whether a candidate is taken whatever its time.
    narrower : bool
        Whether it is taken whatever its difference, which is only told.
    together : int
        Images that are timed at once, as they will come.
    """
    began = time.perf_counter()
    several = torch.randn((together, *images.shape[1:]), generator=torch.Generator().manual_seed(0)).to(images.device)
    noise = several[:1]
    probes = (noise, images[:1])
    answers = [reference.run(probe) for probe in probes]
    torch_ms = _ms(reference, several)
    best: Engine = reference
    ms, difference, refused = {reference.name: torch_ms}, {reference.name: 0.0}, {}
    for number, (name, make) in enumerate(candidates.items()):
        if number and time.perf_counter() - began > limit_s:
            refused[name] = f"not tried: {limit_s:g} s were over"
            continue
        if ms[best.name] < enough * torch_ms:
            refused[name] = f"not tried: {best.name} is fast enough"
            continue
        try:
            engine = make(reference.parts, images)
            found = [engine.run(probe) for probe in probes]
            took = _ms(engine, several)
        except Exception as error:  # whatever a converter cannot do, torch does
            _log.debug("engine %s failed", name, exc_info=True)
            refused[name] = f"cannot run this network ({type(error).__name__})"
            continue
        each = [distance(one, other) for one, other in zip(found, answers, strict=True)]
        apart = math.nan if any(map(math.isnan, each)) else max(each)
        difference[name] = apart
        if not narrower and not apart <= TOLERANCE:
            refused[name] = f"differs from torch by {apart:.1e} of the largest logit; at most {TOLERANCE:g} is accepted"
            continue
        ms[name] = took
        if asked or took < min(FASTER * torch_ms, ms[best.name]):
            best = engine
        else:
            refused[name] = f"takes {took:.0f} ms a window, {best.name} takes {ms[best.name]:.0f}"
    return best, Choice(best.name, ms, difference, refused)


def _ms(engine: Engine, images: Tensor) -> float:
    """Milliseconds an image; of short runs the shortest of some, because others use the machine too."""
    best, spent = math.inf, 0.0
    for _ in range(_TIMES):
        start = time.perf_counter()
        engine.run(images)
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
        if spent > _SHORT_S:
            break
    return 1000 * best / len(images)


def distance(found: tuple[Tensor, Tensor | None], answer: tuple[Tensor, Tensor | None]) -> float:
    """Largest difference of logits and embeddings, relative to the largest number of each (1 at least); nan if any is."""
    apart = [0.0]
    for one, other in zip(found, answer, strict=True):
        if one is None or other is None:
            apart.append(0.0 if one is other else math.nan)
        elif one.shape != other.shape:
            apart.append(math.nan)
        else:
            apart.append(float((one.cpu() - other.cpu()).abs().max()) / max(1.0, float(other.abs().max())))
    return math.nan if any(map(math.isnan, apart)) else max(apart)


class Engines:
    """Runs one network on this machine, by torch until another engine is worth its conversion.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode, on `device`.
    device : torch.device
    name : str
        One of :data:`ENGINES`. ``auto``: torch, and on a CPU the fastest of the installed engines that give its answer, for
        sizes of which enough windows come.

    Raises
    ------
    ConfigError
        If there is no engine of that name, or not for the device.
    MissingPackageError
        If its package is not installed.
    """

    def __init__(self, network: nn.Module, device: torch.device, name: str = "auto") -> None:
        if name not in ENGINES:
            raise ConfigError(f"there is no engine '{name}'. {nearest(name, ENGINES)}")
        if device.type != "cpu" and name not in {"auto", "torch", "torch-bf16"}:
            raise ConfigError(
                f"the engine '{name}' runs on the CPU, not on {device}. Use --device cpu, or engine 'torch'."
            )
        if name.startswith("openvino"):
            import_openvino()
        elif name == "onnxruntime":
            require("onnxruntime", feature="the engine 'onnxruntime'", extra="engines")
        self.name, self.device = name, device
        self.choices: dict[tuple[int, ...], Choice] = {}
        self.parts = Parts(network)
        self._torch = TorchEngine(self.parts, device)
        self._made: dict[tuple[int, ...], Engine] = {}
        self._spent: dict[tuple[int, ...], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def run(self, images: Tensor, *, coming: int = 1, plain: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits (N, outputs, *map) and embeddings (N, F) of images (N, C, *size), float32.

        Parameters
        ----------
        images : Tensor
        coming : int
            Images of this size that are known to come, these included.
        plain : bool
            Whether torch is taken whatever else there is, as where memory is short.
        """
        key = tuple(images.shape[1:])
        if not plain and self.name != "torch":
            engine = self._pick(key, images, coming)
            if engine is not None:
                try:
                    return engine.run(images)
                except Exception as error:
                    _log.warning("engine %s failed (%s): going on with torch", engine.name, type(error).__name__)
                    with self._lock:
                        self._made[key] = self._torch
        self._torch.warm_up(images)
        start = time.perf_counter()
        answer = self._torch.run(images)
        if self.device.type == "cpu":
            seconds, count = self._spent.get(key, (0.0, 0))
            self._spent[key] = (seconds + time.perf_counter() - start, count + len(images))
        return answer

    def _pick(self, key: tuple[int, ...], images: Tensor, coming: int) -> Engine | None:
        with self._lock:
            if key not in self._made:
                chosen = self._choose(key, images, coming)
                if chosen is None:
                    return None
                self._made[key], self.choices[key] = chosen
                _log.info("windows of %s: %s", key, self.choices[key])
            engine = self._made[key]
        return None if engine is self._torch else engine

    def _choose(self, key: tuple[int, ...], images: Tensor, coming: int) -> tuple[Engine, Choice] | None:
        """The engine for a size; ``None`` while it does not pay to look for one."""
        if self.name in NARROWER:
            return choose_engine(
                self._torch, images, candidates={self.name: NARROWER[self.name]}, asked=True, narrower=True
            )
        if self.name in SAME_ANSWER:
            chosen, choice = choose_engine(
                self._torch, images, candidates={self.name: SAME_ANSWER[self.name][0]}, asked=True
            )
            if chosen is self._torch:
                _log.warning("engine %s is not used: %s", self.name, choice.refused.get(self.name))
            return chosen, choice
        if self.device.type != "cpu":
            return self._torch, Choice("torch")
        seconds, count = self._spent.get(key, (0.0, 0))
        if not count:
            return None
        each = seconds / count
        if seconds + each * coming < CONVERSION_S + CHECKED_WINDOWS * each:
            return None
        there = installed()
        if not there:
            return self._torch, Choice("torch", {"torch": 1000 * each}, refused={"others": "none is installed"})
        return choose_engine(self._torch, images, candidates=there, enough=ENOUGH)
