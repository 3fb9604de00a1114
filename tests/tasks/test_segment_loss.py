"""Losses of segmentation against MONAI's and against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, SoftclDiceLoss
from monai.losses.cldice import soft_skel
from torch.nn import functional

from sagittal.tasks.segment_loss import (
    CENTRELINE,
    UNKNOWN,
    Parts,
    segmentation_loss,
    shrink_target,
    soft_skeleton,
)


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def drawn(*size: int, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *size, generator=rng)
    target = torch.randint(0, classes, (2, *size), generator=rng, dtype=torch.uint8)
    return logits, target


@pytest.mark.parametrize("size", [(12, 9), (6, 8, 5)])
def test_exclusive_loss_and_gradient_are_those_of_monai(size: tuple[int, ...]) -> None:
    logits, target = drawn(*size)
    logits.requires_grad_()
    # MONAI's smoothing constants are parameters of its own; its batch Dice with ours is our definition.
    peer = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )
    ours, theirs = segmentation_loss([logits], target, "exclusive"), peer(logits, target[:, None].long())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    mine, other = gradient_of(ours, logits), gradient_of(theirs, logits)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_independent_loss_is_that_of_monai() -> None:
    logits, _ = drawn(6, 8, 5)
    target = torch.randint(0, 2, logits.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    peer = DiceCELoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0, lambda_ce=0.0)
    dice = float(peer(logits, target.float()))
    entropy = float(functional.binary_cross_entropy_with_logits(logits, target.float()))
    assert float(segmentation_loss([logits], target, "independent")) == pytest.approx(dice + entropy, rel=1e-5)


@pytest.mark.parametrize("size", [(32, 40), (12, 20, 16)])
def test_centreline_loss_is_that_of_monai(size: tuple[int, ...]) -> None:
    logits = drawn(*size, classes=2)[0][:1]
    smooth = functional.avg_pool2d if len(size) == 2 else functional.avg_pool3d
    target = (smooth(torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(3)), 3, 1, 1)[:, 0] > 0.1).byte()
    parts = Parts(logits, target, "exclusive")
    onehot = torch.stack([target == 0, target == 1], dim=1).float()
    # One case: MONAI takes the mean over cases, where ours is of the batch, and adds `smooth` to the last denominator.
    peer = SoftclDiceLoss(iter_=5, smooth=1e-9, include_background=False)
    assert float(parts.centreline()) == pytest.approx(float(peer(onehot, logits.softmax(1))), rel=1e-5)
    expected = parts.entropy() + (1 - CENTRELINE) * parts.dice() + CENTRELINE * parts.centreline()
    assert float(segmentation_loss([logits], target, "exclusive", centreline=True)) == pytest.approx(float(expected))


@pytest.mark.parametrize("size", [(30, 41), (14, 18, 11)])
def test_soft_skeleton_is_that_of_monai(size: tuple[int, ...]) -> None:
    x = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(soft_skeleton(x, 3), soft_skel(x, 3))


def test_skeleton_of_a_bar_is_its_middle_line() -> None:
    bar = torch.zeros(1, 1, 21, 41)
    bar[0, 0, 8:13, 5:36] = 1  # 5 wide: the middle row is 10
    line = soft_skeleton(bar)[0, 0]
    assert line[10, 8:33].eq(1).all()
    assert line[:10, 9:32].eq(0).all()
    assert line[11:, 9:32].eq(0).all()


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
@pytest.mark.parametrize("centreline", [False, True])
def test_unknown_voxels_teach_nothing(outputs: Any, centreline: bool) -> None:
    logits, target = drawn(10, 12)
    if outputs == "independent":
        target = torch.randint(0, 2, logits.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    hidden = torch.zeros_like(target, dtype=torch.bool)
    hidden[..., 3:9] = True
    target = torch.where(hidden, UNKNOWN, target)
    loss = segmentation_loss([logits.requires_grad_()], target, outputs, centreline=centreline)
    gradient = gradient_of(loss, logits)
    if not centreline:  # a skeleton is changed by its neighbours
        assert gradient[..., 3:9].abs().max() == 0
        changed = logits.detach().clone()
        changed[..., 3:9] += 5
        assert float(segmentation_loss([changed], target, outputs)) == pytest.approx(loss.item(), rel=1e-6)
    assert gradient[..., :3].abs().min() > 0
    assert torch.isfinite(gradient).all()


def test_a_batch_of_nothing_but_unknown_has_no_loss_and_no_gradient() -> None:
    for outputs, target in (
        ("exclusive", torch.full((2, 6, 6), UNKNOWN, dtype=torch.uint8)),
        ("independent", torch.full((2, 3, 6, 6), UNKNOWN, dtype=torch.uint8)),
    ):
        logits, _ = drawn(6, 6)
        loss = segmentation_loss([logits.requires_grad_()], target, outputs, centreline=True)  # type: ignore[arg-type]
        gradient = gradient_of(loss, logits)
        assert loss.item() == 0
        assert gradient.abs().max() == 0


def test_a_structure_that_a_case_does_not_know_teaches_only_in_the_other_cases() -> None:
    logits, _ = drawn(6, 6)
    target = torch.zeros(2, 3, 6, 6, dtype=torch.uint8)
    target[:, :, 2:4, 2:4] = 1
    target[1, 2] = UNKNOWN  # structure 2 was not looked for in case 1
    target[:, 0] = UNKNOWN  # structure 0 in no case
    loss = segmentation_loss([logits.requires_grad_()], target, "independent")
    gradient = gradient_of(loss, logits)
    assert gradient[:, 0].abs().max() == 0
    assert gradient[1, 2].abs().max() == 0
    assert gradient[0, 2].abs().min() > 0
    # The mean of Dice is over the structures that are known somewhere.
    p, t = torch.sigmoid(logits.detach()), (target == 1).float()
    one = [(2 * (p * t)[:, 1].sum() + 1) / (p[:, 1].sum() + t[:, 1].sum() + 1)]
    one.append((2 * (p * t)[0, 2].sum() + 1) / (p[0, 2].sum() + t[0, 2].sum() + 1))
    assert float(Parts(logits.detach(), target, "independent").dice()) == pytest.approx(
        1 - float(sum(one)) / 2, rel=1e-5
    )


def test_coarser_maps_count_half_as_much_each() -> None:
    logits, target = drawn(16, 16)
    coarse, coarsest = (functional.avg_pool2d(logits, n) for n in (2, 4))
    single = [
        float(segmentation_loss([one], shrink_target(target, one.shape[2:]), "exclusive"))
        for one in (logits, coarse, coarsest)
    ]
    together = float(segmentation_loss([logits, coarse, coarsest], target, "exclusive"))
    assert together == pytest.approx(np.average(single, weights=[4, 2, 1]), rel=1e-6)


def test_perfect_answer_costs_nothing_even_at_huge_logits() -> None:
    _, target = drawn(8, 8)
    perfect = (functional.one_hot(target.long(), 3).permute(0, 3, 1, 2).float() * 2e4 - 1e4).requires_grad_()
    loss = segmentation_loss([perfect], target, "exclusive", centreline=True)
    assert Parts(perfect, target, "exclusive").dice().item() == 0
    gradient = gradient_of(loss, perfect)
    assert torch.isfinite(gradient).all()
    wrong = -perfect.detach().requires_grad_()
    assert torch.isfinite(segmentation_loss([wrong], target, "exclusive", centreline=True))


def test_smoothing_is_that_of_torch() -> None:
    logits, target = drawn(8, 8)
    ours = Parts(logits, target, "exclusive", smoothing=0.2).entropy()
    assert float(ours) == pytest.approx(
        float(functional.cross_entropy(logits, target.long(), label_smoothing=0.2)), rel=1e-6
    )


def test_target_of_a_coarser_map() -> None:
    target = torch.zeros(1, 6, 8, dtype=torch.uint8)
    target[0, 1, 3] = 2
    target[0, 4:, 4:] = UNKNOWN
    target[0, 4, 4] = 1
    assert shrink_target(target, (6, 8)) is target
    assert shrink_target(target, (3, 4)).tolist() == [[[0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 255, 255]]]
    # The highest class that is known in a block; unknown only where all of it is.
    assert shrink_target(target, (3, 4), thin=True).tolist() == [[[0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 255]]]
    assert shrink_target(target[:, None], (3, 4), thin=True).tolist() == [[[[0, 2, 0, 0], [0] * 4, [0, 0, 1, 255]]]]
    volume = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    volume[0, 3, 3, 3] = 1
    assert shrink_target(volume, (4, 2, 2), thin=True)[0, 3].tolist() == [[0, 0], [0, 1]]
    assert shrink_target(volume, (2, 2, 2))[0, 1, 1, 1] == 1
