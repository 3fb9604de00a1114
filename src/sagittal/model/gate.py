"""Gate: whether a study is of the kind that the model was made for.

Two questions. *Scope*: do modality, unit and dimensions agree with the plan? If not, the study is refused, for any answer
would be about something else. *Likeness*: does the network see in it what it saw in validation cases? A Mahalanobis
distance between embeddings (Lee et al., NeurIPS 2018), with the covariance of a probabilistic principal component analysis
(Tipping and Bishop, J R Stat Soc B 61:611, 1999) because there are more features than cases, says how unusual it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import DataError, PackageError, ScopeError
from sagittal.image import Image
from sagittal.prediction import Verdict
from sagittal.prepare.plan import Plan
from sagittal.types import Floats

#: Modalities that record the same kind of picture (DICOM PS3.3 C.7.3.1.1.1).
SAME_KIND = ({"CR", "DX", "RG"}, {"XC", "DMS", "GM"}, {"OP", "OPM"})

LEAST_CASES = 20
MOST_AXES = 64
FOLDS = 5
#: The share of validation cases that lies beyond the limit, at most.
BEYOND = 0.005


def check_scope(image: Image, plan: Plan, case: str) -> None:
    """Refuse an image of another modality or unit than the model was made for.

    Number of dimensions and channels are checked by :func:`sagittal.prepare.arrays.prepare_case`. What a file does not
    say cannot be checked: the modality ``"OT"`` passes.

    Raises
    ------
    ScopeError
        With what was found and what the model was made for.
    """
    made_for = plan.input
    if not _same_modality(image.modality, made_for.modality):
        raise ScopeError(
            f"case {case}: is a study of modality {image.modality}, the model was made for {made_for.modality}. "
            f"Use a model that was trained on {image.modality} studies."
        )
    values = {"1": "values without a unit"}
    stated = made_for.unit != "1" or (image.unit != "1" and plan.prepare.store == "uint8")
    if stated and image.unit != made_for.unit:
        raise ScopeError(
            f"case {case}: has {values.get(image.unit, f'values in {image.unit}')}, the model was made for "
            f"{values.get(made_for.unit, f'values in {made_for.unit}')}. Give it the original study, not a picture of it."
            if made_for.unit != "1"
            else f"case {case}: has values in {image.unit}, the model was made for pictures of whole numbers 0 to 255. "
            "Export the study as such pictures, or train a model on the original values."
        )


def _same_modality(found: str, expected: str) -> bool:
    if "OT" in (found, expected) or not found or not expected or found == expected:
        return True
    return any(found in kind and expected in kind for kind in SAME_KIND)


@dataclass(frozen=True, eq=False)
class Space:
    """Where the embeddings of one network lie.

    Parameters
    ----------
    mean : (F,) float32
    axes : (R, F) float32
        Orthonormal directions of largest variance.
    variances : (R,) float32
    rest : float
        Variance along each of the other F - R directions.
    typical : float
        Median distance of cases that were left out of the fit; the unit of the distances.
    """

    mean: Floats
    axes: Floats
    variances: Floats
    rest: float
    typical: float = 1.0

    def distance(self, embeddings: Floats) -> Floats:
        """Mahalanobis distance of (N, F) embeddings in units of the typical one, (N,)."""
        if embeddings.shape[1] != len(self.mean):
            raise DataError(f"the gate knows {len(self.mean)} features, these embeddings have {embeddings.shape[1]}")
        centred = np.asarray(embeddings, dtype=np.float64) - self.mean
        along = centred @ np.asarray(self.axes, dtype=np.float64).T  # (N, R)
        squared = np.sum(along**2 / self.variances, axis=1)
        left = np.maximum(np.sum(centred**2, axis=1) - np.sum(along**2, axis=1), 0)
        return np.asarray(np.sqrt(squared + left / self.rest) / self.typical)


@dataclass(frozen=True, eq=False)
class Gate:
    """How far a study may lie from validation cases.

    Parameters
    ----------
    spaces : tuple of Space, one a network
    reference : (Q,) float32, ascending
        Distances of validation cases, each from a fit without it; thinned to at most 1001 quantiles.
    limit : float
        Distance beyond which a study is not accepted.
    cases : int
        Validation cases behind it.
    abstains : bool
        Whether the model also makes no decision about a study that is not accepted.
    """

    spaces: tuple[Space, ...]
    reference: Floats
    limit: float
    cases: int
    abstains: bool = False

    def judge(self, embeddings: Sequence[Floats]) -> list[Verdict]:
        """The verdict on each of N studies from their embeddings (N, F) by each network."""
        verdicts = []
        for distance in self.distances(embeddings):
            if not math.isfinite(distance):
                verdicts.append(Verdict(False, "the network's view of the study is not finite", 1.0))
                continue
            score = float(np.searchsorted(self.reference, distance, side="right") / len(self.reference))
            reason = ""
            if distance > self.limit:
                reason = (
                    f"unlike the cases the model knows: {distance:.1f} times as far from their centre as a typical one, "
                    f"accepted are {self.limit:.1f} times"
                )
            verdicts.append(Verdict(not reason, reason, score))
        return verdicts

    def distances(self, embeddings: Sequence[Floats]) -> Floats:
        """Mean over networks of the distance, (N,), from (N, F) embeddings by each."""
        if len(embeddings) != len(self.spaces):
            raise DataError(f"the gate knows {len(self.spaces)} networks, {len(embeddings)} gave embeddings")
        return np.asarray(np.mean([s.distance(e) for s, e in zip(self.spaces, embeddings, strict=True)], axis=0))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Floats]]:
        """Plain values and arrays; :meth:`from_parts` reads them back."""
        arrays: dict[str, Floats] = {"reference": self.reference}
        for n, space in enumerate(self.spaces):
            arrays |= {f"{n}.mean": space.mean, f"{n}.axes": space.axes, f"{n}.variances": space.variances}
        values = {
            "limit": self.limit,
            "cases": self.cases,
            "abstains": self.abstains,
            "spaces": [{"rest": s.rest, "typical": s.typical} for s in self.spaces],
        }
        return values, arrays

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], arrays: Mapping[str, Floats]) -> Gate:
        """Check and read what :meth:`to_parts` wrote."""
        try:
            spaces = tuple(
                Space(
                    arrays[f"{n}.mean"],
                    arrays[f"{n}.axes"],
                    arrays[f"{n}.variances"],
                    float(entry["rest"]),
                    float(entry["typical"]),
                )
                for n, entry in enumerate(values["spaces"])
            )
            gate = cls(
                spaces, arrays["reference"], float(values["limit"]), int(values["cases"]), values["abstains"] is True
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"gate: holds values of the wrong type, or misses one: {error}") from error
        for s in spaces:
            fits = s.mean.ndim == 1 and s.axes.shape == (len(s.variances), len(s.mean)) and s.variances.ndim == 1
            if not fits or not (s.rest > 0 and s.typical > 0 and np.all(s.variances > 0)):
                raise PackageError("gate: shapes do not fit, or variances are not positive")
        if not spaces or gate.reference.ndim != 1 or not len(gate.reference) or not gate.limit > 0:
            raise PackageError("gate: has no reference or no limit")
        return gate


def fit_gate(embeddings: Sequence[Floats], *, abstains: bool = False) -> Gate | None:
    """The gate from embeddings of validation cases; ``None`` where there are fewer than 20 of them.

    Parameters
    ----------
    embeddings : sequence of (N_m, F) float, one a network
        Of cases that network did not learn from; embeddings of its own training cases lie too close together.
    abstains : bool

    Notes
    -----
    The limit is the larger of the 99.5th percentile of the left-out distances and the point four deviations (of the
    normal distribution with the same median and median absolute deviation of the logarithm) above their median, so that
    neither a small nor a clean validation set makes the gate refuse ordinary cases.
    """
    clean = [np.asarray(e, dtype=np.float64) for e in embeddings]
    clean = [e[np.all(np.isfinite(e), axis=1)] for e in clean]
    if not clean or min(map(len, clean)) < LEAST_CASES:
        return None
    spaces, left_out = [], []
    for e in clean:
        fold = np.arange(len(e)) % FOLDS
        distance = np.empty(len(e))
        for f in range(FOLDS):
            distance[fold == f] = _fit_space(e[fold != f]).distance(e[fold == f])
        typical = max(float(np.median(distance)), 1e-12)
        whole = _fit_space(e)
        spaces.append(Space(whole.mean, whole.axes, whole.variances, whole.rest, typical))
        left_out.append(distance / typical)
    reference = np.sort(np.concatenate(left_out))
    logs = np.log(np.maximum(reference, 1e-6))
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    limit = max(float(np.quantile(reference, 1 - BEYOND)), float(np.exp(np.median(logs) + 4 * spread)))
    kept = np.quantile(reference, np.linspace(0, 1, min(len(reference), 1001)))
    return Gate(tuple(spaces), kept.astype(np.float32), limit, len(reference), abstains)


def _fit_space(embeddings: Floats) -> Space:
    count, features = embeddings.shape
    mean = embeddings.mean(axis=0)
    _, singular, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
    variances = singular**2 / (count - 1)
    total = float(np.sum(variances))
    floor = max(1e-6 * total / features, 1e-12)  # a dead feature must not make each new value infinitely far
    rank = min(MOST_AXES, count // 5, features)
    kept = np.maximum(variances[:rank], floor)
    rest = max((total - float(np.sum(variances[:rank]))) / max(features - rank, 1), floor)
    return Space(mean.astype(np.float32), axes[:rank].astype(np.float32), kept.astype(np.float32), rest)
