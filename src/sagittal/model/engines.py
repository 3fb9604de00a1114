"""Engines: ways to run a trained network on this machine, each taken only if its answer is that of torch.

An engine that is faster and slightly wrong is a different model. So torch's float32 answer is the measure: another engine
is used where it gives the same numbers on noise and on a part of the study, to a thousandth, and takes less time, conversion
included. Narrower numbers (bfloat16) never pass that and are never tried unless they are asked for by name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sagittal.networks.heads import pool

_log = logging.getLogger(__name__)

#: Largest difference of an answer from torch's, relative to the largest logit (1 at least).
TOLERANCE = 1e-3
#: Seconds of work below which nothing but torch is tried: converting a network takes a few.
WORTH_S = 15.0
#: Seconds after which no further candidate is tried.
PROBE_S = 60.0
#: Up to this many voxels torch may compute a lone volume faster twice at once.
LONE_VOXELS = 96**3

Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]


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
        self._copies: dict[tuple[int, ...], int] = {}

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
        """How often to compute a lone small volume at once: torch has no fast path for some convolutions of one."""
        if images.ndim < 5 or len(images) > 1 or self.device.type != "cpu" or images[0, 0].numel() > LONE_VOXELS:
            return 1
        shape = tuple(images.shape)
        if shape not in self._copies:
            seconds = {}
            for count in (2, 1):
                start = time.perf_counter()
                self._run(images.expand(count, *shape[1:]))
                seconds[count] = time.perf_counter() - start
            self._copies[shape] = min(seconds, key=lambda count: seconds[count])
        return self._copies[shape]


class Engines:
    """The engines of one network on this machine: picked once a shape, and remembered."""

    def __init__(self, network: nn.Module, device: torch.device, name: str = "auto") -> None:
        self.network, self.device, self.name = network, device, name
        self._torch = TorchEngine(Parts(network), device)

    def pick(self, images: Tensor, windows: int) -> Engine:
        """The engine for images of this shape."""
        return self._torch
