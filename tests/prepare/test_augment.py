import numpy as np
import pytest
import torch

from sagittal.prepare.augment import Augmentation, apply, augment, draw, mix
from sagittal.prepare.plan import AugmentPlan

EVERYTHING = AugmentPlan(
    flip=(0, 1),
    permute=True,
    rotate_deg=20,
    scale=0.2,
    shear=0.1,
    translate=0.1,
    brightness=0.2,
    contrast=0.2,
    gamma=0.2,
    noise=0.1,
    blur=1.0,
    erase=0.5,
    mixup=0.2,
)
# Sizes differ along the axes, so that a mixed-up axis order shows.
SHAPES = [(4, 2, 9, 12), (4, 1, 7, 9, 12)]


def make_batch(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def repeat(matrix: list[list[float]], n: int) -> torch.Tensor:
    return torch.tensor(matrix, dtype=torch.float32).expand(n, -1, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_plan_gives_back_a_copy(shape):
    batch = make_batch(shape)
    out = augment(batch, AugmentPlan(), np.random.default_rng(0))
    assert torch.equal(out, batch)
    assert out.data_ptr() != batch.data_ptr()


@pytest.mark.parametrize("shape", SHAPES)
def test_neutral_parameters_give_back_the_input(shape):
    batch, n, d = make_batch(shape), shape[0], len(shape) - 2
    neutral = Augmentation(
        matrix=torch.eye(d).expand(n, d, d),
        shift=torch.zeros(n, d),
        blur=torch.zeros(n),
        contrast=torch.ones(n),
        brightness=torch.zeros(n),
        gamma=torch.ones(n),
        noise=torch.zeros(n),
        erase=torch.zeros(n, d, 2),
    )
    torch.testing.assert_close(apply(batch, neutral), batch, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lattice", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [(SHAPES[0], 0), (SHAPES[0], 1), (SHAPES[1], 0), (SHAPES[1], 2)])
def test_flip_is_torch_flip(shape, axis, lattice):
    batch, n, d = make_batch(shape), shape[0], len(shape) - 2
    matrix = torch.eye(d)
    matrix[axis, axis] = -1
    out = apply(batch, Augmentation(matrix=matrix.expand(n, d, d), shift=torch.zeros(n, d), lattice=lattice))
    torch.testing.assert_close(out, batch.flip(axis + 2), atol=1e-5, rtol=0)


def test_quarter_turn_in_the_plane_is_rot90():
    batch = make_batch((3, 2, 8, 8))
    params = Augmentation(matrix=repeat([[0, 1], [-1, 0]], 3), shift=torch.zeros(3, 2))
    torch.testing.assert_close(apply(batch, params), batch.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_quarter_turn_of_a_volume_is_rot90():
    batch = make_batch((2, 1, 5, 8, 8))
    params = Augmentation(matrix=repeat([[1, 0, 0], [0, 0, 1], [0, -1, 0]], 2), shift=torch.zeros(2, 3))
    torch.testing.assert_close(apply(batch, params), batch.rot90(1, (3, 4)), atol=1e-5, rtol=0)


def test_shift_moves_by_a_fraction_of_its_own_axis():
    batch = make_batch((1, 1, 8, 10, 20))
    params = Augmentation(matrix=torch.eye(3)[None], shift=torch.tensor([[0.0, 0.2, 0.0]]))
    out = apply(batch, params)
    torch.testing.assert_close(out[:, :, :, :8], batch[:, :, :, 2:], atol=1e-5, rtol=0)


def test_rotation_keeps_lengths_where_axes_differ():
    line = torch.zeros(1, 1, 41, 21)
    line[0, 0, 20, 3:18] = 1
    turned = apply(line, Augmentation(matrix=repeat([[0, 1], [-1, 0]], 1), shift=torch.zeros(1, 2)))
    assert turned[0, 0, :, 10].sum().item() == pytest.approx(15, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_generator_same_result_and_input_untouched(shape):
    batch = make_batch(shape)
    before = batch.clone()
    first = augment(batch, EVERYTHING, np.random.default_rng(7))
    second = augment(batch, EVERYTHING, np.random.default_rng(7))
    assert torch.equal(first, second)
    assert torch.equal(batch, before)
    assert first.shape == batch.shape
    assert first.isfinite().all()
    assert not torch.equal(first, augment(batch, EVERYTHING, np.random.default_rng(8)))


def test_drawn_parameters_replay():
    batch = make_batch(SHAPES[1])
    params = draw(batch.shape, EVERYTHING, np.random.default_rng(0))
    assert torch.equal(apply(batch, params), apply(batch, params))


def test_symmetries_only_reorder_voxels_and_reach_all_48():
    cube = make_batch((1, 1, 3, 3, 3)).expand(1000, -1, -1, -1, -1)
    out = augment(cube, AugmentPlan(flip=(0, 1, 2), permute=True), np.random.default_rng(0))
    assert torch.equal(out.flatten(1).sort(dim=1).values, cube.flatten(1).sort(dim=1).values)
    assert len(out.flatten(1).unique(dim=0)) == 48


def test_permute_leaves_axes_of_other_length_in_place():
    params = draw((200, 1, 5, 8, 8), AugmentPlan(permute=True), np.random.default_rng(0))
    assert params.matrix is not None
    assert len(params.matrix.unique(dim=0)) == 2
    assert (params.matrix[:, 0, 0] == 1).all()


def test_flip_stays_on_its_axes():
    params = draw((50, 1, 6, 6), AugmentPlan(flip=(1,)), np.random.default_rng(0))
    assert params.matrix is not None
    assert (params.matrix[:, 0, 0] == 1).all()
    assert params.matrix[:, 1, 1].unique().tolist() == [-1, 1]


@pytest.mark.parametrize("d", [2, 3])
def test_drawn_rotations_are_rotations(d):
    params = draw((20, 1, *[8] * d), AugmentPlan(rotate_deg=90), np.random.default_rng(0))
    assert params.matrix is not None
    torch.testing.assert_close(params.matrix @ params.matrix.transpose(1, 2), torch.eye(d).expand(20, d, d))
    torch.testing.assert_close(torch.linalg.det(params.matrix), torch.ones(20))


def test_scale_changes_the_size_by_at_most_its_factor():
    params = draw((100, 1, 8, 8, 8), AugmentPlan(scale=0.25), np.random.default_rng(0))
    assert params.matrix is not None
    factor = params.matrix[:, 0, 0]
    assert factor.min() >= 1 / 1.25 - 1e-6
    assert factor.max() <= 1.25 + 1e-6


@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_blur_keeps_the_sum_and_has_its_width(sigma):
    dot = torch.zeros(1, 1, 25, 25)
    dot[0, 0, 12, 12] = 1
    out = apply(dot, Augmentation(blur=torch.tensor([sigma])))
    x = torch.arange(25.0) - 12
    assert out.sum().item() == pytest.approx(1, abs=1e-5)
    assert (out[0, 0].sum(0) * x**2).sum().item() == pytest.approx(sigma**2, rel=1e-3)


def test_contrast_keeps_the_mean_and_scales_the_spread():
    batch = make_batch((2, 1, 8, 8))
    out = apply(batch, Augmentation(contrast=torch.tensor([2.0, 0.5])))
    torch.testing.assert_close(out.mean((1, 2, 3)), batch.mean((1, 2, 3)))
    torch.testing.assert_close(out.std((1, 2, 3)), batch.std((1, 2, 3)) * torch.tensor([2.0, 0.5]))


def test_gamma_keeps_the_range():
    batch = make_batch((2, 1, 8, 8))
    out = apply(batch, Augmentation(gamma=torch.tensor([2.0, 0.5])))
    torch.testing.assert_close(out.amax((1, 2, 3)), batch.amax((1, 2, 3)))
    torch.testing.assert_close(out.amin((1, 2, 3)), batch.amin((1, 2, 3)))
    assert (out[0] <= batch[0] + 1e-5).all()


def test_erase_blanks_the_box_with_the_mean():
    batch = make_batch((1, 1, 10, 20))
    out = apply(batch, Augmentation(erase=torch.tensor([[[0.2, 0.5], [0.0, 0.25]]])))
    changed = out != batch
    assert changed[0, 0, 2:5, :5].all()
    assert changed.sum() == 15
    assert out[0, 0, 2, 0] == batch.mean()


def test_mix_blends_inputs_and_targets_alike():
    batch = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 4, 4).contiguous()
    out, targets = mix(batch, torch.arange(6.0)[:, None], 0.5, np.random.default_rng(0))
    torch.testing.assert_close(out.mean((1, 2, 3)), targets[:, 0])
    assert not torch.equal(out, batch)


def test_mix_keeps_unknown_targets_unknown():
    targets = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [1.0, 0.0]])
    _, mixed = mix(make_batch((3, 1, 4, 4)), targets, 0.4, np.random.default_rng(0))
    assert mixed[0, 1].isnan()
    assert mixed[:, 1].isnan().sum() == 2
    assert mixed[:, 0].isfinite().all()


def test_mix_without_alpha_gives_back_the_input():
    batch, targets = make_batch((3, 1, 4, 4)), torch.eye(3)
    same, same_targets = mix(batch, targets, 0.0, np.random.default_rng(0))
    assert torch.equal(same, batch)
    assert torch.equal(same_targets, targets)
