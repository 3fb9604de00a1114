"""From masks and boxes to a model: it learns, repeats, resumes, and answers from its package as it was judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sagittal.errors import ConfigError, PackageError
from sagittal.model.load import load_model
from sagittal.model.package import Model
from sagittal.model.place_model import PlaceModel
from sagittal.prediction import Detections, Mask
from sagittal.prepare.fingerprint import measure_dataset
from sagittal.progress import Advance
from sagittal.train.findings import load_finding, save_finding
from sagittal.train.place_run import train_places
from sagittal.train.run import Run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def fit(
    places: SimpleNamespace, folder: Path, kind: str = "structures", dimensions: int = 2, steps: int = 40, **how: object
) -> Run:
    dataset = places.dataset(kind, dimensions)
    plan = places.plan(dataset, dimensions, steps)
    return train_places(dataset, plan, folder, fingerprint=measure_dataset(dataset), **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def segmented(places: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return fit(places, tmp_path_factory.mktemp("segment"), steps=60)


def weights(run: Run) -> list[torch.Tensor]:
    return [value for member in run.model.members for value in member.state_dict().values()]


def test_a_network_learns_what_is_outlined(segmented: Run) -> None:
    rows = [segmented.model.task.score(answer, case) for answer, case in segmented.validation]
    assert len(rows) == len(segmented.validation) == len(segmented.splits.folds[0].val)
    assert np.mean([row["dice_ball"] for row in rows]) > 0.8


@pytest.mark.parametrize("kind", ["structures", "objects"])
def test_volumes_are_learnt_and_answered_on_their_own_grid(places: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    run = fit(places, tmp_path / "run", kind, 3, steps=12)
    for answer, case in run.validation:
        found = answer.finding
        assert isinstance(found, Mask if kind == "structures" else Detections)
        assert found.grid.same_place(case.image().grid)


def test_boxes_are_learnt(places: SimpleNamespace, tmp_path: Path) -> None:
    run = fit(places, tmp_path / "run", "objects", 2, steps=120)
    rows = [run.model.task.score(answer, case) for answer, case in run.validation]
    assert sum(row["n_hit"] for row in rows) >= 0.5 * sum(row["n_truth"] for row in rows)


def test_the_package_answers_as_the_run_was_judged(segmented: Run) -> None:
    """One preprocessing: what a saved model says equals what training said, to 1e-5 of a probability."""
    loaded = load_model(segmented.folder / "model")
    assert isinstance(loaded, PlaceModel)
    assert loaded.checksum == segmented.model.checksum
    for judged, case in segmented.validation:
        again = loaded.predict(case)
        assert isinstance(again.finding, Mask)
        assert isinstance(judged.finding, Mask)
        assert np.array_equal(again.finding.segmentation.layers, judged.finding.segmentation.layers)
        for name, value in judged.finding.expected_dice.items():
            assert again.finding.expected_dice[name] == pytest.approx(value, abs=1e-5, nan_ok=True)
        assert again.decision == judged.decision


def test_the_package_holds_nothing_that_only_training_sees(segmented: Run) -> None:
    assert segmented.plan.train.deep_supervision
    assert not [name for name in segmented.model.members[0].state_dict() if name.startswith("deep")]
    assert "sagittal" in (segmented.folder / "model" / "README.md").read_text().lower()


def test_each_kind_of_model_is_loaded_by_its_own_class(segmented: Run) -> None:
    with pytest.raises(PackageError, match="another kind"):
        Model.load(segmented.folder / "model")


def test_a_damaged_model_is_refused(places: SimpleNamespace, segmented: Run, tmp_path: Path) -> None:
    copy = segmented.model.save(tmp_path / "model.sagittal")
    assert load_model(tmp_path / "model.sagittal").checksum == copy.checksum
    data = bytearray((tmp_path / "model.sagittal").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.sagittal").write_bytes(bytes(data))
    with pytest.raises(PackageError):
        load_model(tmp_path / "model.sagittal")


def test_a_plan_with_its_steps_gives_the_same_weights(places: SimpleNamespace, segmented: Run, tmp_path: Path) -> None:
    dataset = places.dataset("structures", 2)
    again = train_places(dataset, segmented.plan, tmp_path / "again", fingerprint=measure_dataset(dataset))
    assert all(torch.equal(a, b) for a, b in zip(weights(segmented), weights(again), strict=True))


class Interrupting:
    """A reporter that presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def track(self, what: str, total: float | None = None) -> Iterator[Advance]:
        def advance(steps: float, note: str) -> None:
            if what == "train" and note:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        yield advance


