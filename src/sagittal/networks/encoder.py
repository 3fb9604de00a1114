"""Encoders: from an image to its last feature map.

Every encoder is a module with an attribute ``features`` that takes (N, C, H, W) or (N, C, D, H, W) and gives
(N, features, ...). What an encoder expects of its input beyond zero mean and unit variance, it does itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sagittal.errors import ConfigError, nearest, require
from sagittal.networks.descriptors import DescriptorEncoder
from sagittal.networks.lite import EfficientNetLite0
from sagittal.networks.pretrained import TransformersEncoder, parse_source
from sagittal.networks.volume import build_volume_encoder
from sagittal.prepare.plan import NetworkPlan

Builder = Callable[[NetworkPlan, int, int], nn.Module]

# Beyond this width a stage of a small image holds most of the weights and sees a few pixels only.
MAX_WIDTH = 512


class SmallResNet(nn.Module):
    """Residual network for images of 28 to 64 pixels, which works at full resolution in its first stage.

    The shortcut of a block that strides averages instead of skipping pixels ("ResNet-D", He et al., CVPR 2019), and
    each block starts as its shortcut (Goyal et al., 2017).

    Parameters
    ----------
    channels : int
    width : int
        Channels of the first stage; each further stage doubles them.
    depth : tuple of int
        Blocks of each stage; each stage after the first halves the image.
    stem_stride : int
        1 keeps the resolution of the image.
    drop_path : float
        Probability that the last block is skipped; it falls linearly to 0 at the first.

    Attributes
    ----------
    features : int
    """

    def __init__(
        self, channels: int, width: int, depth: tuple[int, ...], *, stem_stride: int = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        features = width
        for stage, count in enumerate(depth):
            for index in range(count):
                out = min(width * 2**stage, MAX_WIDTH)
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(SmallBlock(features, out, stride, drop_path * len(blocks) / max(sum(depth) - 1, 1)))
                features = out
        self.blocks = nn.Sequential(*blocks)
        self.features = features

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.blocks(functional.relu(self.stem_norm(self.stem(image))))
        return out  # (N, F, h, w)


class SmallBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, features: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(features)
        self.second = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(features)
        nn.init.zeros_(self.second_norm.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != features:
            # ceil_mode: an odd size ends as the strided convolution leaves it.
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(channels, features, 1, bias=False), nn.BatchNorm2d(features))
        self.drop_path = DropPath(drop_path)

    def forward(self, image: Tensor) -> Tensor:
        out = functional.relu(self.first_norm(self.first(image)))
        return functional.relu(self.drop_path(self.second_norm(self.second(out))) + self.shortcut(image))


class DropPath(nn.Module):
    """Skips a residual branch for some of the images while training (Huang et al., ECCV 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return branch
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) >= self.probability
        return branch * (kept / (1 - self.probability)).to(branch.dtype)


