"""From the files of a study to the answer and the files of its result, as the process of a model does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sagittal.errors import ConfigError, DataError, ReadError, ResourceError
from sagittal.grid import Grid
from sagittal.jobs import make_objects
from sagittal.jobs.answer_study import answer_study, open_case
from sagittal.jobs.plain_answer import MOST_BOXES, plain_answer
from sagittal.jobs.warm import choose_threads, empty_case, facts_of, warm_up
from sagittal.labels import LabelScheme
from sagittal.model.load import AnyModel, load_model
from sagittal.prediction import Detections, Prediction
from sagittal.truth import Boxes
from sagittal.write.equipment import ModelFacts
from sagittal.write.statement import make_statement

KINDS = ("seg", "sr", "sc", "ko", "fhir", "hl7", "json")


@pytest.fixture(scope="module")
def chest(packages: SimpleNamespace) -> AnyModel:
    return load_model(packages.chest)


@pytest.fixture(scope="module")
def liver(packages: SimpleNamespace) -> AnyModel:
    return load_model(packages.liver)


@pytest.fixture
def files(tmp_path: Path, headers: SimpleNamespace) -> Callable[..., list[str]]:
    """Write images: ``files(*headers)`` gives their paths."""

    def write(*made: Any, name: str = "series") -> list[str]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        paths = []
        for n, one in enumerate(made):
            path = folder / f"{n:03d}.dcm"
            path.write_bytes(one if isinstance(one, bytes) else headers.file_bytes(one))
            paths.append(str(path))
        return paths

    return write


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Answer: ``ask(model, paths)`` gives what came, and the folder of the files."""
    counter = iter(range(100))

    def answer(model: AnyModel, inputs: Any, **more: Any) -> tuple[dict[str, Any], Path]:
        spool = tmp_path / f"spool-{next(counter)}"
        spool.mkdir()
        request = {
            "study": 12,
            "name": "served name",
            "inputs": inputs if isinstance(inputs, dict) else {"image": inputs},
            "inputs_hash": "ab" * 32,
            "spool": str(spool),
            "results": list(KINDS),
            "made_at": 1_790_000_000.0,
            "explain_s": 0.0,
            **more,
        }
        return answer_study(model, request, advance=lambda _: None), spool

    return answer


