"""Places are predicted on the study's own grid, in bounded memory, and a bad case stops no other."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, ReadError, ResourceError, ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model import memory, place_predictor
from sagittal.model.gate import fit_gate
from sagittal.model.memory import free_memory, windows_bytes
from sagittal.model.place_predictor import PlacePredictor, found_classes, place_uncertainty, present, unmirror
from sagittal.model.predictor import hold
from sagittal.model.windows import lay_out
from sagittal.networks.heads import Head, build_network
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.prepare.arrays import to_input
from sagittal.prepare.plan import DecidePlan, InputPlan, NetworkPlan, Plan, PreparePlan
from sagittal.prepare.resample import resize
from sagittal.prepare.volumes import prepare_volume
from sagittal.tasks.mask_collector import MaskCollector
from sagittal.tasks.registry import make_place_task
from sagittal.truth import Boxes, Segmentation, Structure

CPU = torch.device("cpu")
TILTED = np.array([[0.56, -0.42, 1.8, 10], [0.252, 0.336, 2.4, -20], [0.336, 0.448, -1.95, 30], [0, 0, 0, 1]])
TWO = LabelScheme("structures", ("dim", "bright"))


def plan_of(**changes: object) -> Plan:
    values = {
        "scheme": TWO,
        "task": "segment",
        "input": InputPlan(dimensions=3, modality="CT", unit="HU"),
        "prepare": PreparePlan(
            size=(8, 16, 16),
            spacing_mm=(3.0, 1.0, 1.0),
            whole=False,
            clip=(-1000.0, 1000.0),
            offset=(0.0,),
            scale=(100.0,),
            store="float16",
        ),
        "network": NetworkPlan(
            name="unet", width=8, depth=(1, 1), strides=((1, 2, 2), (2, 2, 2)), kernels=((3, 3, 3),) * 2
        ),
        "decide": DecidePlan(overlap=0.5, clean=False),
    }
    return Plan(**{**values, **changes})


class Thresholds(nn.Module):
    """Background below 1, `dim` below 3, `bright` above, of values that were normalised; sees the voxel alone."""

    multiple = (2, 4, 4)

    def __init__(self, shift: float = 0.0, seen: list | None = None) -> None:
        super().__init__()
        self.shift, self.seen = shift, seen

    def forward(self, image):
        if self.seen is not None:
            self.seen.append(tuple(image.shape))
        v = image[:, 0] + self.shift
        return torch.stack([10 * (1 - v), 10 * (1 - (v - 2).abs()), 10 * (v - 3)], dim=1)


def study(seed: int = 0, shape: tuple[int, int, int] = (30, 26, 13)) -> Image:
    rng = np.random.default_rng(seed)
    blobs = resize(rng.normal(200, 250, (4, 5, 5)).astype(np.float32), shape)
    return Image(blobs[None].clip(-900, 900), Grid(shape, TILTED), unit="HU", modality="CT")


def _given(image: Image) -> Image:
    return image


def case_of(image: Image, name: str = "case-1") -> Case:
    return Case(name, "patient-secret", {"image": ImageSource(partial(_given, image))})


def predictor_of(
    plan: Plan | None = None, members: tuple[nn.Module, ...] = (Thresholds(),), **changes
) -> PlacePredictor:
    plan = plan or plan_of()
    values = {
        "plan": plan,
        "task": make_place_task(plan),
        "members": members,
        "weights": tuple(1 / len(members) for _ in members),
        "settled": {},
        "gate": None,
        "label": "toy (format 1)",
        "device": CPU,
        "engine": "torch",
    }
    return PlacePredictor(**{**values, **changes})


def expected_labels(plan: Plan, case: Case, shift: float = 0.0) -> np.ndarray:
    """The whole array at once, resampled as a whole: what windows and slabs must equal."""
    volume = prepare_volume(hold(case, plan), plan)
    with torch.inference_mode():
        logits = Thresholds(shift)(to_input(torch.from_numpy(volume.array[None]), plan.prepare))[0].numpy()
    return resize(logits, volume.lattice.extent).argmax(axis=0).transpose(2, 1, 0)


def test_a_prediction_is_what_the_network_says_on_the_study_s_grid():
    plan, case = plan_of(), case_of(study())
    answer = predictor_of(plan).predict(case)
    assert isinstance(answer.finding, Mask)
    assert answer.finding.grid.shape == (30, 26, 13)
    np.testing.assert_allclose(answer.finding.grid.affine, TILTED)
    expected = expected_labels(plan, case)
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (answer.finding.segmentation.layers[0] != expected).mean() < 1e-3  # float rounding of sums alone
    assert (answer.case, answer.decision) == ("case-1", ("dim", "bright"))
    assert (answer.model, answer.logits.shape, answer.conformal) == ("toy (format 1)", (0,), ())
    assert answer.seconds > 0
    assert answer.made_at.endswith("+00:00")


def test_windows_are_cut_to_a_thin_volume():
    seen: list = []
    plan = plan_of(prepare=replace(plan_of().prepare, spacing_mm=None))
    predictor_of(plan, (Thresholds(seen=seen),)).predict(case_of(study(shape=(40, 44, 3))))
    assert seen[0][0] > 1  # several windows at once
    assert {shape[2] for shape in seen} == {3}
    seen.clear()
    predictor_of(plan, (Thresholds(seen=seen),)).predict(case_of(study(shape=(9, 11, 2))))
    assert {shape[1:] for shape in seen} == {(1, 2, 11, 9)}  # one window of the study's own size


def test_members_are_averaged_and_may_be_asked_singly():
    plan, case = plan_of(), case_of(study())
    one, other = Thresholds(0.3), Thresholds(-0.5)
    both = predictor_of(plan, (one, other), weights=(0.75, 0.25))
    volume = prepare_volume(hold(case, plan), plan)
    for number, alone in enumerate((one, other)):
        found = both.find(volume, (number,))
        np.testing.assert_array_equal(
            found.segmentation.layers, predictor_of(plan, (alone,)).find(volume).segmentation.layers
        )
        assert found.doubt is None  # a single view has no one to disagree with

    class Mean(nn.Module):
        def forward(self, image):
            return 0.75 * one(image) + 0.25 * other(image)

    mean = predictor_of(plan, (Mean(),)).find(volume).segmentation.layers
    found = both.find(volume)
    assert (found.segmentation.layers != mean).mean() < 1e-3
    assert found.doubt is not None


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
def test_doubt_is_where_networks_disagree(outputs):
    class Says(nn.Module):
        """`dim` on the left half of the axis, for sure; on the right as told."""

        def __init__(self, right: float) -> None:
            super().__init__()
            self.right = right

        def forward(self, image):
            count = 3 if outputs == "exclusive" else 2
            logits = torch.full((len(image), count, *image.shape[2:]), -50.0)
            middle = image.shape[-1] // 2
            dim = 1 if outputs == "exclusive" else 0
            logits[:, 0] = -40.0  # the background, where there is one
            logits[:, dim, ..., :middle] = 50.0
            logits[:, dim, ..., middle:] = self.right
            return logits

    plan = plan_of(outputs=outputs, prepare=replace(plan_of().prepare, size=(16, 64, 64), spacing_mm=None))
    found = predictor_of(plan, (Says(50.0), Says(-150.0))).find(prepare_volume(hold(case_of(study()), plan), plan))
    left, right = found.doubt[:15], found.doubt[15:]
    assert left.max() == 0
    # Two networks, sure of opposites: the summed standard deviation is sqrt(2 x 1/4).
    assert np.abs(right / 255 - 0.5**0.5).max() < 0.01


def test_mirrored_views_come_back_to_their_place():
    class Sided(nn.Module):
        """Sees `bright` only in the first rows of what it is shown."""

        def forward(self, image):
            logits = Thresholds()(image)
            logits[:, 2, :, image.shape[3] // 2 :] = -100.0
            return logits

    plan = plan_of(prepare=replace(plan_of().prepare, size=(16, 64, 64)), decide=DecidePlan(flips=(1,), clean=False))
    volume = prepare_volume(hold(case_of(study()), plan), plan)
    with torch.inference_mode():
        image = to_input(torch.from_numpy(volume.array[None]), plan.prepare)
        mean = (Sided()(image) + Sided()(image.flip(3)).flip(3)) / 2
    expected = resize(mean[0].numpy(), volume.lattice.extent).argmax(axis=0).transpose(2, 1, 0)
    found = predictor_of(plan, (Sided(),)).find(volume)
    assert (found.segmentation.layers[0] != expected).mean() < 1e-3


def test_outputs_with_a_direction_change_places_when_mirrored():
    head = Head("dense", 3, mirror=((0, 1, 2), (0, 2, 1)))
    found = torch.arange(12.0).reshape(1, 3, 2, 2)
    along = unmirror(found, (2,), head)
    torch.testing.assert_close(along, found.flip(2))
    across = unmirror(found, (3,), head)
    torch.testing.assert_close(across[:, 1], found.flip(3)[:, 2])
    torch.testing.assert_close(unmirror(unmirror(found, (2, 3), head), (2, 3), head), found)
    assert unmirror(found, (), head) is found


def test_a_bad_case_stops_no_other():
    def fail(error: Exception) -> Case:
        def read():
            raise error

        return Case(f"bad-{type(error).__name__}", "p", {"image": ImageSource(read)})

    nan = study()
    nan.data[0, 3, 4, 5] = np.nan
    cases = [
        fail(ReadError("case bad-ReadError: the file ends after 10 bytes")),
        case_of(study(1), "one"),
        fail(RuntimeError("decoder failed for MÜLLER^HANS")),
        case_of(replace(study(), modality="MR"), "other"),
        case_of(nan, "hole"),
        fail(MemoryError()),
        case_of(study(2), "two"),
    ]
    answers = list(predictor_of().predict_many(cases))
    assert [a.case for a in answers] == [c.id for c in cases]
    kinds = {a.case: a.kind for a in answers if isinstance(a, Failure)}
    assert kinds == {
        "bad-ReadError": "ReadError",
        "bad-RuntimeError": "RuntimeError",
        "other": "ScopeError",
        "hole": "DataError",
        "bad-MemoryError": "ResourceError",
    }
    assert not any("MÜLLER" in a.error for a in answers if isinstance(a, Failure))
    for answer in (answers[1], answers[6]):
        assert isinstance(answer, Prediction)
        alone = predictor_of().predict(next(c for c in cases if c.id == answer.case))
        np.testing.assert_array_equal(answer.finding.segmentation.layers, alone.finding.segmentation.layers)


def test_reading_goes_one_case_ahead_and_no_further():
    read: list[int] = []
    lock = threading.Lock()

    def source(number: int) -> Image:
        with lock:
            read.append(number)
        return study(number)

    cases = (Case(str(n), "p", {"image": ImageSource(partial(source, n))}) for n in range(6))
    answers = predictor_of().predict_many(cases)
    next(answers)
    assert max(read) <= 1
    assert len(list(answers)) == 5


def test_an_answer_that_is_not_finite_is_refused():
    class Wild(nn.Module):
        def forward(self, image):
            return Thresholds()(image) * float("inf")

    answer = next(predictor_of(members=(Wild(),)).predict_many([case_of(study())]))
    assert isinstance(answer, Failure)
    assert answer.kind == "ScopeError"
    assert answer.error.startswith("case case-1: the network's answer is not finite")
    with pytest.raises(ScopeError, match="case case-1: the network's answer is not finite"):
        predictor_of(members=(Wild(),)).predict(case_of(study()))


class Full(nn.Module):
    """Has memory for windows of so many voxels."""

    multiple = (2, 4, 4)

    def __init__(self, voxels: int) -> None:
        super().__init__()
        self.voxels = voxels

    def forward(self, image):
        if image[:, 0].numel() > self.voxels:
            raise MemoryError
        return Thresholds()(image)


def test_what_memory_does_not_hold_is_done_in_smaller_windows(caplog):
    plan, case = plan_of(), case_of(study(shape=(60, 60, 30)))
    with caplog.at_level(logging.WARNING):
        answer = predictor_of(plan, (Full(8 * 16 * 16 // 4),)).predict(case)
    assert (answer.finding.segmentation.layers[0] != expected_labels(plan, case)).mean() < 1e-3
    assert caplog.text.count("going on with smaller ones") == 2
    assert "patient-secret" not in caplog.text


def test_what_no_window_holds_is_an_error_that_says_what_to_do():
    with pytest.raises(
        ResourceError, match=r"case case-1: memory does not hold the answer on [0-9x ]* voxels on cpu.*cut the"
    ):
        predictor_of(members=(Full(10),)).predict(case_of(study()))


def test_what_will_not_fit_is_not_begun(monkeypatch, caplog):
    plan, case = plan_of(), case_of(study(shape=(60, 60, 30)))
    seen: list = []
    whole = predictor_of(plan, (Thresholds(seen=seen),))
    whole.predict(case)
    largest = max(np.prod(shape) for shape in seen)
    layouts = [whole._lay_out(prepare_volume(hold(case, plan), plan).array.shape[1:], g) for g in (1.5, 1.0, 0.5)]
    needs = [windows_bytes(plan, layout, outputs=3, batch=1, views=1) for layout in layouts]
    assert needs[0] > needs[1] > needs[2]
    monkeypatch.setattr(place_predictor, "free_memory", lambda: int(needs[2] * 1.01))
    seen.clear()
    with caplog.at_level(logging.WARNING):
        answer = whole.predict(case)
    assert max(np.prod(shape) for shape in seen) < largest / 4
    assert "memory does not hold windows of" in caplog.text
    assert (answer.finding.segmentation.layers[0] != expected_labels(plan, case)).mean() < 1e-3
    monkeypatch.setattr(place_predictor, "free_memory", lambda: needs[2] // 2)
    seen.clear()
    with pytest.raises(ResourceError, match="it takes about"):
        whole.predict(case)
    assert seen == []


def test_free_memory_is_that_of_the_machine_or_container():
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


def test_free_memory_is_unknown_where_nothing_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / name.strip("/"))
    assert free_memory() is None
    for name, text in (("memory.max", "1000\n"), ("memory.current", "400\n")):
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert free_memory() == 600
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   500 kB\n")
    assert free_memory() == 600
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert free_memory() == 512_000


def test_need_grows_with_classes_and_depth():
    plan = plan_of()
    layout = lay_out((600, 512, 512), (64, 128, 128), overlap=0.25)
    few, many = (windows_bytes(plan, layout, outputs=n, batch=1, views=1) for n in (2, 21))
    assert many > few > 0
    assert many > 4 * 21 * layout.depth * 512 * 512  # the accumulator alone


def test_the_gate_judges_what_the_networks_saw():
    plan = plan_of(network=replace(plan_of().network, width=8))
    task = make_place_task(plan)
    torch.manual_seed(0)
    network = build_network(plan.network, channels=1, dimensions=3, head=task.head).eval()
    plain = predictor_of(plan, (network,))

    def noise(seed: int, strength: float = 100.0) -> Image:
        values = np.random.default_rng(seed).normal(0, strength, (1, 24, 24, 6)).clip(-900, 900)
        return Image(values.astype(np.float32), Grid((24, 24, 6), TILTED), unit="HU", modality="CT")

    seen = [plain.look(prepare_volume(case_of(noise(n)), plan))[1][0] for n in range(30)]
    assert seen[0].shape == (network.features,)
    gate = fit_gate([np.stack(seen)], abstains=True)
    judged = predictor_of(plan, (network,), gate=gate)
    near, far = judged.predict(case_of(noise(50))), judged.predict(case_of(noise(51, 600.0)))
    assert near.verdict.accepted
    assert not far.verdict.accepted
    assert far.decision == ()  # the gate abstains


def test_embeddings_are_the_mean_over_windows():
    plan = plan_of(prepare=replace(plan_of().prepare, size=(4, 8, 8)))
    task = make_place_task(plan)
    torch.manual_seed(0)
    network = build_network(plan.network, channels=1, dimensions=3, head=task.head).eval()
    volume = prepare_volume(case_of(study()), plan)
    predictor = predictor_of(plan, (network,))
    layout = predictor._lay_out(volume.array.shape[1:], place_predictor.GROWTH)
    parts = []
    for a in layout.starts[0]:
        for b in layout.starts[1]:
            for c in layout.starts[2]:
                box = tuple(slice(s, s + w) for s, w in zip((a, b, c), layout.window, strict=True))
                window = to_input(torch.from_numpy(volume.array[(None, slice(None), *box)]), plan.prepare)
                with torch.inference_mode():
                    parts.append(network.embed(window)[0].numpy())
    assert layout.count > 4
    np.testing.assert_allclose(predictor.look(volume, batch=3)[1][0], np.mean(parts, axis=0), atol=1e-5)


def test_probability_comes_only_when_asked_for():
    answer = predictor_of().predict(case_of(study()))
    assert answer.finding.probability == {}
    asked = next(predictor_of().predict_many([case_of(study())], probability=True))
    assert asked.finding.probability["bright"].shape == (30, 26, 13)


def test_pictures_are_predicted_too():
    plan = plan_of(
        input=InputPlan(dimensions=2),
        prepare=PreparePlan(size=(16, 16), whole=False, offset=(0.0,), scale=(100.0,)),
        network=NetworkPlan(name="unet", width=8, depth=(1, 1), strides=((1, 1), (2, 2)), kernels=((3, 3),) * 2),
    )
    pixels = study(shape=(40, 33, 1)).data
    image = Image(pixels, Grid((40, 33, 1)))

    class Flat(Thresholds):
        multiple = (4, 4)

    answer = predictor_of(plan, (Flat(),)).predict(case_of(image))
    v = pixels[0] / 100
    expected = np.stack([10 * (1 - v), 10 * (1 - np.abs(v - 2)), 10 * (v - 3)]).argmax(axis=0)
    np.testing.assert_array_equal(answer.finding.segmentation.layers[0], expected)


def test_what_was_found_is_named():
    grid = Grid((2, 2, 1))
    layers = np.zeros((2, 2, 2, 1), np.uint8)
    layers[1, 0, 0, 0] = 5
    parts = (Structure("a", (1,)), Structure("b", (3, 5), 1), Structure("c", (4,), 1))
    assert present(Segmentation(layers, grid, parts)) == ("b",)
    boxes = Boxes(np.zeros((2, 2, 3)), [1, 0])
    found = Detections(boxes, np.array([0.9, 0.1]), grid, np.array([True, False]))
    scheme = LabelScheme("objects", ("nodule", "node"))
    assert found_classes(found, scheme) == ("node",)
    assert np.isnan(place_uncertainty(found))


def test_uncertainty_is_what_lacks_to_the_mean_expected_dice():
    segmentation = Segmentation(np.zeros((1, 1, 1, 1), np.uint8), Grid((1, 1, 1)), ())
    mask = Mask(segmentation, expected_dice={"a": 0.9, "b": 0.7, "c": float("nan")})
    assert place_uncertainty(mask) == pytest.approx(0.2)
    assert np.isnan(place_uncertainty(Mask(segmentation)))


def test_a_model_needs_networks_and_as_many_weights():
    with pytest.raises(ConfigError, match="a model needs networks and a weight for each"):
        predictor_of(members=(), weights=())
    with pytest.raises(ConfigError, match="batch must be 1 or more, not 0"):
        next(predictor_of().predict_many([], batch=0))


def test_the_collector_is_the_task_s():
    plan = plan_of()
    lattice = prepare_volume(case_of(study()), plan).lattice
    assert isinstance(make_place_task(plan).collector(lattice), MaskCollector)
