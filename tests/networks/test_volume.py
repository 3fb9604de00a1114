import pytest
import torch
from torch import nn

from sagittal.networks.volume import build_volume_encoder, space_to_depth
from sagittal.prepare.plan import NetworkPlan


@pytest.mark.parametrize(
    ("size", "stem_stride", "expected"),
    [
        ((28, 28, 28), 2, (4, 4, 4)),
        ((9, 14, 20), 2, (2, 2, 3)),
        ((12, 12, 12), 1, (3, 3, 3)),
        ((20, 20, 20), 4, (2, 2, 2)),
    ],
)
def test_encoder_gives_a_feature_map(size, stem_stride, expected):
    plan = NetworkPlan(width=8, depth=(1, 1, 2), stem_stride=stem_stride)
    encoder = build_volume_encoder(plan, channels=2).eval()
    out = encoder(torch.zeros(2, 2, *size))
    assert out.shape == (2, encoder.features, *expected)
    assert encoder.features == 32


def test_one_training_step_lowers_the_loss_and_reaches_all_weights():
    torch.manual_seed(0)
    encoder = build_volume_encoder(NetworkPlan(width=8, depth=(1, 1), stem_stride=2, drop_path=0.1), channels=1)
    head = nn.Linear(encoder.features, 1)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    x, y = torch.randn(8, 1, 12, 12, 12), torch.tensor([[0.0], [1.0]] * 4)
    losses = []
    for _ in range(10):
        loss = nn.functional.binary_cross_entropy_with_logits(head(encoder(x).mean((2, 3, 4))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in parameters)


def test_drop_path_is_off_in_evaluation():
    encoder = build_volume_encoder(NetworkPlan(width=4, depth=(1, 2), stem_stride=2, drop_path=0.5), channels=1).eval()
    x = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(encoder(x), encoder(x))


def test_space_to_depth_keeps_each_block_together():
    x = torch.arange(4 * 4 * 6).view(1, 1, 4, 4, 6)
    out = space_to_depth(x, 2)
    assert out.shape == (1, 8, 2, 2, 3)
    assert torch.equal(out[0, :, 1, 0, 2], x[0, 0, 2:4, 0:2, 4:6].flatten())


def test_space_to_depth_pads_with_the_border():
    out = space_to_depth(torch.arange(3.0).view(1, 1, 1, 1, 3), 2)
    assert out.shape == (1, 8, 1, 1, 2)
    assert out[0, :, 0, 0, 1].unique().tolist() == [2]
