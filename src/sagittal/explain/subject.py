"""Subject: one study and one class before a model, ready for questions about what its answer rests on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sagittal.case import Case
from sagittal.errors import ConfigError, nearest
from sagittal.model.calibrate import to_probabilities
from sagittal.model.package import Model
from sagittal.model.predictor import hold
from sagittal.networks.heads import Network
from sagittal.prepare.arrays import Prepared, prepare_case, to_input
from sagittal.types import Floats

#: Numbers of the network's input that are computed at once: 16 MB of float32.
BATCH_NUMBERS = 4_000_000

#: Standard deviation of the baseline's blur, as a share of the image's shortest side.
BLUR = 0.25


@dataclass(frozen=True, eq=False)
class Subject:
    """A study as the networks see it, and the class that is asked about.

    Parameters
    ----------
    model : Model
        Mirror images, which a prediction may average over, are left out here.
    prepared : Prepared
    image : (1, C, *size) float32 Tensor
        The network's input.
    table : (1, T) float32 Tensor, optional
        Held fixed: maps are about the image.
    target : int
        Number of the class.
    """

    model: Model
    prepared: Prepared
    image: Tensor
    table: Tensor | None
    target: int

    @classmethod
    def of(cls, model: Model, case: Case, target: str | None = None) -> Subject:
        """Read and prepare a case; without a target the most probable class is asked about.

        Raises
        ------
        ReadError, GeometryError, DataError, ScopeError
            As in prediction.
        ConfigError
            If the model has no such class.
        """
        classes = model.plan.scheme.classes
        if target is not None and target not in classes:
            raise ConfigError(f"the model has no class '{target}'. {nearest(target, classes)}")
        prepared = prepare_case(hold(case, model.plan), model.plan)
        stored = torch.from_numpy(np.ascontiguousarray(prepared.array)).to(model.device)[None]
        table = torch.from_numpy(prepared.table).to(model.device)[None] if len(prepared.table) else None
        subject = cls(model, prepared, to_input(stored, model.plan.prepare), table, 0)
        chosen = int(np.argmax(subject.probabilities(subject.image)[0])) if target is None else classes.index(target)
        return cls(model, prepared, subject.image, table, chosen)

    @property
    def name(self) -> str:
        """The class that is asked about."""
        return self.model.plan.scheme.classes[self.target]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the network's input."""
        return tuple(self.image.shape[2:])

    @cached_property
    def baseline(self) -> Tensor:
        """The image without its detail, (1, C, *size): blurred by a quarter of its shortest side.

        A constant would add edges that no training image has, and the network's answer to those is not about the study.
        """
        sigma = BLUR * min(self.size)
        blurred = [gaussian_filter(c, sigma, mode="nearest") for c in self.image[0].cpu().numpy()]
        return torch.from_numpy(np.stack(blurred)).to(self.image)[None]

    def logits(self, images: Tensor) -> Floats:
        """Blended logits before calibration, (N, classes) float64, of network inputs (N, C, *size)."""
        size = max(1, BATCH_NUMBERS // self.image.numel())
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), size):
                batch = images[start : start + size].to(self.image)
                table = self.table_for(batch)
                total = torch.zeros((), dtype=torch.float64)
                for number, (member, weight) in enumerate(self.members):
                    maps = self.model.predictor.feature_map(number, batch)
                    total = total + weight * member.classify_features(maps, table).double().cpu()
                parts.append(total.numpy())
        return np.concatenate(parts)

    def probabilities(self, images: Tensor) -> Floats:
        """Calibrated probabilities (N, classes)."""
        calibration = self.model.calibration
        return to_probabilities(calibration.apply(self.logits(images)), calibration.link)

    def scores(self, images: Tensor) -> Floats:
        """Calibrated probability of the class, (N,)."""
        return np.asarray(self.probabilities(images)[:, self.target])

    @property
    def members(self) -> list[tuple[Network, float]]:
        """The networks and their weights in the answer."""
        return list(zip(self.model.members, self.model.weights, strict=True))

    def table_for(self, images: Tensor) -> Tensor | None:
        """The table's row once for each image."""
        return None if self.table is None else self.table.expand(len(images), -1)

    def log_odds(self, logits: Tensor) -> Tensor:
        """What is explained, (N,): the class's logit against the others together; of several labels its own logit.

        Not the plain logit: what raises all classes alike says nothing for this one.
        """
        own = logits[:, self.target]
        if not self.model.plan.scheme.exclusive:
            return own
        others = torch.cat([logits[:, : self.target], logits[:, self.target + 1 :]], dim=1)
        return own - torch.logsumexp(others, dim=1)