class VisionTransformer(nn.Module):
    """Vision transformer for images and volumes of any size (Dosovitskiy et al., ICLR 2021).

    Positions are sines and cosines of the patch's place, so that one network takes every size; there is no class token:
    the pooled feature is the mean of the patches.

    Parameters
    ----------
    channels, dimensions : int
    width : int
        Channels of a token; must be a multiple of `heads` and of twice `dimensions`.
    depth, heads : int
    patch : int
        Edge of a patch, voxels. An image that is no multiple of it is padded at its far end.
    drop_path : float
        As in :class:`SmallResNet`.

    Attributes
    ----------
    features : int
    """

    def __init__(
        self,
        channels: int,
        dimensions: int,
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 16,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.patch = patch
        self.embedding = convolution(channels, width, patch, stride=patch)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, drop_path * index / max(depth - 1, 1)) for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.features = width

    def forward(self, image: Tensor) -> Tensor:
        far_ends = [(0, -size % self.patch) for size in reversed(image.shape[2:])]
        patches = self.embedding(functional.pad(image, [edge for pair in far_ends for edge in pair]))
        grid = patches.shape[2:]
        tokens: Tensor = patches.flatten(2).transpose(1, 2)  # (N, T, F)
        tokens = tokens + patch_positions(grid, self.features).to(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens.transpose(1, 2).reshape(len(image), self.features, *grid)


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(self.attention_norm(tokens))  # (N, T, 3 F)
        parts = parts.reshape(*tokens.shape[:2], 3, self.heads, -1)  # (N, T, 3, A, F / A)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (N, A, T, F / A)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (N, T, F)
        tokens = tokens + self.drop_path(self.projection(mixed))
        out: Tensor = tokens + self.drop_path(self.perceptron(self.perceptron_norm(tokens)))
        return out


def patch_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Sines and cosines of each patch's place: (1, prod(grid), width) float32.

    The channels are shared out evenly among the axes; what is left over is 0.
    """
    axes = len(grid)
    half = width // (2 * axes)
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in places]  # each (T, half)
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return functional.pad(table, (0, width - table.shape[1]))[None]


class MonaiEncoder(nn.Module):
    """The layers of a MONAI classifier up to its last feature map.

    Attributes
    ----------
    features : int
    """

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body = body
        self.features = features

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.body(image)
        return out


def _small(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    if dimensions == 3:
        return build_volume_encoder(plan, channels=channels)
    return SmallResNet(channels, plan.width, plan.depth, stem_stride=plan.stem_stride, drop_path=plan.drop_path)


def _lite0(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    if dimensions != 2:
        raise ConfigError(
            f"network.name: '{plan.name}' is for 2-D images; these have {dimensions} dimensions. "
            "Use 'resnet-small', 'resnet18', 'densenet121' or 'efficientnet-b0'."
        )
    return EfficientNetLite0(channels, drop_path=plan.drop_path)


def _vit(width: int, heads: int) -> Builder:
    def build(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
        patch = plan.stem_stride if plan.stem_stride > 1 else 16
        return VisionTransformer(channels, dimensions, width=width, heads=heads, patch=patch, drop_path=plan.drop_path)

    return build


def _resnet(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    resnet = require("monai.networks.nets.resnet", feature=f"the network '{plan.name}'", extra="networks")
    small = plan.stem_stride == 1
    net = getattr(resnet, plan.name)(
        pretrained=False,
        spatial_dims=dimensions,
        n_input_channels=channels,
        conv1_t_size=3 if small else 7,
        conv1_t_stride=min(plan.stem_stride, 2),
        no_max_pool=plan.stem_stride < 4,  # the pooling halves once more: 4 is the published stem
        feed_forward=False,
        bias_downsample=False,
    )
    stem = [net.conv1, net.bn1, net.act] + ([] if net.no_max_pool else [net.maxpool])
    body = nn.Sequential(*stem, net.layer1, net.layer2, net.layer3, net.layer4)
    return MonaiEncoder(body, net.in_planes)


def _densenet(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    densenet = require("monai.networks.nets.densenet", feature=f"the network '{plan.name}'", extra="networks")
    net = getattr(densenet, plan.name)(spatial_dims=dimensions, in_channels=channels, out_channels=1)
    # Not in place: a gradient with respect to the map before the ReLU must stay possible.
    return MonaiEncoder(nn.Sequential(net.features, nn.ReLU()), net.class_layers.out.in_features)


def _efficientnet(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    efficientnet = require("monai.networks.nets.efficientnet", feature=f"the network '{plan.name}'", extra="networks")
    net = efficientnet.EfficientNetBN(plan.name, pretrained=False, spatial_dims=dimensions, in_channels=channels)
    blocks = list(net._blocks.modules())
    for block in blocks:
        if isinstance(block, efficientnet.MBConvBlock):
            block.drop_connect_rate = plan.drop_path
        if isinstance(block, nn.modules.batchnorm._BatchNorm):
            block.momentum = 0.1  # MONAI's 0.01 is for a million steps; a run within a budget has thousands
    body = nn.Sequential(
        nn.Sequential(net._conv_stem_padding, net._conv_stem, net._bn0, nn.SiLU()),
        net._blocks,
        nn.Sequential(net._conv_head_padding, net._conv_head, net._bn1, nn.SiLU()),
    )
    return MonaiEncoder(body, net._fc.in_features)


def _transformers(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    if dimensions != 2:
        raise ConfigError(f"network.name: 'transformers' is for 2-D images; these have {dimensions} dimensions.")
    source = parse_source(plan.pretrained)
    if source is None or source.kind == "package":
        raise ConfigError(
            "network.name: 'transformers' takes its architecture from a folder or a hub: set network.pretrained to "
            f"'folder:PATH' or 'hub:NAME', not {plan.pretrained!r}."
        )
    return TransformersEncoder(source, channels)


def _descriptors(plan: NetworkPlan, channels: int, dimensions: int) -> nn.Module:
    return DescriptorEncoder(channels, dimensions, width=plan.width, dropout=plan.dropout)


ENCODERS: dict[str, Builder] = {
    "densenet121": _densenet,
    "descriptors": _descriptors,
    "efficientnet-b0": _efficientnet,
    "efficientnet-lite0": _lite0,
    "resnet-small": _small,
    "resnet18": _resnet,
    "resnet34": _resnet,
    "resnet50": _resnet,
    "transformers": _transformers,
    "vit-small": _vit(384, 6),
    "vit-tiny": _vit(192, 3),
}
"""Network families by the name that a plan gives them."""


def build_encoder(plan: NetworkPlan, *, channels: int, dimensions: int) -> nn.Module:
    """An encoder with random weights, drawn from torch's generator.

    Parameters
    ----------
    plan : NetworkPlan
    channels : int
        Channels of the image.
    dimensions : {2, 3}

    Raises
    ------
    ConfigError
        If the family is unknown, or not made for so many dimensions.
    MissingPackageError
        If the family comes from a package that is not installed.
    """
    if plan.name not in ENCODERS:
        raise ConfigError(f"network.name: no network is called '{plan.name}'. {nearest(plan.name, ENCODERS)}")
    if dimensions not in (2, 3):
        raise ConfigError(f"a network takes images of 2 or 3 dimensions, not {dimensions}")
    return ENCODERS[plan.name](plan, channels, dimensions)
