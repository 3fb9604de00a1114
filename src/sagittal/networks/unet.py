"""Residual-encoder U-Net: from an image or a volume to a map that says something of every voxel.

The encoder is that of nnU-Net's residual presets in idea [1]_: residual blocks in every stage, strides and kernels of each
axis as the voxels ask for, and a light decoder. Why it is not a library's, and what was measured, is in decision 11.

References
----------
.. [1] Isensee et al., "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation", MICCAI 2024.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sagittal.errors import ConfigError, DataError, nearest
from sagittal.networks.lite import EfficientNetLite0
from sagittal.networks.pretrained import load_pretrained, tune
from sagittal.prepare.plan import NetworkPlan

Numbers = tuple[int, ...]

#: Families of networks that answer for each voxel.
UNETS = ("unet", "unet-lite0")
#: At most so many maps coarser than the finest learn the target too; the coarsest of all never does.
SUPERVISED = 3
#: By how much the voxels of an unfolded block begin with the same weights: 0 not at all, 1 entirely.
ALIKE = 0.5


class PyramidEncoder(nn.Module, ABC):
    """What a decoder asks of an encoder: one feature map a stage, the finest first.

    Attributes
    ----------
    features : int
        Channels of the last map.
    widths : tuple of int
        Channels of each map.
    strides : tuple of tuple of int
        By how much each map is smaller along each axis than the one before, the first than the image.
    """

    features: int
    widths: Numbers
    strides: tuple[Numbers, ...]

    @abstractmethod
    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of an image whose size is a multiple of all strides together."""


class ResidualEncoder(PyramidEncoder):
    """Residual blocks in every stage.

    A stem that strides folds blocks of voxels into channels instead of skipping them: nothing is lost, and no convolution
    runs at full resolution, where most of the time of a U-Net goes.

    Parameters
    ----------
    channels : int
        Of the image.
    width : int
        Channels of the first stage; each further one doubles them.
    depth : tuple of int
        Residual blocks of each stage.
    strides, kernels : one tuple a stage, each one number an axis
    most_width : int
        Where the width stops growing.
    drop_path : float
        Probability that the last block is skipped while training; it falls linearly to 0 at the first.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        depth: Numbers,
        strides: tuple[Numbers, ...],
        kernels: tuple[Numbers, ...],
        most_width: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.widths = tuple(min(width * 2**stage, most_width) for stage in range(len(depth)))
        self.strides = strides
        self.features = self.widths[-1]
        self.stem = _unit(channels * math.prod(strides[0]), self.widths[0], kernels[0])
        stages: list[nn.Module] = []
        inputs, made = self.widths[0], 0
        for stage, blocks in enumerate(depth):
            parts: list[nn.Module] = []
            for index in range(blocks):
                stride = strides[stage] if stage > 0 and index == 0 else (1,) * len(strides[0])
                skip = drop_path * made / max(sum(depth) - 1, 1)
                parts.append(ResidualBlock(inputs, self.widths[stage], kernels[stage], stride, drop_path=skip))
                inputs, made = self.widths[stage], made + 1
            stages.append(nn.Sequential(*parts))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        out: Tensor = self.stem(fold(image, self.strides[0]))
        maps = []
        for stage in self.stages:
            out = stage(out)
            maps.append(out)
        return maps


class LiteEncoder(PyramidEncoder):
    """EfficientNet-Lite0 up to the maps at strides 2, 4, 8, 16 and 32, for pictures."""

    #: The last block of each stride.
    TAPS = (0, 2, 4, 10, 15)

    def __init__(self, channels: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.body = EfficientNetLite0(channels, drop_path=drop_path)
        self.widths, self.strides, self.features = (16, 24, 40, 112, 320), ((2, 2),) * 5, 320

    def without_head(self) -> LiteEncoder:
        """The encoder without the layer behind its last map, which published weights hold and a decoder does not need."""
        self.body.head, self.body.head_norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        out, maps = self.body.begin(image), []
        for number, block in enumerate(self.body.blocks):
            out = block(out)
            if number in self.TAPS:
                maps.append(out)
        return maps


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, which averages rather than skips voxels where the block strides."""

    def __init__(self, inputs: int, outputs: int, kernel: Numbers, stride: Numbers, *, drop_path: float = 0.0) -> None:
        super().__init__()
        d = len(kernel)
        self.drop_path = drop_path
        self.first = _convolution(inputs, outputs, kernel, stride)
        self.first_norm = _norm(outputs, d)
        self.second = _convolution(outputs, outputs, kernel)
        self.second_norm = _norm(outputs, d)
        # A block starts as its shortcut (Goyal et al. 2017): short training does not have to find that first.
        nn.init.zeros_(self.second_norm.weight)
        shortcut: list[nn.Module] = []
        if math.prod(stride) > 1:
            shortcut.append(nn.AvgPool2d((stride[0], stride[1])) if d == 2 else nn.AvgPool3d(stride))  # type: ignore[arg-type]
        if inputs != outputs:
            shortcut += [_convolution(inputs, outputs, (1,) * d), _norm(outputs, d)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.first_norm(self.first(x)))
        out = self.second_norm(self.second(out))
        if self.training and self.drop_path > 0:
            kept = torch.rand((len(out),) + (1,) * (out.ndim - 1), device=out.device) >= self.drop_path
            out = out * (kept / (1 - self.drop_path)).to(out.dtype)
        return functional.relu(out + self.shortcut(x))


