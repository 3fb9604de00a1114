import math

import pytest
import torch
from torch import nn

from sagittal.networks.descriptors import (
    DescriptorEncoder,
    count_measures,
    measure,
    smooth,
)

# The last measures say where the substance lies: centre, share of the surface, and six covariances.
PLACE = 3 + 3 + 6


def make_ball(radius: float, size: tuple[int, int, int] = (20, 24, 22)) -> torch.Tensor:
    axes = [torch.arange(n) - (n - 1) / 2 for n in size]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    return (distance <= radius).float()[None, None]


@pytest.mark.parametrize("shape", [(3, 2, 17, 20), (3, 1, 9, 12, 15)])
def test_encoder_gives_one_place_and_trains(shape):
    torch.manual_seed(0)
    encoder = DescriptorEncoder(shape[1], len(shape) - 2, width=16)
    out = encoder(torch.rand(shape))
    assert out.shape == (3, 16, *[1] * (len(shape) - 2))
    out.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_encoder_learns_thickness():
    torch.manual_seed(0)
    x = torch.cat([make_ball(r) for r in (3, 7, 3.5, 7.5, 4, 8)])
    y = torch.tensor([[0.0], [1.0]] * 3)
    encoder = DescriptorEncoder(1, 3, width=16, dropout=0.0, noise=0.0)
    network = nn.Sequential(encoder, nn.Flatten(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.binary_cross_entropy_with_logits(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_measures_are_finite_for_constant_and_dotted_images():
    dot = torch.zeros(1, 1, 8, 9, 10)
    dot[0, 0, 3, 4, 5] = 7
    for x in (torch.zeros(2, 2, 5, 6, 7), torch.full((1, 1, 8, 8), -3.0), dot, torch.zeros(1, 1, 1, 1, 1)):
        assert measure(x).isfinite().all()


def test_measures_come_channel_by_channel():
    x = torch.rand(2, 3, 8, 9, 10)
    out = measure(x)
    assert out.shape == (2, 3 * count_measures(3))
    torch.testing.assert_close(out[:, : count_measures(3)], measure(x[:, :1]))


def test_measures_do_not_depend_on_the_batch():
    x = torch.rand(3, 1, 8, 9, 10)
    torch.testing.assert_close(measure(x)[1:2], measure(x[1:2]), atol=1e-4, rtol=1e-4)


def test_measures_other_than_place_ignore_mirroring_and_axis_order():
    x = torch.rand(2, 1, 9, 9, 9)  # odd: every second voxel is the same from both ends
    before = measure(x)[:, :-PLACE]
    torch.testing.assert_close(measure(x.flip(2))[:, :-PLACE], before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(measure(x.permute(0, 1, 4, 2, 3))[:, :-PLACE], before, atol=1e-4, rtol=1e-4)


def test_amount_and_extent_of_a_block():
    x = torch.zeros(1, 1, 11, 11, 11)
    x[0, 0, 2:9, 4:7, 4:7] = 5.0
    low, high, _, amount, extent = measure(x)[0, :5].tolist()
    assert (low, high) == (0, 5)
    assert amount == pytest.approx(math.log(7 * 3 * 3), abs=1e-4)
    # Variance of n equal places one voxel (0.2) apart: 0.2**2 * (n * n - 1) / 12.
    assert extent == pytest.approx(math.log(0.04 * (48 + 8 + 8) / 12) / 2, abs=1e-4)


def test_smooth_is_the_mean_of_three_along_each_axis():
    x = torch.zeros(1, 7, 7)
    x[0, 3, 3] = 9
    out = smooth(x, 2)
    assert out[0, 1::2, 1::2].tolist() == [[1, 1, 1]] * 3
    assert out.sum().item() == pytest.approx(9)
