"""Maps point at what the network learned, and their measure knows the difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam

from sagittal.errors import ConfigError, MissingPackageError, ScopeError
from sagittal.explain.faithfulness import _moved, measure
from sagittal.explain.gradients import integrated_gradients
from sagittal.explain.maps import METHODS, explain_case
from sagittal.explain.occlusion import _windows
from sagittal.explain.subject import Subject
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model.package import Model
from sagittal.prepare.plan import NetworkPlan
from sagittal.prepare.resample import resize


def in_corner(lattice: np.ndarray) -> float:
    """Share of the positive map in the corner of the square, two voxels around it included."""
    positive = np.maximum(lattice, 0)
    corner = tuple(slice(0, n // 3 + 3) for n in lattice.shape)
    return float(positive[corner].sum() / positive.sum())


@pytest.mark.parametrize("method", list(METHODS))
def test_maps_mark_the_square_and_are_found_faithful(corner, build, method):
    model, with_square, _ = corner
    (found,) = explain_case(model, build.case(model.plan, with_square), (method,))
    assert found.target == "present"
    assert found.probability > 0.9
    space = np.prod([(n // 3 + 3) / n for n in found.lattice.shape])
    assert in_corner(found.lattice) > min(2.5 * space, 0.55)
    worth = found.faithfulness
    assert worth.better_than_random
    assert worth.deletion < worth.random_deletion - worth.random_deletion_std
    assert worth.insertion > worth.random_insertion + worth.random_insertion_std


@pytest.mark.parametrize("method", list(METHODS))
def test_maps_of_a_network_that_learned_nothing_are_no_better_than_random(corner, build, method):
    """Maps by untrained networks of other images: no more pass than chance lets pass."""
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square), "present")
    others, _ = build.arrays(model.plan, 12, seed=77)
    passed = 0
    count = 6 if model.plan.input.dimensions == 2 else 3
    for seed in range(count):
        blind = Model("blind", model.plan, (build.raw(model.plan, 100 + seed),), model.calibration, ())
        noise = METHODS[method](Subject.of(blind, build.case(model.plan, others[2 * seed]), "present"))
        passed += measure(subject, noise, steps=6, seed=seed).better_than_random
    assert passed <= count // 3


def test_random_maps_pass_as_rarely_as_the_level_says(corner, build):
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square), "present")
    heat = METHODS["gradcam"](subject)
    rng = np.random.default_rng(1)
    trials = 20 if heat.ndim == 2 else 8
    passed = sum(measure(subject, _moved(heat, rng), seed=n, steps=5).better_than_random for n in range(trials))
    assert passed <= (4 if heat.ndim == 2 else 2)  # binomial(n, 0.05): more in less than 1 % of cases


def test_an_empty_map_is_no_better_than_random(corner, build):
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square))
    worth = measure(subject, np.zeros(subject.size, np.float32))
    assert not worth.better_than_random
    assert worth.p_value == 1
    assert worth.deletion == pytest.approx(worth.random_deletion, abs=0.3)


def test_measures_are_those_of_the_curves(corner, build):
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square))
    heat = np.random.default_rng(0).random(subject.size)  # no two values are equal
    worth = measure(subject, heat, randoms=5, seed=3)
    assert worth.deletion == pytest.approx(np.trapezoid(worth.deletion_curve, worth.fraction))
    assert worth.insertion == pytest.approx(np.trapezoid(worth.insertion_curve, worth.fraction))
    # Both curves have the same two ends: the image, and its blurred baseline.
    whole, blurred = subject.scores(subject.image)[0], subject.scores(subject.baseline)[0]
    np.testing.assert_allclose(worth.deletion_curve[[0, -1]], [whole, blurred], atol=1e-6)
    np.testing.assert_allclose(worth.insertion_curve[[-1, 0]], [whole, blurred], atol=1e-6)
    again = measure(subject, heat, randoms=5, seed=3)
    assert again.random_deletion == worth.random_deletion
    assert measure(subject, heat, randoms=5, seed=4).random_deletion != worth.random_deletion
    # By hand: the first step of the deletion removes the tenth of the voxels with the highest values.
    most = np.argsort(-heat.ravel(), kind="stable")[: round(0.1 * heat.size)]
    by_hand = subject.image.clone().reshape(1, -1)
    by_hand[0, most] = subject.baseline.reshape(-1)[most]
    score = subject.scores(by_hand.reshape(subject.image.shape))[0]
    assert worth.deletion_curve[1] == pytest.approx(score, abs=1e-6)


def test_random_maps_keep_their_values():
    heat = np.random.default_rng(0).random((5, 7))
    moved = _moved(heat, np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(moved.ravel()), np.sort(heat.ravel()))
    assert not np.array_equal(moved, heat)


def test_grad_cam_agrees_with_captum(corner, build):
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square))
    network = model.members[0]
    peer = LayerGradCam(lambda x: subject.log_odds(network(x)), network.encoder)
    coarse = peer.attribute(subject.image.clone().requires_grad_(True), relu_attributions=True)
    ours = METHODS["gradcam"](subject)
    np.testing.assert_allclose(ours, resize(coarse[0, 0].detach().numpy(), subject.size), atol=1e-5)


def test_integrated_gradients_add_up_to_the_difference(corner, build):
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square))
    shares = integrated_gradients(subject, steps=200)
    with torch.inference_mode():
        odds = [float(subject.log_odds(model.members[0](x))[0]) for x in (subject.image, subject.baseline)]
    assert shares.sum() == pytest.approx(odds[0] - odds[1], rel=0.03, abs=0.05)
    peer = IntegratedGradients(lambda x: subject.log_odds(model.members[0](x)))
    expected = peer.attribute(subject.image, baselines=subject.baseline, n_steps=200)[0, 0].detach().numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-4)


def test_occlusion_is_the_fall_under_each_window(corner, build):
    model, with_square, _ = corner
    subject = Subject.of(model, build.case(model.plan, with_square))
    heat = METHODS["occlusion"](subject)
    voxel = tuple(n // 6 for n in subject.size)
    falls = []
    with torch.inference_mode():
        whole = float(subject.log_odds(model.members[0](subject.image))[0])
        for window in _windows(subject.size):
            if all(w.start <= v < w.stop for w, v in zip(window, voxel, strict=True)):
                covered = subject.image.clone()
                covered[(0, 0, *window)] = subject.baseline[(0, 0, *window)]
                falls.append(whole - float(subject.log_odds(model.members[0](covered))[0]))
    assert heat[voxel] == pytest.approx(np.mean(falls), rel=1e-4)


@pytest.mark.parametrize("size", [(28, 28), (7, 300), (1, 1), (12, 16, 14), (64, 64, 64), (2, 5, 90)])
def test_windows_cover_everything_and_are_few(size):
    hits = np.zeros(size, int)
    windows = _windows(size)
    for window in windows:
        hits[window] += 1
    assert hits.min() >= 1
    assert len(windows) <= (14**2 if len(size) == 2 else 8**3)


def test_maps_lie_on_the_grid_of_the_study(corner, build):
    model, with_square, _ = corner
    case = build.case(model.plan, with_square, position=True)
    (found,) = explain_case(model, case, randoms=0)
    image = case.image()
    assert found.grid.same_place(image.grid)
    assert found.heat.shape == image.grid.shape
    assert found.heat.dtype == np.float32
    assert found.faithfulness is None
    peak = np.unravel_index(np.argmax(found.heat), found.heat.shape)
    assert all(p <= n // 3 + 2 for p, n in zip(peak, found.heat.shape, strict=True))
    axes = (1, 0) if found.lattice.ndim == 2 else (2, 1, 0)
    np.testing.assert_allclose(found.heat.reshape(found.lattice.T.shape), found.lattice.transpose(axes), atol=1e-6)


def test_a_larger_study_gets_its_map_in_its_own_size(build):
    plan = build.plan(2)
    model = build.model(plan)
    array = build.arrays(plan, 2, seed=9)[0][1]
    large = np.kron(array[0], np.ones((3, 2))).astype(np.float32)  # 72 rows, 40 columns
    image = Image(large.T[None, :, :, None], Grid((40, 72, 1)), bits=8)
    case = build.case(plan, array)
    (found,) = explain_case(
        model, type(case)("big", "p", {"image": type(case.images["image"])(lambda: image)}), randoms=0
    )
    assert found.heat.shape == (40, 72, 1)
    peak = np.unravel_index(np.argmax(found.heat[..., 0]), (40, 72))
    assert peak[0] < 18
    assert peak[1] < 33


def test_any_class_can_be_asked_about(corner, build):
    model, with_square, without = corner
    case = build.case(model.plan, with_square)
    (other,) = explain_case(model, case, ("occlusion",), "absent", randoms=0)
    (own,) = explain_case(model, case, ("occlusion",), "present", randoms=0)
    assert other.target == "absent"
    assert other.probability == pytest.approx(1 - own.probability)
    np.testing.assert_allclose(other.lattice, -own.lattice, atol=1e-4)  # two classes: what speaks for one ...
    (empty,) = explain_case(model, build.case(model.plan, without), randoms=0)
    assert empty.target == "absent"


def test_ensembles_are_averaged(build):
    plan = build.plan(2)
    model = build.model(plan, members=2)
    case = build.case(plan, build.arrays(plan, 2, seed=9)[0][1])
    (both,) = explain_case(model, case, target="present", randoms=0)
    singles = [
        explain_case(Model("one", plan, (m,), model.calibration, ()), case, target="present", randoms=0)[0].lattice
        for m in model.members
    ]
    np.testing.assert_allclose(both.lattice, np.mean(singles, axis=0), atol=1e-5)


def test_several_labels_use_their_own_logit(build):
    plan = build.plan(2)
    labels = type(plan)(
        LabelScheme("multilabel", ("a", "b")), input=plan.input, network=plan.network, prepare=plan.prepare
    )
    model = Model(
        "labels", labels, (build.raw(labels, 0),), build.model(plan).calibration.__class__(link="sigmoid"), ()
    )
    subject = Subject.of(model, build.case(plan, build.arrays(plan, 1)[0][0]), "b")
    logits = torch.tensor([[5.0, 2.0]])
    assert subject.log_odds(logits).tolist() == [2.0]
    assert explain_case(model, build.case(plan, build.arrays(plan, 1)[0][0]), tuple(METHODS), randoms=2)


def test_mistakes_are_named(corner, build, monkeypatch):
    model, with_square, _ = corner
    case = build.case(model.plan, with_square)
    with pytest.raises(ConfigError, match="unknown method 'gradcan'. Did you mean 'gradcam'"):
        explain_case(model, case, ("gradcan",))
    with pytest.raises(ConfigError, match="the model has no class 'presnt'. Did you mean 'present'"):
        explain_case(model, case, target="presnt")
    other = build.case(
        build.plan(5 - model.plan.input.dimensions), build.arrays(build.plan(5 - model.plan.input.dimensions), 1)[0][0]
    )
    if model.plan.input.dimensions == 2:
        with pytest.raises(ScopeError, match="made for 2-D"):
            explain_case(model, other)
    import sys

    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(
        MissingPackageError, match=r"integrated gradients needs the package 'captum'.*sagittal\[explain\]"
    ):
        explain_case(model, case, ("integrated-gradients",))


def test_explaining_leaves_the_networks_as_they_were(corner, build):
    model, with_square, _ = corner
    model.members[0].zero_grad(set_to_none=True)
    before = {k: v.clone() for k, v in model.members[0].state_dict().items()}
    explain_case(model, build.case(model.plan, with_square), tuple(METHODS), randoms=1)
    for key, value in model.members[0].state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in model.members[0].parameters())
    assert not model.members[0].training


def test_networks_without_places_are_explained_by_occlusion(corner, build):
    model, with_square, _ = corner
    case = build.case(model.plan, with_square)
    assert [m.method for m in explain_case(model, case, randoms=0)] == ["gradcam"]
    plan = replace(model.plan, network=NetworkPlan(name="descriptors", width=8))
    measures = Model("measures", plan, (build.raw(plan, 0),), model.calibration, ())
    assert [m.method for m in explain_case(measures, case, randoms=0)] == ["occlusion"]
    (flat,) = explain_case(measures, case, ("gradcam",), randoms=3)
    assert not flat.faithfulness.better_than_random
