"""The predictor goes on past bad cases, keeps order and memory, and averages as it says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, DataError, ReadError, ResourceError, ScopeError
from sagittal.labels import LabelScheme
from sagittal.model.predictor import flip_sets, out_of_memory, uncertainty
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.arrays import to_input
from sagittal.prepare.plan import DecidePlan, InputPlan


def bad_case(name: str, error: Exception) -> Case:
    def read():
        raise error

    return Case(name, "patient-secret", {"image": ImageSource(read)})


def test_bad_cases_do_not_stop_good_ones(make_model, toy):
    model, arrays = make_model()
    good = toy.cases_of(model.plan, arrays[:20])
    nan = toy.image_of(np.where(np.arange(120).reshape(1, 12, 10) == 5, np.nan, 1.0), "OT", "1")
    cases = list(good)
    cases.insert(0, bad_case("cut", ReadError("case cut: the file ends after 10 bytes")))
    cases.insert(7, bad_case("odd", RuntimeError("decoder failed for MÜLLER^HANS born 1950")))
    cases.insert(12, Case("hole", "p", {"image": ImageSource(lambda: nan)}))
    cases.append(bad_case("big", MemoryError()))
    answers = list(model.predict_many(cases, batch=6))
    assert [a.case for a in answers] == [c.id for c in cases]
    failures = {a.case: a for a in answers if isinstance(a, Failure)}
    assert {k: v.kind for k, v in failures.items()} == {
        "cut": "ReadError",
        "odd": "RuntimeError",
        "hole": "DataError",
        "big": "ResourceError",
    }
    assert "1 of 120 voxels are nan" in failures["hole"].error
    assert "MÜLLER" not in failures["odd"].error
    alone = {case.id: model.predict(case) for case in good}
    for answer in answers:
        if isinstance(answer, Prediction):
            np.testing.assert_allclose(answer.logits, alone[answer.case].logits, atol=1e-5)


def test_cases_that_are_answered_together_get_the_answers_they_get_alone(make_model, toy):
    model, arrays = make_model()
    good = toy.cases_of(model.plan, arrays[:5])
    cases = [*good[:2], bad_case("cut", ReadError("case cut: the file ends")), *good[2:]]
    answers = model.predictor.predict_together(cases)
    assert [a.case for a in answers] == [c.id for c in cases]
    assert isinstance(answers[2], Failure)
    for answer, case in zip([a for a in answers if isinstance(a, Prediction)], good, strict=True):
        np.testing.assert_allclose(answer.logits, model.predict(case).logits, atol=1e-5)
    assert model.predictor.predict_together([]) == []


def test_nothing_of_a_strange_error_is_logged_but_its_kind(make_model, caplog):
    model, _ = make_model()
    list(model.predict_many([bad_case("odd", RuntimeError("MÜLLER^HANS"))]))
    assert "MÜLLER" not in caplog.text
    assert "case odd: RuntimeError" in caplog.text


def test_one_case_raises(make_model):
    model, _ = make_model()
    with pytest.raises(ReadError, match="case cut"):
        model.predict(bad_case("cut", ReadError("case cut: the file ends after 10 bytes")))


def test_interrupting_is_not_a_bad_case(make_model, toy):
    model, arrays = make_model()

    def read():
        raise KeyboardInterrupt

    cases = [*toy.cases_of(model.plan, arrays[:3]), Case("stop", "p", {"image": ImageSource(read)})]
    with pytest.raises(KeyboardInterrupt):
        list(model.predict_many(cases))


def test_a_prediction_carries_what_is_promised(make_model, toy):
    model, arrays = make_model()
    case = toy.cases_of(model.plan, arrays[:1])[0]
    answer = model.predict(case)
    assert answer.case == "case-0"
    assert answer.scheme == model.plan.scheme
    assert answer.probability.sum() == pytest.approx(1)
    calibrated = model.calibration.apply(answer.logits)
    np.testing.assert_allclose(answer.probability, np.exp(calibrated) / np.exp(calibrated).sum())
    assert answer.decision == (model.plan.scheme.classes[int(np.argmax(answer.probability))],)
    assert set(answer.decision) <= set(answer.conformal)
    assert 0 <= answer.verdict.score <= 1
    assert answer.model == "toy (format 1, not saved)"
    assert answer.made_at.endswith("+00:00")
    assert 0 < answer.seconds < 10


def test_reading_stays_a_few_batches_ahead(make_model, toy):
    model, arrays = make_model()
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield toy.cases_of(model.plan, arrays[:1])[0]

    answers = model.predict_many(endless(), batch=4)
    for n in range(1, 41):
        next(answers)
        assert taken <= n + 4 * 4
    answers.close()


def test_no_cases_give_no_answers(make_model):
    model, _ = make_model()
    assert list(model.predict_many([])) == []


def test_batches_must_be_positive(make_model):
    model, _ = make_model()
    with pytest.raises(ConfigError, match="batch must be 1 or more, not 0"):
        list(model.predict_many([], batch=0))


def test_progress_counts_every_case(make_model, toy):
    model, arrays = make_model()

    class Listener:
        total, done = None, 0.0

        def say(self, message):
            pass

        @contextmanager
        def track(self, what, total=None):
            self.total = total

            def advance(steps=1.0, note=""):
                self.done += steps

            yield advance

    listener = Listener()
    cases = [*toy.cases_of(model.plan, arrays[:9]), bad_case("x", ReadError("case x: no"))]
    list(model.predict_many(cases, batch=4, reporter=listener))
    assert (listener.total, listener.done) == (10, 10)


class Hungry(torch.nn.Module):
    """A network that does not fit batches beyond a size."""

    def __init__(self, network, most):
        super().__init__()
        self.network, self.most, self.asked = network, most, []

    def feature_map(self, image):
        self.asked.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return self.network.feature_map(image)

    def classify_features(self, features, table=None):
        return self.network.classify_features(features, table)


def test_out_of_memory_falls_back_to_smaller_batches(make_model, toy):
    model, arrays = make_model()
    hungry = Hungry(model.members[0], 3)
    small = replace(model, members=(hungry,))
    np.testing.assert_allclose(small.logits(arrays[:20], batch=16), model.logits(arrays[:20]), atol=1e-5)
    assert hungry.asked == [16, 8, 4, *[2] * 10]
    answers = list(small.predict_many(toy.cases_of(model.plan, arrays[:20])))
    assert all(isinstance(a, Prediction) for a in answers)


def test_a_case_that_does_not_fit_at_all_is_a_failure(make_model, toy):
    model, arrays = make_model()
    full = replace(model, members=(Hungry(model.members[0], 0),))
    cases = toy.cases_of(model.plan, arrays[:3])
    answers = list(full.predict_many(cases))
    assert [a.kind for a in answers] == ["ResourceError"] * 3
    with pytest.raises(ResourceError, match=r"memory does not hold one case of size \(1, 12, 10\) on cpu"):
        full.predict(cases[0])


def test_torchs_words_for_memory_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class Picky(Hungry):
    """A network that fails on one bright image."""

    def feature_map(self, image):
        if torch.any(image.mean(dim=(1, 2, 3)) > 2):
            raise ValueError("cannot")
        return self.network.feature_map(image)


def test_a_case_that_the_network_fails_on_is_found_alone(make_model, toy):
    model, arrays = make_model()
    arrays = arrays[:8].copy()
    arrays[5] = 255
    picky = replace(model, members=(Picky(model.members[0], 0),))
    answers = list(picky.predict_many(toy.cases_of(model.plan, arrays)))
    assert [isinstance(a, Failure) for a in answers] == [n == 5 for n in range(8)]
    assert answers[5].kind == "ValueError"


class Broken(Hungry):
    def classify_features(self, features, table=None):
        return self.network.classify_features(features, table) * torch.nan


def test_an_answer_that_is_not_finite_is_no_answer(make_model, toy):
    model, arrays = make_model()
    broken = replace(model, members=(Broken(model.members[0], 99),))
    cases = toy.cases_of(model.plan, arrays[:3])
    assert [a.kind for a in broken.predict_many(cases)] == ["ScopeError"] * 3
    with pytest.raises(ScopeError, match="case case-0: the network's answer is not finite"):
        broken.predict(cases[0])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_flips_average_over_every_mirror_image(make_model, toy, dimensions):
    decide = DecidePlan(flips=(0, 1))
    plan = toy.flat_plan(decide=decide) if dimensions == 2 else toy.volume_plan(decide=decide)
    model, arrays = make_model(plan)
    tables = np.zeros((6, 2), np.float32) if dimensions == 3 else None
    plain = replace(model, plan=replace(plan, decide=DecidePlan()))
    mirrors = [arrays[:6], arrays[:6, :, ::-1], arrays[:6, :, :, ::-1], arrays[:6, :, ::-1, ::-1]]
    expected = np.mean([plain.logits(np.ascontiguousarray(m), tables) for m in mirrors], axis=0)
    np.testing.assert_allclose(model.logits(arrays[:6], tables), expected, atol=1e-6)
    assert len(flip_sets((0, 1, 2))) == 8


def test_members_are_averaged_before_calibration(make_model, toy):
    model, arrays = make_model(members=3)
    x = to_input(torch.from_numpy(arrays[:10]), model.plan.prepare)
    with torch.inference_mode():
        expected = np.mean([m(x).numpy() for m in model.members], axis=0)
    np.testing.assert_allclose(model.logits(arrays[:10]), expected, atol=1e-6)


def test_a_lone_volume_gets_the_same_answer(make_model, toy):
    plan = toy.volume_plan()
    model, arrays = make_model(plan)
    tables = np.random.default_rng(0).normal(0, 1, (5, 2)).astype(np.float32)
    together = model.logits(arrays[:5], tables)
    alone = np.concatenate([model.logits(arrays[n : n + 1], tables[n : n + 1]) for n in range(5)])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    predictor = model.predictor
    for copies in (1, 2):  # whichever way was found faster
        predictor._learned["copies"] = copies
        np.testing.assert_allclose(predictor.logits(arrays[:1], tables[:1]), together[:1], atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_faster_engine_gives_the_same_answers_and_is_dropped_when_it_fails(
    make_model, toy, dimensions, monkeypatch, caplog
):
    pytest.importorskip("openvino")
    from sagittal.model import engines, predictor

    plan = toy.flat_plan(decide=DecidePlan(flips=(0,))) if dimensions == 2 else toy.volume_plan()
    model, arrays = make_model(plan, members=2)
    tables = np.zeros((5, 2), np.float32) if dimensions == 3 else None
    expected, read = model.logits(arrays[:5], tables), toy.cases_of(plan, arrays[:1])[0]
    probability = model.predict(read).probability
    monkeypatch.setattr(predictor, "QUICK_MS", 1e9)
    assert [choice.name for choice in model.predictor.speed_up()] == ["torch", "torch"]
    monkeypatch.setattr(predictor, "QUICK_MS", 0.0)
    monkeypatch.setattr(predictor, "choose_engine", partial(engines.choose_engine, asked=True))  # however slow here
    monkeypatch.setattr(predictor, "installed", lambda: {"openvino": engines.OpenVinoEngine})
    assert [choice.name for choice in model.predictor.speed_up()] == ["openvino", "openvino"]
    np.testing.assert_allclose(model.logits(arrays[:5], tables), expected, atol=1e-4)
    np.testing.assert_allclose(model.predict(read).probability, probability, atol=1e-4)

    def fail(images):
        raise RuntimeError("it broke")

    broken = model.predictor._engines[1]
    monkeypatch.setattr(broken, "run", fail)
    np.testing.assert_allclose(model.logits(arrays[:5], tables), expected, atol=1e-4)
    assert "going on with torch" in caplog.text
    assert list(model.predictor._engines) == [0]


def test_an_engine_that_sees_something_else_is_not_taken(make_model, monkeypatch):
    from sagittal.model import predictor

    class Wrong:
        name = "wrong"

        def __init__(self, parts, images):
            self.parts = parts

        def run(self, images):
            with torch.inference_mode():
                return self.parts(images)[0] + 0.1, None

    model, arrays = make_model()
    expected = model.logits(arrays[:3])
    monkeypatch.setattr(predictor, "QUICK_MS", 0.0)
    monkeypatch.setattr(predictor, "installed", lambda: {"wrong": Wrong})
    (choice,) = model.predictor.speed_up()
    assert choice.name == "torch"
    assert "differs from torch" in choice.refused["wrong"]
    np.testing.assert_array_equal(model.logits(arrays[:3]), expected)


def test_the_table_matters_and_may_miss_values(make_model, toy):
    plan = toy.volume_plan()
    model, arrays = make_model(plan)
    case = toy.cases_of(plan, arrays[:1])[0]
    young, old = (replace(case, table={"age": age}) for age in (20, 90))
    missing = replace(case, table={})
    answers = [model.predict(c).logits for c in (young, old, missing)]
    assert not np.allclose(answers[0], answers[1])
    assert np.all(np.isfinite(answers[2]))


def test_a_missing_table_is_refused(make_model, toy):
    model, arrays = make_model(toy.volume_plan())
    with pytest.raises(DataError, match="made for 2 table columns, this case has 0"):
        model.logits(arrays[:2])


def test_two_images_are_stacked(make_model, toy):
    plan = toy.flat_plan(input=InputPlan(images=("T1", "T2"), channels=2))
    model, arrays = make_model(plan)
    images = {
        name: ImageSource(lambda c=c: toy.image_of(arrays[0][c : c + 1], "OT", "1"))
        for c, name in enumerate(("T1", "T2"))
    }
    answer = model.predict(Case("two", "p", images))
    np.testing.assert_allclose(answer.logits, model.logits(arrays[:1])[0], atol=1e-5)
    with pytest.raises(DataError, match="case one: has no image 'T2'"):
        model.predict(Case("one", "p", {"T1": images["T1"], "FLAIR": images["T2"]}))
    with pytest.raises(DataError, match="case lone: has no image 'T1'"):
        model.predict(Case("lone", "p", {"image": images["T1"]}))  # not once for each


def test_decided_classes_are_among_those_not_excluded(make_model, toy):
    for point in ("most-probable", "sensitivity=0.95", "specificity=0.95"):
        model, arrays = make_model(toy.flat_plan(decide=DecidePlan(operating_point=point)))
        answers = list(model.predict_many(toy.cases_of(model.plan, arrays[:60])))
        assert all(set(a.decision) <= set(a.conformal) for a in answers)
        assert [a.decision for a in answers] == [model.operating_point.decide(a.probability, a.scheme) for a in answers]


def test_threads_may_share_a_model(make_model, toy):
    model, arrays = make_model(members=2)
    cases = toy.cases_of(model.plan, arrays[:40])
    expected = [a.logits for a in model.predict_many(cases)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: [a.logits for a in model.predict_many(cases, batch=7)], range(4)))
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_several_labels_and_grades(make_model, toy):
    for kind in ("multilabel", "ordinal"):
        scheme = LabelScheme(kind, ("a", "b", "c"))
        model, arrays = make_model(toy.flat_plan(scheme=scheme))
        for answer in model.predict_many(toy.cases_of(model.plan, arrays[:20])):
            held = set(answer.decision)
            if kind == "ordinal":
                assert answer.probability.sum() == pytest.approx(1)
                assert len(held) == 1
                places = [scheme.classes.index(name) for name in answer.conformal]
                assert places == list(range(min(places), max(places) + 1))
            else:
                assert held == {n for n, p in zip(scheme.classes, answer.probability, strict=True) if p >= 0.5}


def test_uncertainty_is_the_share_of_the_largest_entropy():
    assert uncertainty(np.full(4, 0.25), exclusive=True) == pytest.approx(1)
    assert uncertainty(np.array([1.0, 0.0]), exclusive=True) == 0
    assert uncertainty(np.array([0.9, 0.1]), exclusive=True) == pytest.approx(0.468996, abs=1e-6)  # bits
    assert uncertainty(np.array([0.5, 1.0]), exclusive=False) == pytest.approx(0.5)
