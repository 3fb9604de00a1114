"""Networks: an encoder, pooling, a table beside the image, and the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sagittal.errors import ConfigError, DataError
from sagittal.networks.encoder import build_encoder
from sagittal.networks.pretrained import load_pretrained, tune
from sagittal.networks.unet import DenseNetwork, build_unet
from sagittal.prepare.plan import NetworkPlan

TABLE_FEATURES = 32

Pooling = Literal["mean", "mean-max"]


@dataclass(frozen=True)
class Head:
    """What a network gives: one vector for an image, or one for each pixel.

    Parameters
    ----------
    kind : {"vector", "dense"}
    outputs : int
        Numbers in a vector, or for each pixel.
    stride : int
        Of a dense head: its map has this many times fewer pixels along each axis than the image.
    mirror : one tuple of int an axis, optional
        Which outputs change places when the image is mirrored along an axis, such as the distances to the left and the
        right side: ``outputs[mirror[axis]]`` of a mirrored view, mirrored back, are those of the image. Empty: none do.
    """

    kind: Literal["vector", "dense"]
    outputs: int
    stride: int = 1
    mirror: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if any(sorted(order) != list(range(self.outputs)) for order in self.mirror):
            raise ConfigError(
                f"the order of a mirrored view's outputs names each of {self.outputs} once, not {self.mirror}"
            )
        if self.outputs < 1:
            raise ConfigError(f"a head needs one output or more, not {self.outputs}")
        if self.stride < 1:
            raise ConfigError(f"the stride of a head is 1 or more, not {self.stride}")


class Network(nn.Module):
    """Encoder, mean over the last feature map, and a linear layer.

    Parameters
    ----------
    encoder : nn.Module
        With an attribute ``features``.
    outputs : int
    dropout : float
        Probability of dropping a pooled feature while training.
    table : int
        Columns of the table that comes with an image; 0 for none.
    frozen : bool
        Whether the encoder's own weights and statistics stay as they are.

    Attributes
    ----------
    features : int
        F, the channels of the last feature map.
    outputs, columns : int
    """

    def __init__(
        self,
        encoder: nn.Module,
        outputs: int,
        *,
        dropout: float = 0.0,
        table: int = 0,
        frozen: bool = False,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.features = int(encoder.features)  # type: ignore[arg-type]
        self.outputs = outputs
        self.columns = table
        self.frozen = frozen
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.table: nn.Module | None = None
        if table:
            self.table = nn.Sequential(nn.Linear(table, TABLE_FEATURES), nn.ReLU(), nn.Dropout(dropout))
        pooled = self.features * (2 if pooling == "mean-max" else 1)
        self.output = nn.Linear(pooled + (TABLE_FEATURES if table else 0), outputs)

    def forward(self, image: Tensor, table: Tensor | None = None) -> Tensor:
        """Logits (N, outputs) of images (N, C, H, W) or (N, C, D, H, W) and, where asked for, table rows (N, T)."""
        return self.classify_features(self.feature_map(image), table)

    def feature_map(self, image: Tensor) -> Tensor:
        """Last feature map, (N, F, h, w) or (N, F, d, h, w)."""
        out: Tensor = self.encoder(image)
        return out

    def embed(self, image: Tensor) -> Tensor:
        """Pooled features (N, F) before the head; the table has no part in them."""
        return pool(self.feature_map(image))

    def classify_features(self, feature_map: Tensor, table: Tensor | None = None) -> Tensor:
        """Logits (N, outputs) from what :meth:`feature_map` gave.

        ``network(image, table)`` equals ``network.classify_features(network.feature_map(image), table)`` exactly.

        Raises
        ------
        DataError
            If the network was made for a table of another width.
        """
        return self._classify(pool(feature_map, self.pooling), table)

    def _classify(self, pooled: Tensor, table: Tensor | None) -> Tensor:
        pooled = self.dropout(pooled)  # (N, F) or (N, 2 F)
        given = 0 if table is None else table.shape[1]
        if given != self.columns:
            raise DataError(f"the network was made for {self.columns} table columns, this case has {given}")
        if self.table is not None:
            pooled = torch.cat([pooled, self.table(table)], dim=1)
        logits: Tensor = self.output(pooled)
        return logits

    def front(self, image: Tensor) -> Tensor:
        """The part that no training changes, so that it may be computed once for all epochs.

        A frozen encoder's pooled features (N, F), or the measures of an encoder that begins with fixed formulas.

        Raises
        ------
        ConfigError
            If training changes every part of the network.
        """
        if self.frozen:
            return pool(self.feature_map(image), self.pooling)
        if not hasattr(self.encoder, "front"):
            raise ConfigError(
                "train.cache_features is for networks with a part that is not trained; this one is trained from its first layer"
            )
        fixed: Tensor = self.encoder.front(image)  # type: ignore[operator]
        return fixed

    def finish(self, front: Tensor, table: Tensor | None = None) -> Tensor:
        """Logits (N, outputs) from what :meth:`front` gave: ``finish(front(image)) == forward(image)``."""
        if self.frozen:
            return self._classify(front, table)
        return self.classify_features(self.encoder.back(front), table)  # type: ignore[operator]

    def train(self, mode: bool = True) -> Network:
        """Switch to training; a frozen encoder keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