def test_a_result_made_again_is_the_same_to_the_byte(
    liver: AnyModel, files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    paths = files(*headers.volume())
    (first, a), (second, b) = ask(liver, paths), ask(liver, paths)
    assert first["notes"] == second["notes"] == []
    names = {path.name for path in a.iterdir()}
    assert len(names) == len(KINDS) + 1
    for name in sorted(names - {"mask.nii.gz"}):  # gzip notes the time
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    other, _ = ask(liver, paths, inputs_hash="cd" * 32)
    assert {one["kind"] for one in other["objects"]} == {one["kind"] for one in first["objects"]}


def test_the_answer_names_the_model_as_the_service_does(
    chest: AnyModel, files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    found, spool = ask(chest, files(headers.picture()))
    assert found["answer"]["model"] == {
        "name": "served name",
        "version": chest.label.partition(" (")[2].rstrip(")"),
        "checksum": chest.checksum,
    }
    assert found["answer"]["kind"] == "classes"
    assert json.loads((spool / "result.json").read_text())["model"]["sha256"] == chest.checksum
    for path in spool.iterdir():
        if path.suffix not in {".dcm", ".hl7"} and not path.name.startswith("fhir"):
            assert b"Secret" not in path.read_bytes()
            assert b"SECRET" not in path.read_bytes()


def test_a_study_the_gate_does_not_know_is_an_abstention(
    chest: Any, files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    careful = replace(chest, gate=replace(chest.gate, limit=1e-6, abstains=True))
    found, spool = ask(careful, files(headers.picture()))
    assert found["answer"]["state"] == "abstained"
    assert found["answer"]["decision"] == []
    assert "unlike the cases the model knows" in found["answer"]["reason"]
    assert {path.name for path in spool.iterdir()} >= {"sr.dcm", "sc.dcm", "result.json"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Modality": "MR"}, "is a study of modality MR, the model was made for CR"),
        ({"Rows": 40}, "40 x 10 voxels, the model was made for 12 x 10"),
    ],
)
def test_a_study_of_another_kind_is_refused_in_every_object(
    chest: AnyModel,
    files: Callable[..., Any],
    ask: Callable[..., Any],
    headers: SimpleNamespace,
    change: dict[str, Any],
    reason: str,
) -> None:
    made = headers.picture(**change)
    if "Rows" in change:
        made.PixelData = bytes(400)
    found, spool = ask(chest, files(made))
    assert found["answer"]["state"] == "refused"
    assert reason in found["answer"]["reason"]
    assert {path.name for path in spool.iterdir()} == {
        "sr.dcm", "sc.dcm", "ko.dcm", "fhir-r4.json", "oru.hl7", "result.json",
    }  # fmt: skip


def test_a_volume_among_scouts_is_taken_and_two_volumes_are_refused(
    liver: AnyModel, files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    scout = headers.volume(slices=1, first=50, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    found, _ = ask(liver, files(*headers.volume(), *scout, name="with-scout"))
    assert found["answer"]["state"] == "answered"
    assert found["answer"]["shape"] == [24, 20, 8]
    echoes = [*headers.volume(slices=6, EchoTime=10), *headers.volume(slices=6, first=20, EchoTime=80)]
    for n, made in enumerate(echoes[6:]):
        made.ImagePositionPatient = echoes[n].ImagePositionPatient
    found, spool = ask(liver, files(*echoes, name="echoes"))
    assert found["answer"]["state"] == "refused"
    assert "holds 2 images" in found["answer"]["reason"]
    assert (spool / "sr.dcm").is_file()


def test_a_slice_that_cannot_be_read_is_an_error_and_no_answer(
    liver: AnyModel, files: Callable[..., Any], headers: SimpleNamespace
) -> None:
    paths = files(*headers.volume(), b"not DICOM")
    with pytest.raises(ReadError, match="case study-1: 1 of 9 files of the series cannot be read"):
        open_case("study-1", {"image": paths})


def test_two_inputs_are_read_by_their_names(
    files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    model = _two_inputs()
    t1, flair = files(headers.picture(series="1"), name="t1"), files(headers.picture(series="2"), name="flair")
    found, _ = ask(model, {"T1": t1, "FLAIR": flair}, results=["json"])
    swapped, _ = ask(model, {"T1": flair, "FLAIR": t1}, results=["json"])
    assert found["answer"]["state"] == "answered"
    p, q = (one["answer"]["classes"][0]["probability"] for one in (found, swapped))
    assert p != pytest.approx(q, abs=1e-4)


def _two_inputs() -> Any:
    import torch

    from sagittal.model.package import Model
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_task

    plan = Plan(
        scheme=LabelScheme("binary", ("benign", "malignant")),
        input=InputPlan(images=("T1", "FLAIR"), modality="CR", channels=2),
        network=NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        prepare=PreparePlan(size=(12, 10), offset=(120.0, 120.0), scale=(60.0, 60.0), store="uint8"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_network(plan.network, channels=2, dimensions=2, head=make_task(plan).head, table=0)
    truth = np.eye(2)[np.arange(60) % 2]
    logits = 2 * truth + np.random.default_rng(0).normal(0, 1, truth.shape)
    return Model.assemble("two", plan, [network.eval()], logits=logits, truth=truth)


def test_a_map_takes_no_more_time_than_it_may(
    chest: AnyModel, files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    paths = files(headers.picture())
    quick, _ = ask(chest, paths, explain_s=1e-6, results=[])
    assert quick["notes"] == [
        note for note in quick["notes"] if note.startswith("no map of where the model looked: about")
    ]
    assert len(quick["notes"]) == 1
    patient, spool = ask(chest, paths, explain_s=1e6, results=[])
    kinds = [one["kind"] for one in patient["objects"]]
    assert kinds == ["map"] or "no better than chance" in patient["notes"][0]
    if kinds:
        from PIL import Image as Pictures

        with Pictures.open(spool / "map.png") as picture:
            assert picture.size == (10, 12)
            assert np.asarray(picture).max() == 255


def test_an_object_that_cannot_be_made_is_noted_and_stops_no_other(
    liver: AnyModel,
    files: Callable[..., Any],
    ask: Callable[..., Any],
    headers: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = make_objects.make_standard

    def broken(answer: Any, case: Any, kinds: Any, *rest: Any, **more: Any) -> Any:
        if "sr" in kinds:
            raise DataError("case study-12: too many structures") if len(kinds) == 1 else KeyError("Smith^John")
        return real(answer, case, kinds, *rest, **more)

    monkeypatch.setattr(make_objects, "make_standard", broken)
    found, _ = ask(liver, files(*headers.volume()), results=["seg", "sr", "json"])
    assert {one["kind"] for one in found["objects"]} == {"seg", "json", "mask"}
    assert found["notes"] == ["the object 'sr' could not be made: too many structures"]


def test_a_full_disk_keeps_nothing_of_a_result(
    liver: AnyModel,
    files: Callable[..., Any],
    ask: Callable[..., Any],
    headers: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(make_objects, "make_standard", full)
    with pytest.raises(ResourceError, match="full"):
        ask(liver, files(*headers.volume()))


def test_a_kind_that_is_not_known_is_refused(
    chest: AnyModel, files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace
) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'seg'"):
        ask(chest, files(headers.picture()), results=["sge"])


def test_boxes_are_told_in_voxels_and_in_the_patient() -> None:
    affine = np.array([[0.0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    grid = Grid((30, 30, 10), affine)
    corners = np.tile(np.array([[[2.5, 3.5, 1.5], [8.5, 9.5, 4.5]]]), (MOST_BOXES + 5, 1, 1))
    chosen = np.zeros(len(corners), dtype=bool)
    chosen[[0, MOST_BOXES + 4]] = True
    found = Detections(Boxes(corners, [0] * len(corners)), np.linspace(0.9, 0.1, len(corners)), grid, chosen)
    scheme = LabelScheme("objects", ("nodule",))
    answer = Prediction("study-1", scheme, found, ("nodule",), np.zeros(0), model="m (format 1)")
    plain = plain_answer(answer, make_statement(answer), (), ModelFacts("m"))
    assert len(plain["boxes"]) == MOST_BOXES + 1  # the surest, and all that were chosen
    assert plain["boxes"][-1]["chosen"]
    box = plain["boxes"][0]
    assert (box["label"], box["score"], box["slices"]) == ("nodule", 0.9, [2, 4])
    # By hand: x = 5 - 2 j, y = 6 + i, z = 7 + 3 k.
    assert box["corners_mm"][0] == [-2.0, 8.5, 11.5]
    assert box["corners_mm"][7] == [-14.0, 14.5, 20.5]
    assert plain["slices"] == [3]
    json.dumps(plain, allow_nan=False)


def test_an_empty_study_is_what_the_plan_asks_for(chest: AnyModel, liver: AnyModel) -> None:
    for model in (chest, liver):
        model.predict(empty_case(model.plan))
        assert warm_up(model) > 0
        assert facts_of(model)["checksum"] == model.checksum


def test_a_small_network_takes_the_threads_that_are_faster(chest: AnyModel, liver: AnyModel) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        chosen = choose_threads(chest, 2)
        assert chosen in {1, 2}
        assert torch.get_num_threads() == chosen
        assert choose_threads(liver, 2) == 2  # one study at a time: all that there are
        assert choose_threads(chest, 1) == 1
    finally:
        torch.set_num_threads(before)


def test_the_map_of_a_volume_lies_where_the_volume_lies(
    files: Callable[..., Any], ask: Callable[..., Any], headers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nibabel

    from sagittal.explain.maps import Map

    model = _volume_classifier()
    asked: list[Any] = []

    def looked(_: Any, case: Any) -> list[Map]:
        asked.append(case)
        grid = case.image().grid
        heat = np.zeros(grid.shape, dtype=np.float32)
        heat[3, 4, 5], heat[6, 7, 2] = 0.5, 0.25
        worth = SimpleNamespace(better_than_random=True)
        return [Map("study-12", "gradcam", "yes", 0.9, heat, grid, heat, worth, 0.1)]  # type: ignore[arg-type]

    monkeypatch.setattr(make_objects, "explain_case", looked)
    found, spool = ask(model, files(*headers.volume()), explain_s=1e6, results=["ko"])
    assert {one["kind"] for one in found["objects"]} == {"map", "ko"}
    nifti = nibabel.load(spool / "map.nii.gz")
    values = np.asarray(nifti.dataobj)
    assert (values[3, 4, 5], values[6, 7, 2], int(values.sum())) == (255, 128, 383)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nifti.affine
    np.testing.assert_allclose(lps, asked[0].image().grid.affine, atol=1e-4)


def _volume_classifier() -> Any:
    import torch

    from sagittal.model.package import Model
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_task

    plan = Plan(
        scheme=LabelScheme("binary", ("no", "yes")),
        input=InputPlan(modality="CT", unit="HU", dimensions=3),
        network=NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        prepare=PreparePlan(size=(8, 12, 10), offset=(0.0,), scale=(300.0,), clip=(-1000.0, 1000.0)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_network(plan.network, channels=1, dimensions=3, head=make_task(plan).head, table=0)
    truth = np.eye(2)[np.arange(60) % 2]
    logits = 2 * truth + np.random.default_rng(0).normal(0, 1, truth.shape)
    return Model.assemble("volumes", plan, [network.eval()], logits=logits, truth=truth)
