import pytest
import torch
from torch import Tensor

from sagittal.errors import ConfigError, DataError
from sagittal.networks import ENCODERS, Head, Network, build_network
from sagittal.networks.heads import pool
from sagittal.prepare.plan import NetworkPlan

TWO_D = sorted(set(ENCODERS) - {"transformers"})
THREE_D = sorted(set(ENCODERS) - {"transformers", "efficientnet-lite0"})
NEEDS_MONAI = {"densenet121", "efficientnet-b0", "resnet18", "resnet34", "resnet50"}


def plan_for(name: str, **changes: object) -> NetworkPlan:
    stride = 8 if name.startswith("vit") else 4 if name in NEEDS_MONAI else 1
    return NetworkPlan(**{"name": name, "width": 8, "depth": (1, 1), "stem_stride": stride, **changes})  # type: ignore[arg-type]


def build(name: str, *, channels: int = 1, dimensions: int = 2, table: int = 0, **changes: object) -> Network:
    if name in NEEDS_MONAI:
        pytest.importorskip("monai")
    torch.manual_seed(0)
    plan = plan_for(name, **changes)
    return build_network(plan, channels=channels, dimensions=dimensions, head=Head("vector", 3), table=table)


def images(channels: int = 1, dimensions: int = 2, size: int = 32) -> Tensor:
    # Not a cube: exchanged axes show.
    shape = (size, size + 8) if dimensions == 2 else (size, size + 8, size)
    return torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TWO_D)
def test_parts_make_the_whole_2d(name: str, channels: int) -> None:
    check_parts(build(name, channels=channels).eval(), images(channels))


@pytest.mark.parametrize("name", THREE_D)
def test_parts_make_the_whole_3d(name: str) -> None:
    check_parts(build(name, dimensions=3).eval(), images(dimensions=3))


def check_parts(network: Network, image: Tensor) -> None:
    with torch.no_grad():
        feature_map = network.feature_map(image)
        logits = network(image)
        assert feature_map.ndim == image.ndim
        assert feature_map.shape[:2] == (2, network.features)
        assert logits.shape == (2, 3)
        assert torch.equal(logits, network.classify_features(feature_map))
        assert torch.equal(network.embed(image), pool(feature_map))


@pytest.mark.parametrize("name", TWO_D)
def test_one_training_step_lowers_the_loss(name: str) -> None:
    network = build(name).train()
    image, truth = images(size=64), torch.tensor([0, 2])
    # Plain gradient descent with a small step: no optimiser's first step can overshoot.
    before = torch.nn.functional.cross_entropy(network(image), truth)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        norm = torch.sqrt(sum((p.grad.square().sum() for p in network.parameters()), torch.zeros(())))  # type: ignore[union-attr]
        for parameter in network.parameters():
            parameter.sub_(1e-2 * parameter.grad / norm)
    assert torch.nn.functional.cross_entropy(network(image), truth) < before


def test_same_seed_gives_same_weights() -> None:
    one, two = build("resnet-small").state_dict(), build("resnet-small").state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_table_joins_the_features() -> None:
    network = build("resnet-small", table=4).eval()
    image, table = images(), torch.randn(2, 4)
    assert network(image, table).shape == (2, 3)
    assert not torch.equal(network(image, table), network(image, table + 1))
    feature_map = network.feature_map(image)
    assert torch.equal(network.classify_features(feature_map, table), network(image, table))


def test_table_of_another_width_is_refused() -> None:
    network = build("resnet-small", table=4)
    with pytest.raises(DataError, match="made for 4 table columns, this case has 0"):
        network(images())
    with pytest.raises(DataError, match="made for 4 table columns, this case has 3"):
        network(images(), torch.zeros(2, 3))


def test_dense_head_needs_a_network_with_a_decoder() -> None:
    with pytest.raises(ConfigError, match="'resnet-small' gives one answer for an image"):
        build_network(plan_for("resnet-small"), channels=1, dimensions=2, head=Head("dense", 2))
    with pytest.raises(ConfigError, match="takes no table; the plan has 4 columns"):
        build_network(plan_for("unet"), channels=1, dimensions=2, head=Head("dense", 2), table=4)


def test_head_without_outputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="one output or more, not 0"):
        Head("vector", 0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mean_max_pooling_sees_a_single_bright_place(dimensions: int) -> None:
    maps = torch.zeros(1, 4, *[16] * dimensions)
    maps[(0, 2, *[5] * dimensions)] = 1.0
    pooled = pool(maps, "mean-max")
    assert pooled.shape == (1, 8)
    assert pooled[0, 6] == 1.0
    assert pooled[0, 2] < 0.01
    plan = NetworkPlan("resnet-small", 8, (1,), pooling="mean-max")
    network = build_network(plan, channels=1, dimensions=dimensions, head=Head("vector", 3)).eval()
    image = torch.randn(2, 1, *[16] * dimensions)
    torch.testing.assert_close(network(image), network.classify_features(network.feature_map(image)))
