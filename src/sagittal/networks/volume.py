"""Small residual encoders for volumes, sized for a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sagittal.prepare.plan import NetworkPlan

# Widths stop growing here: deeper stages see few voxels and would only hold most of the weights.
MAX_WIDTH = 256


class VolumeEncoder(nn.Module):
    """Residual network from a volume (N, C, D, H, W) to its last feature map (N, F, d, h, w).

    The stem folds blocks of ``stem_stride`` voxels along each axis into channels instead of striding over them: nothing
    is lost, and no convolution runs at full resolution, where most of the time of a 3-D network would go.

    Attributes
    ----------
    features : int
        F, the channels of the last feature map.
    """

    def __init__(
        self, channels: int, width: int, depth: tuple[int, ...], *, stem_stride: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.stem_stride = stem_stride
        self.stem = nn.Sequential(
            nn.Conv3d(channels * stem_stride**3, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        features, total = width, sum(depth)
        for stage, count in enumerate(depth):
            for index in range(count):
                out = min(width * 2**stage, MAX_WIDTH)
                stride = 2 if stage > 0 and index == 0 else 1
                # The chance to skip a block grows with depth (Huang et al., ECCV 2016, linear decay).
                skip = drop_path * len(blocks) / max(total - 1, 1)
                blocks.append(ResidualBlock(features, out, stride=stride, drop_path=skip))
                features = out
        self.blocks = nn.Sequential(*blocks)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.blocks(self.stem(space_to_depth(x, self.stem_stride)))
        return maps  # (N, F, d, h, w)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut, which averages rather than skips voxels where the block strides."""

    def __init__(self, channels: int, features: int, *, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.first = nn.Conv3d(channels, features, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm3d(features)
        self.second = nn.Conv3d(features, features, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(features)
        # A block starts as its shortcut (Goyal et al. 2017): short training does not have to find that first.
        nn.init.zeros_(self.second_norm.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != features:
            pool = nn.AvgPool3d(stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv3d(channels, features, 1, bias=False), nn.BatchNorm3d(features))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.first_norm(self.first(x)))
        out = self.second_norm(self.second(out))
        if self.training and self.drop_path > 0:
            kept = torch.rand(len(out), 1, 1, 1, 1, device=out.device) >= self.drop_path
            out = out * (kept / (1 - self.drop_path)).to(out.dtype)
        return functional.relu(out + self.shortcut(x))


def build_volume_encoder(plan: NetworkPlan, channels: int) -> VolumeEncoder:
    """The encoder that the plan asks for, with random weights.

    Parameters
    ----------
    plan : NetworkPlan
        ``width`` channels after the stem, ``depth`` blocks a stage; each stage after the first halves the resolution
        and doubles the channels.
    channels : int
        Channels of the input volume.
    """
    return VolumeEncoder(channels, plan.width, plan.depth, stem_stride=plan.stem_stride, drop_path=plan.drop_path)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Cubes of ``block`` voxels as channels: (N, C, D, H, W) to (N, C * block**3, D / block, H / block, W / block).

    Sizes that ``block`` does not divide are first padded at their ends with the border values.
    """
    if block == 1:
        return x
    missing = [-size % block for size in x.shape[2:]]
    if any(missing):
        x = functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // block, block, h // block, block, w // block, block)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)  # (N, C, b, b, b, D / b, H / b, W / b)
    return x.reshape(n, c * block**3, d // block, h // block, w // block)
