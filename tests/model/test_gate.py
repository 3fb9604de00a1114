"""The gate refuses what the model was not made for and marks what it does not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.errors import DataError, PackageError, ScopeError
from sagittal.model.gate import Gate, check_scope, fit_gate
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.plan import DecidePlan, InputPlan


def gaussian(count: int, features: int = 40, seed: int = 0) -> np.ndarray:
    """Embeddings with a few strong directions, as networks make them; one feature is dead."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(0, 1, (features, features)) * np.geomspace(5, 0.05, features)
    e = rng.normal(0, 1, (count, features)) @ mix.T + 3
    e[:, 7] = 0
    return e


def test_ordinary_cases_are_accepted_and_strange_ones_are_not():
    gate = fit_gate([gaussian(300)])
    fresh = gate.judge([gaussian(2_000, seed=1)])
    assert np.mean([v.accepted for v in fresh]) > 0.985
    scores = np.array([v.score for v in fresh])
    assert abs(np.mean(scores) - 0.5) < 0.06  # a percentile of the validation cases
    far = gate.judge([gaussian(100, seed=2) + 40])
    assert not any(v.accepted for v in far)
    assert all(v.score == 1 for v in far)
    assert "times as far from their centre as a typical one" in far[0].reason


@pytest.mark.parametrize("count", [20, 40, 78])
def test_small_validation_sets_do_not_refuse_ordinary_cases(count):
    gate = fit_gate([gaussian(count, features=256)])
    fresh = gate.judge([gaussian(1_000, features=256, seed=1)])
    assert np.mean([v.accepted for v in fresh]) > 0.95


def test_a_new_direction_is_seen_even_if_it_is_short():
    e = gaussian(400)
    e[:, 5] = np.random.default_rng(3).normal(0, 0.01, 400)
    odd = gaussian(50, seed=4)
    odd[:, 5] = 5.0  # small beside the other features, but never seen
    assert not any(v.accepted for v in fit_gate([e]).judge([odd]))


def test_networks_vote_together():
    gate = fit_gate([gaussian(100), gaussian(100, features=16, seed=5)])
    assert len(gate.judge([gaussian(3), gaussian(3, features=16)])) == 3
    with pytest.raises(DataError, match="knows 2 networks, 1 gave"):
        gate.judge([gaussian(3)])
    with pytest.raises(DataError, match="knows 40 features, these embeddings have 16"):
        gate.judge([gaussian(3, features=16), gaussian(3, features=16)])


def test_too_few_cases_give_no_gate():
    assert fit_gate([gaussian(19)]) is None
    assert fit_gate([]) is None


def test_json_and_arrays_both_ways():
    gate = fit_gate([gaussian(60), gaussian(60, features=8)], abstains=True)
    again = Gate.from_parts(*gate.to_parts())
    fresh = [gaussian(20, seed=1), gaussian(20, features=8, seed=1)]
    assert again.judge(fresh) == gate.judge(fresh)
    assert again.abstains
    values, arrays = gate.to_parts()
    with pytest.raises(PackageError, match="shapes do not fit"):
        Gate.from_parts(values, {**arrays, "0.mean": np.zeros(3, np.float32)})
    with pytest.raises(PackageError, match="misses one"):
        Gate.from_parts(values, {k: v for k, v in arrays.items() if k != "1.axes"})


def test_a_study_of_another_modality_is_refused(make_model, toy):
    plan = toy.volume_plan()
    model, arrays = make_model(plan)
    mr = Case("case-7", "secret", {"image": ImageSource(lambda: toy.image_of(arrays[0], "MR", "1"))}, table={"age": 50})
    message = "case case-7: is a study of modality MR, the model was made for CT. Use a model that was trained on MR"
    with pytest.raises(ScopeError, match=message):
        model.predict(mr)
    good = toy.cases_of(plan, arrays[:2])
    answers = list(model.predict_many([good[0], mr, good[1]]))
    assert [type(a) for a in answers] == [Prediction, Failure, Prediction]
    assert answers[1].kind == "ScopeError"
    assert "secret" not in answers[1].error


