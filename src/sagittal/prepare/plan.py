"""Plan: every choice of a training run as plain data, each with its reason."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from sagittal.errors import ConfigError, nearest
from sagittal.labels import LabelScheme

PLAN_FORMAT = 1
#: How an answer with a place is written by a network: one output for each structure and one for the background, which
#: exclude each other; or one output for each structure alone, where structures overlap or are not known in every case.
Outputs = Literal["exclusive", "independent"]


@dataclass(frozen=True)
class ColumnPlan:
    """How one clinical column becomes numbers.

    ``number``: (value - mean) / std and a flag for missing. ``category``: one-hot over `categories` and a flag for
    missing or never seen.
    """

    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numbers that the column becomes."""
        return 2 if self.kind == "number" else len(self.categories) + 1


@dataclass(frozen=True)
class InputPlan:
    """What a study must be for the model: its contract with the outside."""

    images: tuple[str, ...] = ("image",)
    modality: str = "OT"
    body_part: str = ""
    unit: str = "1"
    dimensions: int = 2
    channels: int = 1
    table: tuple[ColumnPlan, ...] = ()


@dataclass(frozen=True)
class PreparePlan:
    """From a study to the network's array; the same for training and for a new study.

    Sizes and spacings are in the order of the array's axes: (rows, columns) in 2-D, (slices, rows, columns) in 3-D.

    Parameters
    ----------
    size : tuple of int
        Spatial size of the network's input.
    spacing_mm : tuple of float, optional
        Voxel size to resample to before padding or cropping to `size`; ``None`` stretches the image to `size`.
    keep_aspect : bool
        Whether an image that is not resampled by spacing keeps its aspect ratio, padded.
    clip : (low, high), optional
        Values are limited to this range first, in the image's unit.
    normalise : {"fixed", "image", "nonzero"}
        ``fixed`` subtracts `offset` and divides by `scale`, numbers of the data set; ``image`` uses mean and standard
        deviation of each image; ``nonzero`` those of its voxels that are not 0, for images whose background was cut out.
    offset, scale : tuple of float, one a channel
    store : {"uint8", "float16", "float32"}
        How prepared arrays are kept: ``uint8`` where the values are whole numbers 0..255 and normalised later.
    whole : bool
        True: every case becomes one array of `size`. False, for questions whose answer has a place: a case keeps its
        own size after resampling, and the network sees it through windows of `size`.
    zoom : tuple of float, optional
        Without `whole`: resampled size as a factor of the study's own, for images without a voxel size.
    orient : bool
        Whether the axes of volumes are brought along the patient's first, whatever order a file keeps
        them in; a volume without a position is then refused.
    crop : bool
        Without `whole`: whether a border of nothing but the lowest value is cut off first.
    """

    size: tuple[int, ...] = (28, 28)
    spacing_mm: tuple[float, ...] | None = None
    keep_aspect: bool = False
    clip: tuple[float, float] | None = None
    normalise: Literal["fixed", "image", "nonzero"] = "fixed"
    whole: bool = True
    zoom: tuple[float, ...] | None = None
    orient: bool = False
    crop: bool = False
    offset: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    store: Literal["uint8", "float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        if self.store == "uint8" and self.normalise != "fixed":
            raise ConfigError(
                f"prepare.store 'uint8' keeps whole numbers 0 to 255, but prepare.normalise '{self.normalise}' makes others. "
                "Set prepare.store to float16, or prepare.normalise to fixed."
            )


@dataclass(frozen=True)
class AugmentPlan:
    """Random changes of training images that leave the label as it is; each is a greatest strength.

    Parameters
    ----------
    flip : tuple of int
        Array axes that may be mirrored, 0 the first spatial axis.
    permute : bool
        Whether axes may be exchanged, for data without a preferred direction.
    rotate_deg : float
    scale : float
        0.2 enlarges or shrinks by a factor between 1/1.2 and 1.2.
    shear : float
    translate : float
        Fraction of the size.
    brightness, contrast, gamma, noise, blur : float
        In units of the normalised image's standard deviation, or relative for contrast and gamma.
    elastic : float
        Standard deviation of a smooth random displacement, as a fraction of the window's size.
    erase : float
        Probability that a random box is blanked.
    mixup : float
        Alpha of the Beta distribution of mixup (Zhang et al., ICLR 2018); 0 switches it off.
    """

    flip: tuple[int, ...] = ()
    permute: bool = False
    rotate_deg: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    elastic: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0


@dataclass(frozen=True)
class NetworkPlan:
    """The network, by the name of its family and its sizes.

    Parameters
    ----------
    name : str
        A family that ``networks.encoder.ENCODERS`` knows.
    width : int
        Channels of the first stage, where the family has a choice.
    depth : tuple of int
        Blocks of each stage.
    stem_stride : int
        By how much the first layer shrinks the image.
    dropout, drop_path : float
        Probability of dropping a feature before the head, or a residual branch.
    pooling : {"mean", "mean-max"}
        How the last feature map becomes a vector; the maximum keeps small findings.
    pretrained : str, optional
        ``package``, ``folder:PATH``, ``hub:NAME`` or ``None`` for random weights.
    tuning : {"full", "linear", "lora"}
        What of a pretrained network is trained.
    strides : one tuple a stage, each one number an axis
        Of a network with a decoder: by how much each stage shrinks its input; the first is that of the stem. As many as
        `depth` has entries.
    kernels : likewise
        Sizes of the convolutions of each stage: 1 along an axis whose voxels are still much longer than the others.
    most_width : int
        Of a network with a decoder: no stage has more channels.
    decoder_depth : int
        Of a network with a decoder: convolutions of each of its stages.
    head_stride : int
        Of detection: voxels along each edge of a cell of the map that the network gives.
    """

    name: str = "resnet-small"
    width: int = 32
    depth: tuple[int, ...] = (2, 2, 2)
    stem_stride: int = 1
    dropout: float = 0.0
    drop_path: float = 0.0
    pooling: Literal["mean", "mean-max"] = "mean"
    pretrained: str | None = None
    tuning: Literal["full", "linear", "lora"] = "full"
    strides: tuple[tuple[int, ...], ...] = ()
    kernels: tuple[tuple[int, ...], ...] = ()
    most_width: int = 320
    decoder_depth: int = 1
    head_stride: int = 1


@dataclass(frozen=True)
class TrainPlan:
    """How the network is trained.

    Parameters
    ----------
    optimizer : {"adamw", "sgd"}
    learning_rate, weight_decay : float
        `learning_rate` is the highest of the schedule.
    encoder_rate : float
        Factor on the learning rate for pretrained weights.
    schedule : {"cosine", "one-cycle", "constant"}
    warmup : float
        Fraction of the steps.
    epochs : float
        Passes over the training cases of one member.
    batch : int
    label_smoothing : float
    class_weights : {"none", "sqrt", "balanced"}
        Weight of a class in the loss: 1, or its inverse frequency to the power 1/2 or 1, mean 1 over cases.
    averaging : float
        Decay of the exponential moving average of weights, reached after a warm-up; 0 switches it off.
    precision : {"fp32", "bf16", "fp16"}
    channels_last : bool
    compile : bool
    patience : float
        Fraction of the epochs without a better validation loss after which a member stops; 0 never stops.
    keep : {"last", "best"}
        Whether a member keeps the weights of its end or those of its lowest validation loss.
    clip_norm : float
        Limit of the gradient's norm; 0 for none.
    cache_features : bool
        Whether the part of the network that nothing trains is computed once, for the images as they are: the trained part
        then sees no augmentation but mixup.
    mixup : float, optional
        In place of ``augment.mixup``.
    foreground : float
        Part of the windows of a batch that lie around a structure or object, each class in turn; the rest lie anywhere.
    loss : {"auto", "dice-ce", "dice-ce-cldice"}
        Of segmentation: Dice and cross-entropy in equal parts, and with them the centreline Dice for thin trees. ``auto`` is
        the only loss of other tasks.
    deep_supervision : bool
        Whether coarser stages of a decoder learn the target too, each with half the weight of the next finer one.
    windows : int
        Windows that one epoch draws, over all cases; 0 for one a case.
    steps : per member a tuple of (from step, total steps)
        How long each member was trained, as it was revised while the clock ran; empty before a run. A plan that holds them
        repeats the run whatever the machine's speed.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    encoder_rate: float = 1.0
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    warmup: float = 0.05
    epochs: float = 30.0
    batch: int = 64
    label_smoothing: float = 0.0
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    averaging: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    patience: float = 0.0
    keep: Literal["last", "best"] = "last"
    clip_norm: float = 0.0
    cache_features: bool = False
    mixup: float | None = None
    foreground: float = 0.5
    loss: Literal["auto", "dice-ce", "dice-ce-cldice"] = "auto"
    deep_supervision: bool = False
    windows: int = 0
    steps: tuple[tuple[tuple[int, int], ...], ...] = ()


@dataclass(frozen=True)
class CompanionPlan:
    """A second family of networks trained beside the main one, on the same folds; their logits are blended.

    `repeats` members with different seeds are trained for each fold, for as many epochs as `train` says.
    """

    network: NetworkPlan = field(default_factory=NetworkPlan)
    train: TrainPlan = field(default_factory=TrainPlan)
    repeats: int = 1


@dataclass(frozen=True)
class SplitPlan:
    """Which cases teach, which choose.

    Parameters
    ----------
    source : {"given", "made"}
        Whether the source's own splits are used or patient-grouped stratified ones are made.
    folds : int
        1: one model from train, chosen on val. More: that many cross-validation folds over train and val together, whose
        out-of-fold predictions calibrate and choose; their models are averaged.
    repeats : int
        Models with different seeds for each fold.
    val_fraction, test_fraction : float
        Of the patients, where splits are made; a test split is held out from a source that gives none.
    """

    source: Literal["given", "made"] = "made"
    folds: int = 1
    repeats: int = 1
    val_fraction: float = 0.15
    test_fraction: float = 0.2


@dataclass(frozen=True)
class DecidePlan:
    """From logits to an answer.

    Parameters
    ----------
    calibration : {"none", "temperature", "vector", "isotonic"}
        Fitted on validation cases.
    operating_point : str
        ``most-probable``; ``youden`` (highest sensitivity + specificity); ``balanced`` (probability divided by the class's
        frequency); ``sensitivity=0.95`` or ``specificity=0.95`` (the other as high as validation allows).
    confidence : float
        Level of the conformal sets.
    flips : tuple of int
        Array axes mirrored for test-time averaging.
    weights : tuple of float
        Share of each family of networks in the blended logits, the main one first; empty: chosen on validation.
    overlap : float
        Of neighbouring windows, as a fraction of their size, where the answer has a place.
    clean : bool
        Of segmentation: whether removing islands, filling holes and a least volume are tried on validation cases and kept
        for the structures that they help.
    tolerance_mm : float
        Of the surface Dice.
    gate : {"off", "flag", "abstain"}
        What happens to a study unlike the validation cases: nothing is measured; it is marked; it is marked and gets no
        decision.
    """

    calibration: Literal["none", "temperature", "vector", "isotonic"] = "vector"
    operating_point: str = "most-probable"
    confidence: float = 0.9
    flips: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    overlap: float = 0.5
    clean: bool = True
    tolerance_mm: float = 2.0
    gate: Literal["off", "flag", "abstain"] = "flag"


@dataclass(frozen=True)
class Plan:
    """Every choice of a training run.

    ``fixed`` names the fields that the user set; nothing changes those afterwards. ``why`` gives the reason of a choice under its dotted name: ``{"prepare.size": "median of 546 images"}``.
    ``outputs`` says of segmentation whether structures exclude each other.
    ``expect`` holds what the planner expects in seconds and megabytes. Both are text for people; nothing reads them.
    """

    scheme: LabelScheme
    task: str = "classify"
    outputs: Outputs = "exclusive"
    input: InputPlan = field(default_factory=InputPlan)
    prepare: PreparePlan = field(default_factory=PreparePlan)
    augment: AugmentPlan = field(default_factory=AugmentPlan)
    network: NetworkPlan = field(default_factory=NetworkPlan)
    train: TrainPlan = field(default_factory=TrainPlan)
    companions: tuple[CompanionPlan, ...] = ()
    split: SplitPlan = field(default_factory=SplitPlan)
    decide: DecidePlan = field(default_factory=DecidePlan)
    seed: int = 0
    budget_s: float | None = None
    fixed: tuple[str, ...] = ()
    expect: Mapping[str, float] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    format: int = PLAN_FORMAT

    @property
    def families(self) -> tuple[Plan, ...]:
        """One plan a family of networks, the main one first; each alike but for its network and training."""
        alone = dataclasses.replace(self, companions=())
        return (alone, *(dataclasses.replace(alone, network=c.network, train=c.train) for c in self.companions))

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them back."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["scheme"] = self.scheme.to_json()
        for name in _SECTIONS:
            values[name] = dataclasses.asdict(values[name])
        values["companions"] = [dataclasses.asdict(companion) for companion in self.companions]
        values["expect"], values["why"] = dict(self.expect), dict(self.why)
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return {"format": plain.pop("format"), "task": plain.pop("task"), **plain}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: str = "plan.json") -> Plan:
        """Check and read plain values.

        Raises
        ------
        ConfigError
            If a key is unknown (the nearest is suggested), a value has the wrong type, or the format is newer.
        """
        newer = values.get("format", PLAN_FORMAT)
        if not isinstance(newer, int) or newer > PLAN_FORMAT:
            raise ConfigError(
                f"{where}: the plan has format {newer}, this version reads up to {PLAN_FORMAT}. Install a newer Sagittal."
            )
        if "scheme" not in values:
            raise ConfigError(f"{where}: has no label scheme under 'scheme'")
        rest = {key: value for key, value in values.items() if key != "scheme"}
        try:
            scheme = LabelScheme.from_json(values["scheme"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{where}: 'scheme' is not a label scheme: {error}") from error
        return _build(cls, rest, where, extra={"scheme": scheme})

    def save(self, path: Path) -> None:
        """Write the plan as indented JSON."""
        path.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan that was saved, perhaps edited by hand."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path.name}: is not a plan that can be read: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path.name}: expected an object with the plan's sections, found {type(values).__name__}"
            )
        return cls.from_json(values, where=path.name)

    def override(self, changes: Mapping[str, str]) -> Plan:
        """The plan with fields replaced: ``{"network.width": "48", "train.batch": "32"}``.

        The part before the dot may be left out where the field's name is used once.
        """
        values = self.to_json()
        for key, text in changes.items():
            section, name = _resolve(key)
            place = values[section] if section else values
            try:
                place[name] = json.loads(text)
            except ValueError:
                place[name] = text
            full = f"{section}.{name}" if section else name
            values["why"][full] = "set by the user"
            values["fixed"] = sorted({*values["fixed"], full})
        return Plan.from_json(values, where="overrides")


_SECTIONS: dict[str, type] = {
    "input": InputPlan,
    "prepare": PreparePlan,
    "augment": AugmentPlan,
    "network": NetworkPlan,
    "train": TrainPlan,
    "split": SplitPlan,
    "decide": DecidePlan,
}

T = TypeVar("T")


def _resolve(key: str) -> tuple[str, str]:
    """Section and field of a dotted or bare key."""
    known = {f"{s}.{f.name}" for s, cls in _SECTIONS.items() for f in dataclasses.fields(cls)} | {"seed", "outputs"}
    if key in known:
        section, _, name = key.rpartition(".")
        return section, name
    bare = [name for name in known if name.rpartition(".")[2] == key]
    if len(bare) == 1:
        section, _, name = bare[0].rpartition(".")
        return section, name
    if bare:
        raise ConfigError(
            f"'{key}' stands in several sections of the plan: {', '.join(sorted(bare))}. Name one in full."
        )
    raise ConfigError(f"the plan has no field '{key}'. {nearest(key, known | {k.rpartition('.')[2] for k in known})}")


def _build(cls: type[T], values: Mapping[str, Any], where: str, extra: Mapping[str, Any] | None = None) -> T:
    """A dataclass from plain values, with types checked and unknown keys refused."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = dict(extra or {})
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'. {nearest(key, known)}")
        arguments[key] = _convert(value, hints[key], f"{where}: {key}")
    return cls(**arguments)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A plain JSON value as the type that a field declares."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, found {value!r}")
        return _build(hint, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(value, next(o for o in options if o is not type(None)), where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where}: {value!r} is not a choice. {nearest(str(value), map(str, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        if options[-1] is Ellipsis:
            return tuple(_convert(v, options[0], where) for v in value)
        if len(value) != len(options):
            raise ConfigError(f"{where}: expected {len(options)} values, found {len(value)}")
        return tuple(_convert(v, o, where) for v, o in zip(value, options, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, found {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