def test_an_interrupted_run_goes_on_to_the_same_weights(
    places: SimpleNamespace, segmented: Run, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(places, tmp_path / "run", steps=60, reporter=Interrupting(30))
    resumed = fit(places, tmp_path / "run", steps=60, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(segmented), weights(resumed), strict=True))


def test_findings_come_back_from_disk_as_they_were(places: SimpleNamespace, segmented: Run, tmp_path: Path) -> None:
    answer, _ = next(iter(segmented.validation))
    save_finding(answer.finding, tmp_path / "one.npz")
    again = load_finding(tmp_path / "one.npz")
    assert isinstance(again, Mask)
    assert isinstance(answer.finding, Mask)
    assert np.array_equal(again.segmentation.layers, answer.finding.segmentation.layers)
    assert again.grid.same_place(answer.finding.grid)
    assert again.doubt is not None
    assert np.array_equal(again.doubt, answer.finding.doubt)


def test_folds_judge_every_case_by_networks_that_did_not_see_it(places: SimpleNamespace, tmp_path: Path) -> None:
    from dataclasses import replace

    dataset = places.dataset("structures", 2)
    plan = places.plan(dataset, 2, steps=6)
    plan = replace(plan, split=replace(plan.split, folds=2))
    run = train_places(dataset, plan, tmp_path / "run", fingerprint=measure_dataset(dataset))
    assert len(run.model.members) == 2
    assert sorted(case.id for _, case in run.validation) == sorted(case.id for case in dataset)


def test_several_devices_are_refused_where_they_differ(places: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different kinds"):
        fit(places, tmp_path / "run", device="cpu,cuda:0")


@pytest.mark.slow
def test_two_processes_train_together(places: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need the extra 'scale'")
    run = fit(places, tmp_path / "run", steps=60, device="cpu,cpu")
    rows = [run.model.task.score(answer, case) for answer, case in run.validation]
    assert np.mean([row["dice_ball"] for row in rows]) > 0.7


def test_a_file_in_another_order_gets_the_same_mask(places: SimpleNamespace, tmp_path: Path) -> None:
    from dataclasses import replace
    from functools import partial

    from sagittal.case import ImageSource
    from sagittal.grid import Grid
    from sagittal.image import Image
    from sagittal.prepare.turn import turn_array, turn_grid

    def other_way(image: Image) -> Image:
        turn = ((2, 1), (0, -1), (1, -1))
        grid = turn_grid(image.grid, turn)
        return replace(image, data=turn_array(image.data, turn).copy(), grid=Grid(grid.shape, grid.affine))

    dataset = places.dataset("structures", 3)
    plan = places.plan(dataset, 3, 12)
    plan = replace(plan, prepare=replace(plan.prepare, orient=True))
    run = train_places(dataset, plan, tmp_path / "run", fingerprint=measure_dataset(dataset))
    case = dataset.cases[0]
    turned = other_way(case.image())
    one = run.model.predict(case).finding
    two = run.model.predict(replace(case, images={"image": ImageSource(partial(other_way, case.image()))})).finding
    assert isinstance(one, Mask)
    assert isinstance(two, Mask)
    assert two.grid.same_place(turned.grid)
    expected = turn_array(one.segmentation.layers, ((2, 1), (0, -1), (1, -1)))
    assert expected.any()
    assert np.array_equal(two.segmentation.layers, expected)
