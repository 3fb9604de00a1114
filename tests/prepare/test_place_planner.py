"""Plans of structures and objects follow the fingerprint, and say why."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sagittal.errors import ConfigError
from sagittal.labels import LabelScheme
from sagittal.prepare.fingerprint import ChannelFacts, Fingerprint, Spread
from sagittal.prepare.place_facts import ObjectFacts, StructureFacts
from sagittal.prepare.place_planner import make_place_plans, stages, window_size
from sagittal.prepare.plan import Plan
from sagittal.prepare.planner import Wishes


def same(value: float) -> Spread:
    return Spread(value, value, value, value, value)


def fingerprint(**changes: object) -> Fingerprint:
    """200 MR volumes of about 36 x 50 x 35 voxels of 1 mm with two structures."""
    spread = Spread(-100, -90, 0, 300, 400)
    base = Fingerprint(
        name="volumes",
        cases=200,
        patients=200,
        sampled=48,
        splits={"": 200},
        scheme=LabelScheme("structures", ("front", "back")),
        classes={"front": 48, "back": 48},
        unknown=0,
        images=("image",),
        dimensions=3,
        size=(same(36), same(50), same(35)),
        spacing_mm=(same(1), same(1), same(1)),
        channels={"1": 48},
        modality="MR",
        modalities={"MR": 48},
        unit="1",
        body_part="",
        whole_numbers=False,
        binary=False,
        intensity=(ChannelFacts(100, 50, spread),),
        columns=(),
        read_s=0.01,
        bytes_in_memory=250_000,
        content="",
        structures=(StructureFacts("front", present=48, voxels=same(1500), thickness=5, length=20),),
        inputs=(ChannelFacts(100, 50, spread),),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def plans(found: Fingerprint, task: str = "segment", **wishes: object) -> list[Plan]:
    return make_place_plans(found, budget_s=1800.0, task=task, wishes=Wishes(**wishes))  # type: ignore[arg-type]


def test_plans_go_from_costly_to_cheap_and_survive_json() -> None:
    ladder = plans(fingerprint())
    cost = [p.network.width * math.prod(p.prepare.size) * sum(p.network.depth) * p.train.batch for p in ladder]
    assert cost == sorted(cost, reverse=True)
    for plan in ladder:
        assert Plan.from_json(plan.to_json()) == plan
        assert not plan.prepare.whole
        assert plan.prepare.spacing_mm == (1, 1, 1)
        assert {"prepare.size", "prepare.spacing_mm", "outputs", "network.strides", "split.folds"} <= set(plan.why)


def test_windows_are_whole_multiples_of_the_strides() -> None:
    for plan in [*plans(fingerprint()), *plans(fingerprint(size=(same(300), same(512), same(512))))]:
        for axis, n in enumerate(plan.prepare.size):
            assert n % math.prod(stride[axis] for stride in plan.network.strides) == 0


def test_long_voxels_are_resampled_and_convolved_by_themselves() -> None:
    thick = fingerprint(
        spacing_mm=(Spread(2, 2.5, 5, 6, 7), same(0.8), same(0.8)), size=(same(30), same(256), same(256))
    )
    plan = plans(thick)[0]
    assert plan.prepare.spacing_mm == (2.5, 0.8, 0.8)
    assert plan.network.strides[1][0] == 1
    assert plan.network.kernels[0] == (1, 3, 3)
    assert plan.prepare.size[0] < plan.prepare.size[1] == plan.prepare.size[2]


def test_large_studies_are_made_coarser_as_far_as_small_structures_bear_it() -> None:
    size = (same(400), same(512), same(512))
    ball = StructureFacts("front", present=48, voxels=same(4e6), thickness=40, length=200)
    coarse = plans(fingerprint(size=size, structures=(ball,)))[0].prepare.spacing_mm
    small = plans(fingerprint(size=size, structures=(replace(ball, voxels=same(900)),)))[0].prepare.spacing_mm
    assert coarse is not None
    assert small is not None
    assert min(coarse) > 2
    assert 1 < max(small) < 1.6


def test_values_are_normalised_by_what_they_mean() -> None:
    assert plans(fingerprint())[0].prepare.normalise == "image"
    assert plans(fingerprint(zero_part=0.5))[0].prepare.normalise == "nonzero"
    inside = (ChannelFacts(60, 40, Spread(-200, -50, 60, 180, 900)),)
    ct = plans(fingerprint(unit="HU", modality="CT", foreground=inside))[0].prepare
    assert (ct.normalise, ct.clip, ct.offset, ct.scale) == ("fixed", (-50, 180), (60,), (40,))


def test_structures_that_overlap_or_are_not_known_everywhere_are_answered_one_by_one() -> None:
    assert plans(fingerprint())[0].outputs == "exclusive"
    assert plans(fingerprint(exclusive=False))[0].outputs == "independent"
    assert plans(fingerprint(partly_known=True))[0].outputs == "independent"


def test_thin_trees_are_learnt_by_their_centrelines() -> None:
    assert plans(fingerprint())[0].train.loss == "dice-ce"
    vessels = StructureFacts("front", present=48, voxels=same(60_000), thickness=4.6, length=900)
    assert plans(fingerprint(structures=(vessels,)))[0].train.loss == "dice-ce-cldice"


def test_nothing_is_mirrored_where_a_name_has_a_side() -> None:
    scheme = LabelScheme("structures", ("left", "right"), lateral=True)
    plan = plans(fingerprint(scheme=scheme))[0]
    assert plan.augment.flip == plan.decide.flips == ()


def test_several_images_have_as_many_channels() -> None:
    several = fingerprint(images=("T1", "T2"), image_channels=(1, 1), inputs=(ChannelFacts(1, 1, same(0)),) * 2)
    plan = plans(several)[0]
    assert plan.input.channels == 2
    assert len(plan.prepare.offset) == len(plan.prepare.scale) == 2


def boxes(edge: float, **changes: object) -> Fingerprint:
    return fingerprint(
        scheme=LabelScheme("objects", ("cell", "speck")),
        dimensions=2,
        size=(same(480), same(640)),
        spacing_mm=(),
        whole_numbers=True,
        modality="OT",
        structures=(),
        channels={"3": 48},
        intensity=(ChannelFacts(100, 50, same(0)),) * 3,
        inputs=(ChannelFacts(100, 50, same(0)),) * 3,
        objects=(ObjectFacts("cell", 900, 48, edges=(same(100), same(100))), ObjectFacts("speck", 90, 40, edges=(same(edge),) * 2)),
        **changes,
    )  # fmt: skip


def test_pictures_shrink_as_far_as_their_smallest_objects_bear_it() -> None:
    plan = plans(boxes(40), "detect")[0]
    assert plan.prepare.zoom == (0.5, 0.5)
    assert plan.prepare.store == "uint8"
    assert plan.network.head_stride == 4
    assert plan.train.class_weights == "sqrt"
    assert plans(boxes(16), "detect")[0].prepare.zoom is None


def test_colour_pictures_are_mirrored_along_both_axes() -> None:
    assert plans(boxes(40), "detect")[0].augment.flip == (0, 1)


def test_a_table_beside_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes no table"):
        plans(fingerprint(), inputs=("age",))


def test_a_fast_preset_leaves_the_costly_networks_out() -> None:
    assert len(plans(fingerprint(), preset="fast")) < len(plans(fingerprint()))


@pytest.mark.parametrize("window", [(8, 8, 8), (3, 64, 64), (40, 56, 40), (1, 200, 200)])
def test_no_axis_shrinks_below_four_voxels(window: tuple[int, ...]) -> None:
    strides, kernels = stages(window, (1.0, 1.0, 1.0))
    assert len(strides) == len(kernels)
    for axis, n in enumerate(window):
        assert n / math.prod(stride[axis] for stride in strides) >= min(n, 4)


def test_a_window_is_no_larger_than_it_may_be() -> None:
    for voxels in (16**3, 64**3, 128**3):
        size = window_size((300, 512, 400), (1.5, 0.7, 0.7), voxels)
        assert math.prod(size) <= 1.1 * voxels
        edges = [n * s for n, s in zip(size, (1.5, 0.7, 0.7), strict=True)]
        assert max(edges) / min(edges) < 1.2
