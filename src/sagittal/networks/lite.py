"""EfficientNet-Lite0, the network of the pretrained weights that install offline."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# (repeats, kernel, stride, expansion, channels) of each stage: efficientnet_lite_builder.py of tensorflow/tpu, which is
# Tan & Le, ICML 2019, table 1, without squeeze-and-excitation and with ReLU6 for Swish.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
FEATURES = 1280


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last feature map, 3.4 million weights.

    The input is scaled to [-1, 1], (value - 127.5) / 127.5 of an 8-bit image; the published weights' own scale,
    (value - 127) / 128, is made inside. A grey image is repeated to three channels.

    Parameters
    ----------
    channels : int
        1 and 3 share the same weights; other numbers need a first layer of their own.
    drop_path : float
        Probability that the last block is skipped; it falls linearly to 0 at the first.

    Attributes
    ----------
    features : int
    """

    def __init__(self, channels: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.features = FEATURES
        self.stem = nn.Conv2d(3 if channels == 1 else channels, 32, 3, stride=2, bias=False)
        self.stem_norm = _norm(32)
        blocks: list[LiteBlock] = []
        inputs, total = 32, sum(repeats for repeats, *_ in STAGES)
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for index in range(repeats):
                skip = drop_path * len(blocks) / total
                blocks.append(
                    LiteBlock(inputs, outputs, kernel, stride if index == 0 else 1, expansion, drop_path=skip)
                )
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(inputs, FEATURES, 1, bias=False)
        self.head_norm = _norm(FEATURES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)

    def begin(self, image: Tensor) -> Tensor:
        """The map before the first block, (N, 32, H / 2, W / 2)."""
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        image = image * (127.5 / 128) + 0.5 / 128
        return functional.relu6(self.stem_norm(self.stem(_pad_same(image, 3, 2))))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.begin(image))
        return functional.relu6(self.head_norm(self.head(out)))  # (N, 1280, H / 32, W / 32)


class LiteBlock(nn.Module):
    """Inverted bottleneck: widen, convolve each channel, narrow."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, *, drop_path: float
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.kernel, self.stride = kernel, stride
        self.drop_path = drop_path
        self.residual = stride == 1 and inputs == outputs
        self.expand = nn.Conv2d(inputs, wide, 1, bias=False) if expansion != 1 else None
        self.expand_norm = _norm(wide) if expansion != 1 else None
        padding = kernel // 2 if stride == 1 else 0
        self.spatial = nn.Conv2d(wide, wide, kernel, stride=stride, padding=padding, groups=wide, bias=False)
        self.spatial_norm = _norm(wide)
        self.project = nn.Conv2d(wide, outputs, 1, bias=False)
        self.project_norm = _norm(outputs)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = image
        if self.expand is not None and self.expand_norm is not None:
            out = functional.relu6(self.expand_norm(self.expand(out)))
        out = functional.relu6(self.spatial_norm(self.spatial(_pad_same(out, self.kernel, self.stride))))
        out = self.project_norm(self.project(out))
        if not self.residual:
            return out
        if self.training and self.drop_path > 0:
            kept = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop_path
            out = out * (kept / (1 - self.drop_path)).to(out.dtype)
        return out + image


def _norm(channels: int) -> nn.BatchNorm2d:
    # Published eps; momentum .1 for the published .01, so that the statistics follow a run of a few hundred steps.
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


def _pad_same(image: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow does where a layer strides: the odd pixel goes to the far end."""
    if stride == 1:
        return image
    edges: list[int] = []
    for size in (image.shape[3], image.shape[2]):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        edges += [missing // 2, missing - missing // 2]
    return functional.pad(image, edges)