@pytest.mark.parametrize(
    ("made_for", "found", "passes"),
    [
        ("CT", "CT", True),
        ("CT", "OT", True),  # the file does not say
        ("OT", "MR", True),  # the training data did not say
        ("DX", "CR", True),
        ("CR", "CT", False),
        ("US", "MR", False),
    ],
)
def test_modalities(toy, made_for, found, passes):
    plan = toy.flat_plan(input=InputPlan(modality=made_for))
    image = toy.image_of(toy.stored_arrays(plan, 1)[0], found, "1")
    if passes:
        check_scope(image, plan, "1")
    else:
        with pytest.raises(ScopeError, match=f"modality {found}, the model was made for {made_for}"):
            check_scope(image, plan, "1")


def test_units(toy):
    plan = toy.volume_plan()
    array = toy.stored_arrays(plan, 1)[0]
    with pytest.raises(ScopeError, match="has values without a unit, the model was made for values in HU"):
        check_scope(toy.image_of(array, "CT", "1"), plan, "1")
    pictures = toy.flat_plan(input=InputPlan(modality="OT"))
    with pytest.raises(ScopeError, match="has values in HU, the model was made for pictures of whole numbers"):
        check_scope(toy.image_of(toy.stored_arrays(pictures, 1)[0], "CT", "HU"), pictures, "1")


def test_dimensions_and_channels(make_model, toy):
    model, arrays = make_model()
    volume = toy.image_of(toy.stored_arrays(toy.volume_plan(), 1)[0], "OT", "1")
    with pytest.raises(ScopeError, match=r"case 3d: is 3-D .* made for 2-D"):
        model.predict(Case("3d", "p", {"image": ImageSource(lambda: volume)}))
    colour = toy.image_of(np.repeat(arrays[0], 3, axis=0), "OT", "1")
    with pytest.raises(ScopeError, match="case rgb: has 3 channels, the model was made for 1"):
        model.predict(Case("rgb", "p", {"image": ImageSource(lambda: colour)}))


def test_an_unlike_study_is_marked_and_by_the_plan_not_decided(make_model, toy):
    flagging, arrays = make_model()
    blank = np.zeros_like(arrays[0])
    strange = toy.cases_of(flagging.plan, blank[np.newaxis])[0]
    answer = flagging.predict(strange)
    assert not answer.verdict.accepted
    assert answer.verdict.score == 1
    assert answer.decision
    plan = toy.flat_plan(decide=DecidePlan(gate="abstain"))
    abstaining, _ = make_model(plan)
    answer = abstaining.predict(strange)
    assert answer.decision == ()
    assert np.isfinite(answer.probability).all()
    assert abstaining.predict(toy.cases_of(plan, arrays[:1])[0]).decision
    off, _ = make_model(toy.flat_plan(decide=DecidePlan(gate="off")))
    assert off.gate is None
    assert off.predict(strange).verdict.accepted


def test_ordinary_new_cases_are_seldom_marked(make_model, toy):
    model, _ = make_model()
    fresh = toy.cases_of(model.plan, toy.stored_arrays(model.plan, 200, seed=9))
    accepted = [a.verdict.accepted for a in model.predict_many(fresh)]
    assert np.mean(accepted) > 0.97
    assert replace(model, gate=None).predict(fresh[0]).verdict.accepted


def test_the_gate_sees_the_embedding_that_it_was_fitted_on(make_model, toy):
    base = toy.flat_plan()
    model, arrays = make_model(toy.flat_plan(network=replace(base.network, pooling="mean-max")), members=2)
    answers = model.predict_many(toy.cases_of(model.plan, arrays[:5]), batch=2)
    expected = model.gate.judge([model.embed(m, arrays[:5]) for m in range(2)])
    assert [a.verdict.accepted for a in answers] == [v.accepted for v in expected]
    scores = [a.verdict.score for a in model.predict_many(toy.cases_of(model.plan, arrays[:5]))]
    np.testing.assert_allclose(scores, [v.score for v in expected], atol=0.02)
