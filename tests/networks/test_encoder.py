import math

import pytest
import torch

from sagittal.errors import ConfigError, MissingPackageError
from sagittal.networks import build_encoder
from sagittal.networks.encoder import DropPath, SmallResNet, VisionTransformer, patch_positions
from sagittal.prepare.plan import NetworkPlan


@pytest.mark.parametrize(
    ("name", "suggestion"), [("resnet-smal", "resnet-small"), ("efficientnet_b0", "efficientnet-b0")]
)
def test_unknown_name_suggests_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=f"no network is called '{name}'. Did you mean '{suggestion}'"):
        build_encoder(NetworkPlan(name=name), channels=1, dimensions=2)


def test_four_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 or 3 dimensions, not 4"):
        build_encoder(NetworkPlan(), channels=1, dimensions=4)


def test_lite0_in_3d_is_refused() -> None:
    with pytest.raises(ConfigError, match="'efficientnet-lite0' is for 2-D images"):
        build_encoder(NetworkPlan(name="efficientnet-lite0"), channels=1, dimensions=3)


def test_missing_monai_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets.resnet", None)
    with pytest.raises(MissingPackageError, match=r"'resnet18' needs the package 'monai'.*sagittal\[networks\]"):
        build_encoder(NetworkPlan(name="resnet18"), channels=1, dimensions=2)


@pytest.mark.parametrize("size", [28, 29, 64])
def test_each_stage_after_the_first_halves_the_image(size: int) -> None:
    encoder = SmallResNet(1, 8, (1, 1, 1))
    feature_map = encoder(torch.zeros(2, 1, size, size))
    quarter = math.ceil(math.ceil(size / 2) / 2)
    assert feature_map.shape == (2, 32, quarter, quarter)


def test_stem_stride_shrinks_the_image() -> None:
    assert SmallResNet(1, 8, (1, 1), stem_stride=2)(torch.zeros(2, 1, 64, 64)).shape == (2, 16, 16, 16)


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_monai_resnet_shrinks_by_its_stem(stem_stride: int) -> None:
    pytest.importorskip("monai")
    encoder = build_encoder(NetworkPlan(name="resnet18", stem_stride=stem_stride), channels=1, dimensions=2).eval()
    edge = 64 // stem_stride // 8
    assert encoder(torch.zeros(1, 1, 64, 64)).shape == (1, 512, edge, edge)


def test_vision_transformer_pads_to_whole_patches() -> None:
    encoder = VisionTransformer(1, 2, width=16, depth=1, heads=2, patch=8)
    assert encoder(torch.zeros(1, 1, 17, 24)).shape == (1, 16, 3, 3)


def test_patch_positions_differ_and_start_with_no_angle() -> None:
    table = patch_positions((2, 3), 16)[0]
    assert table.shape == (6, 16)
    assert len(torch.unique(table, dim=0)) == 6
    # sin 0 = 0 and cos 0 = 1 for both axes, four frequencies each
    assert torch.equal(table[0], torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4))


def test_drop_path_keeps_the_mean_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 1, 1, 1))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1, abs=0.05)  # five standard errors of .009
    assert torch.equal(layer.eval()(torch.ones(3, 1)), torch.ones(3, 1))