class DecoderStage(nn.Module):
    """Unfolds a coarse map, joins it to a finer one of the encoder and mixes both."""

    def __init__(self, coarse: int, fine: int, outputs: int, kernel: Numbers, stride: Numbers, *, depth: int) -> None:
        super().__init__()
        transposed = nn.ConvTranspose2d if len(kernel) == 2 else nn.ConvTranspose3d
        self.up = transposed(coarse, outputs, stride, stride)  # type: ignore[arg-type]
        self.mix = nn.Sequential(
            *(_unit(fine + outputs if number == 0 else outputs, outputs, kernel) for number in range(depth))
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.cat([self.up(coarse), fine], dim=1))
        return out


class DenseNetwork(nn.Module):
    """An encoder, and a decoder whose map says something of every voxel.

    While training, a call gives a tuple of maps, the finest first, with coarser ones behind it where `deep` asks for them;
    otherwise the finest alone.

    Parameters
    ----------
    encoder : PyramidEncoder
    outputs : int
        Numbers for each voxel.
    stride : int
        The map has this many times fewer voxels along each axis than the image. The decoder ends where the encoder's maps
        are so fine; a map that is still coarser is unfolded, each voxel into a block.
    kernels : one tuple a stage of the encoder
        Of the decoder's convolutions.
    width : int
        The decoder has at least so many channels.
    depth : int
        Convolutions of each stage of the decoder.
    dropout : float
        Probability of dropping a channel of the coarsest map while training.
    deep : bool
        Whether training sees coarser maps too.
    frozen : bool
        Whether the encoder's own weights and statistics stay as they are.

    Attributes
    ----------
    features : int
        F, the channels of the coarsest map.
    outputs, stride : int
    multiple : tuple of int
        The network works on sizes that are multiples of this, and pads others at their far end.
    columns : int
        0: a table has no part in an answer with a place.

    Raises
    ------
    ConfigError
        If the strides of the encoder and of the map do not divide each other.
    """

    def __init__(
        self,
        encoder: PyramidEncoder,
        outputs: int,
        *,
        stride: int,
        kernels: tuple[Numbers, ...],
        width: int = 0,
        depth: int = 1,
        dropout: float = 0.0,
        deep: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.features = encoder.features
        self.outputs, self.stride, self.columns, self.frozen = outputs, stride, 0, frozen
        totals = _totals(encoder.strides)
        self.multiple = tuple(math.lcm(total, stride) for total in totals[-1])
        last = len(totals) - 1
        self.finest = max((n for n, total in enumerate(totals) if max(total) <= stride), default=0)
        self._block, shrink = _between(totals[self.finest], stride)
        widths = [max(n, width) for n in encoder.widths[:-1]] + [encoder.features]  # as the decoder leaves them
        d = len(self.multiple)
        self.dropout = nn.Dropout2d(dropout) if d == 2 else nn.Dropout3d(dropout)
        self.decoder = nn.ModuleList(
            DecoderStage(widths[n + 1], encoder.widths[n], widths[n], kernels[n], encoder.strides[n + 1], depth=depth)
            for n in reversed(range(self.finest, last))
        )
        self.output = _head(widths[self.finest], outputs * math.prod(self._block), shrink)
        _alike(self.output, math.prod(self._block))
        coarser = range(self.finest + 1, min(self.finest + 1 + SUPERVISED, last)) if deep else range(0)
        self.deep = nn.ModuleList(_head(widths[n], outputs, (1,) * d) for n in coarser)
        self._coarser = [totals[n] for n in coarser]

    def forward(self, image: Tensor, table: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Logits (N, outputs, *ceil(size / stride)) of images (N, C, *size).

        Raises
        ------
        DataError
            If a table comes with the images.
        """
        if table is not None and table.shape[1]:
            raise DataError(
                f"a network that answers for each voxel takes no table; this case has {table.shape[1]} columns"
            )
        size = image.shape[2:]
        maps: list[Tensor] = self.encoder(pad_far(image, self.multiple))
        decoded = [self.dropout(maps[-1])]
        for stage, fine in zip(self.decoder, reversed(maps[self.finest : -1]), strict=True):
            decoded.append(stage(decoded[-1], fine))
        out = cut(unfold(self.output(decoded[-1]), self._block), size, (self.stride,) * len(size))
        if not self.training:
            return out
        coarser = zip(self.deep, decoded[-2::-1], self._coarser, strict=False)  # the coarsest map has no head
        return (out, *(cut(head(found), size, total) for head, found, total in coarser))

    def embed(self, image: Tensor) -> Tensor:
        """The coarsest feature map without its space, (N, F) float32: what the gate knows images by."""
        coarsest: Tensor = self.encoder(pad_far(image, self.multiple))[-1]
        return coarsest.float().mean(dim=tuple(range(2, coarsest.ndim)))

    def train(self, mode: bool = True) -> DenseNetwork:
        """Switch to training; a frozen encoder keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


def pad_far(image: Tensor, multiple: Numbers) -> Tensor:
    """The image with its border values repeated at the far end of each axis, up to a multiple.

    >>> pad_far(torch.zeros(1, 1, 5, 8), (4, 4)).shape
    torch.Size([1, 1, 8, 8])
    """
    missing = [-size % number for size, number in zip(image.shape[2:], multiple, strict=True)]
    if not any(missing):
        return image
    return functional.pad(image, [edge for n in reversed(missing) for edge in (0, n)], mode="replicate")


def cut(found: Tensor, size: Sequence[int], stride: Numbers) -> Tensor:
    """The part of a map that lies over an image of `size`, where the image was padded at its far ends."""
    for axis, (n, s) in enumerate(zip(size, stride, strict=True), start=2):
        if found.shape[axis] != -(-n // s):
            found = found.narrow(axis, 0, -(-n // s))
    return found


def fold(x: Tensor, block: Numbers) -> Tensor:
    """Blocks of voxels as channels: (N, C, *size) to (N, C * prod(block), *size / block).

    >>> fold(torch.arange(8.0).reshape(1, 1, 2, 4), (2, 2))[0, :, 0, 0]
    tensor([0., 1., 4., 5.])
    """
    if math.prod(block) == 1:
        return x
    n, c, *size = x.shape
    d = len(block)
    coarse = [s // b for s, b in zip(size, block, strict=True)]
    x = x.reshape(n, c, *(part for pair in zip(coarse, block, strict=True) for part in pair))
    x = x.permute(0, 1, *(3 + 2 * axis for axis in range(d)), *(2 + 2 * axis for axis in range(d)))
    return x.reshape(n, c * math.prod(block), *coarse)


def unfold(x: Tensor, block: Numbers) -> Tensor:
    """Channels as blocks of voxels, the inverse of :func:`fold`.

    >>> x = torch.randn(2, 3, 4, 6, 8)
    >>> bool((unfold(fold(x, (1, 2, 4)), (1, 2, 4)) == x).all())
    True
    """
    if math.prod(block) == 1:
        return x
    n, c, *coarse = x.shape
    d, channels = len(block), c // math.prod(block)
    x = x.reshape(n, channels, *block, *coarse)
    x = x.permute(0, 1, *(place for axis in range(d) for place in (2 + d + axis, 2 + axis)))
    return x.reshape(n, channels, *(s * b for s, b in zip(coarse, block, strict=True)))


def _totals(strides: tuple[Numbers, ...]) -> list[Numbers]:
    """By how much each stage's map is smaller than the image."""
    axes = range(len(strides[0]))
    return [tuple(math.prod(stride[axis] for stride in strides[: n + 1]) for axis in axes) for n in range(len(strides))]


def _between(total: Numbers, stride: int) -> tuple[Numbers, Numbers]:
    """Along each axis: into how many voxels one of the map is unfolded, and by how much the map is shrunk."""
    if any(max(t, stride) % min(t, stride) for t in total):
        raise ConfigError(
            f"network.strides: the finest map is {total} times smaller than the image, the answer {stride} times; "
            "one must be a multiple of the other"
        )
    return tuple(max(t // stride, 1) for t in total), tuple(max(stride // t, 1) for t in total)


@torch.no_grad()
def _alike(head: nn.Module, block: int) -> None:
    """Let the voxels of an unfolded block begin with weights that are half alike.

    With weights of their own, some learn sooner than their neighbours, and masks of short trainings are checkerboards (Aitken
    et al., "Checkerboard artifact free sub-pixel convolution", 2017). With the same weights, they take longer to tell each
    other apart at edges. Halfway has most of both.
    """
    last = [module for module in head.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))][-1]
    for values in (last.weight, last.bias):
        if values is not None:
            parts = values.view(-1, block, *values.shape[1:])
            parts.lerp_(parts[:, :1].expand_as(parts).clone(), ALIKE)


def _head(inputs: int, outputs: int, shrink: Numbers) -> nn.Module:
    kind = nn.Conv2d if len(shrink) == 2 else nn.Conv3d
    return kind(inputs, outputs, shrink, shrink)  # type: ignore[arg-type]


def _unit(inputs: int, outputs: int, kernel: Numbers) -> nn.Module:
    return nn.Sequential(_convolution(inputs, outputs, kernel), _norm(outputs, len(kernel)), nn.ReLU())


def _convolution(inputs: int, outputs: int, kernel: Numbers, stride: Numbers | None = None) -> nn.Module:
    kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    padding = tuple(n // 2 for n in kernel)
    return kind(inputs, outputs, kernel, stride or 1, padding, bias=False)  # type: ignore[arg-type]


def _norm(channels: int, dimensions: int) -> nn.BatchNorm2d | nn.BatchNorm3d:
    # Not of the instance: its answer would depend on where a window ends, and it takes longer (decision 11).
    return nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm3d(channels)


def build_unet(
    plan: NetworkPlan,
    *,
    channels: int,
    dimensions: int,
    outputs: int,
    stride: int = 1,
    weights: bool = True,
    deep: bool = False,
) -> DenseNetwork:
    """The U-Net that a plan describes, with weights drawn from torch's generator or pretrained ones.

    Parameters
    ----------
    plan : NetworkPlan
        Of ``unet``: width, depth, strides (the image's own resolution and then halves, unless given), kernels (3 unless
        given), most_width, decoder_depth, drop_path and dropout. Of ``unet-lite0``: `width` is the least of the decoder.
    channels, dimensions, outputs, stride : int
        Of the image, and of the map.
    weights : bool
        Whether pretrained weights are read.
    deep : bool
        Whether training sees coarser maps too.

    Raises
    ------
    ConfigError
        If the plan names another family, or its parts do not fit each other.
    """
    if plan.name not in UNETS:
        raise ConfigError(
            f"network.name: '{plan.name}' gives one answer for an image; one for each voxel comes from {' or '.join(UNETS)}. "
            f"{nearest(plan.name, UNETS)}"
        )
    if plan.name == "unet-lite0":
        return _build_lite(plan, channels, dimensions, outputs, stride, weights, deep)
    if plan.pretrained is not None and weights and not plan.pretrained.startswith("folder:"):
        raise ConfigError("network.pretrained: no package or hub holds weights for 'unet'; 'unet-lite0' has some.")
    stages = len(plan.depth)
    strides = plan.strides or ((1,) * dimensions, *((2,) * dimensions,) * (stages - 1))
    kernels = plan.kernels or ((3,) * dimensions,) * stages
    for name, values in (("strides", strides), ("kernels", kernels)):
        if len(values) != stages or any(len(value) != dimensions or min(value) < 1 for value in values):
            raise ConfigError(
                f"network.{name}: expected {stages} stages as network.depth has, each with {dimensions} numbers of 1 or "
                f"more; found {values}"
            )
    if any(number % 2 == 0 for kernel in kernels for number in kernel):
        raise ConfigError(f"network.kernels: a kernel has an odd size along each axis, not as in {kernels}")
    encoder = ResidualEncoder(
        channels,
        width=plan.width,
        depth=plan.depth,
        strides=strides,
        kernels=kernels,
        most_width=plan.most_width,
        drop_path=plan.drop_path,
    )
    if weights:
        load_pretrained(encoder, plan)
    frozen = tune(encoder, plan.tuning)
    return DenseNetwork(
        encoder,
        outputs,
        stride=stride,
        kernels=kernels,
        depth=plan.decoder_depth,
        dropout=plan.dropout,
        deep=deep,
        frozen=frozen,
    )


def _build_lite(
    plan: NetworkPlan, channels: int, dimensions: int, outputs: int, stride: int, weights: bool, deep: bool
) -> DenseNetwork:
    if dimensions != 2:
        raise ConfigError(
            f"network.name: 'unet-lite0' is for 2-D images; these have {dimensions} dimensions. Use 'unet'."
        )
    encoder = LiteEncoder(channels, drop_path=plan.drop_path)
    if weights:
        load_pretrained(encoder.body, dataclasses.replace(plan, name="efficientnet-lite0"))
    frozen = tune(encoder.without_head(), plan.tuning)
    return DenseNetwork(
        encoder,
        outputs,
        stride=stride,
        kernels=((3, 3),) * len(encoder.widths),
        width=plan.width,
        depth=plan.decoder_depth,
        dropout=plan.dropout,
        deep=deep,
        frozen=frozen,
    )