def pool(feature_map: Tensor, pooling: Pooling = "mean") -> Tensor:
    """A feature map (N, F, ...) without its space, float32: its mean (N, F), or mean and maximum (N, 2 F).

    The maximum keeps a small finding in a large image, which the mean thins out.
    """
    space = tuple(range(2, feature_map.ndim))
    values = feature_map.float()
    mean = values.mean(dim=space)
    return mean if pooling == "mean" else torch.cat([mean, values.amax(dim=space)], dim=1)


def build_network(
    plan: NetworkPlan,
    *,
    channels: int,
    dimensions: int,
    head: Head,
    table: int = 0,
    weights: bool = True,
    deep: bool = False,
) -> Network:
    """The network that a plan describes.

    Random weights are drawn from torch's own generator: seed it before, for a run that can be repeated.

    Parameters
    ----------
    plan : NetworkPlan
    channels : int
        Channels of the image.
    dimensions : {2, 3}
    head : Head
        A dense head gives what :func:`build_dense` gives.
    table : int
        Columns of the table that comes with each image.
    weights : bool
        Whether pretrained weights are read; ``False`` gives the same modules for weights that follow, such as those of
        a saved model.
    deep : bool
        Of a dense head: whether training sees coarser maps too.

    Raises
    ------
    ConfigError
        If the plan names an unknown network or source, or a table comes with a dense head.
    MissingPackageError
        If the plan needs a package that is not installed.
    """
    if head.kind == "dense":
        if table:
            raise ConfigError(
                f"a network that answers for each voxel takes no table; the plan has {table} columns of one"
            )
        return build_dense(  # type: ignore[return-value]
            plan, channels=channels, dimensions=dimensions, head=head, weights=weights, deep=deep
        )
    encoder = build_encoder(plan, channels=channels, dimensions=dimensions)
    if weights:
        load_pretrained(encoder, plan)
    frozen = tune(encoder, plan.tuning)
    return Network(encoder, head.outputs, dropout=plan.dropout, table=table, frozen=frozen, pooling=plan.pooling)


def build_dense(
    plan: NetworkPlan, *, channels: int, dimensions: int, head: Head, weights: bool = True, deep: bool = False
) -> DenseNetwork:
    """The network that a plan describes for a dense head; parameters and errors as of :func:`build_network`."""
    return build_unet(
        plan,
        channels=channels,
        dimensions=dimensions,
        outputs=head.outputs,
        stride=head.stride,
        weights=weights,
        deep=deep,
    )
