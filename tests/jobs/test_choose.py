"""Which series each model gets, why the others not, and what is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.connect import Database
from sagittal.database.schema import choices, instances, jobs, series, studies
from sagittal.errors import ConfigError
from sagittal.jobs.choose import choose_for_study, choose_series, inputs_hash, read_facts
from sagittal.jobs.packages import ServedModel, read_packages
from sagittal.jobs.rules import ModelEntry, SeriesFacts, SeriesRule, Use


def model_of(
    *series_rules: SeriesRule, images: tuple[str, ...] = ("image",), name: str = "lung", **changes: Any
) -> ServedModel:
    values: dict[str, Any] = {
        "entry": ModelEntry("lung", series=series_rules, **changes.pop("entry", {})),
        "name": name,
        "checksum": "ab" * 32,
        "path": None,
        "task": "segment",
        "classes": ("nodule",),
        "use": Use("CT", dimensions=3, images=images),
        "intended_use": {},
        "size": (8, 16, 16),
        "store": "float16",
        "channels": 1,
        "unit": "HU",
        "columns": (),
        "created": "",
        "bytes": 1,
    }
    return ServedModel(**{**values, **changes})


def ct(number: int, **facts: Any) -> SeriesFacts:
    return SeriesFacts(number, **{"modality": "CT", "images": 100, "thickness_mm": 5.0, **facts})


def test_the_thinnest_is_used_and_each_other_says_why_not() -> None:
    found = [
        ct(1),
        ct(2, thickness_mm=1.0),
        ct(3, modality="MR"),
        ct(4, images=1),
        ct(5, problem="mixed patients"),
    ]
    choice = choose_series(model_of(), found)
    assert choice.inputs == {"image": 2}
    assert {number: verdict.reason for number, verdict in choice.verdicts.items()} == {
        1: "fits, but another has thinner slices",
        2: "the best of 2 that fit: thinner slices",
        3: "modality MR, the model was made for CT",
        4: "a single image, the model was made for volumes",
        5: "has a problem: mixed patients",
    }


def test_the_first_rule_that_any_series_fits_decides() -> None:
    rules = (SeriesRule(description="lung"), SeriesRule(description="soft"))
    found = [ct(1, description="soft tissue", thickness_mm=0.5), ct(2, description="Lung")]
    choice = choose_series(model_of(*rules), found)
    assert choice.inputs == {"image": 2}
    assert choice.verdicts[1].reason == "fits a rule of lower preference"
    assert choose_series(model_of(*rules), found[:1]).inputs == {"image": 1}


def test_nothing_that_fits_is_told_with_its_reasons() -> None:
    choice = choose_series(model_of(SeriesRule(thickness_mm=(0, 2))), [ct(1), ct(2, modality="MR", thickness_mm=1.0)])
    assert choice.inputs == {}
    assert choice.reason == "slice thickness 5 mm, the rule asks for 0 to 2 mm; modality MR, the model was made for CT"
    assert choose_series(model_of(), []).reason == "the study holds no complete series"


CHANNELS = (SeriesRule(description="t1", image="T1"), SeriesRule(description="flair", image="FLAIR"))


def test_a_model_of_several_inputs_gets_each_or_nothing() -> None:
    brain = model_of(*CHANNELS, images=("T1", "FLAIR"), use=Use("MR", dimensions=3, images=("T1", "FLAIR")))
    t1, flair = ct(1, modality="MR", description="T1 MPRAGE"), ct(2, modality="MR", description="t2 FLAIR")
    both = choose_series(brain, [t1, flair, ct(3, modality="MR", description="DWI")])
    assert both.inputs == {"T1": 1, "FLAIR": 2}
    assert both.verdicts[1] == (True, "T1: the only one that fits")
    assert both.verdicts[2] == (True, "FLAIR: the only one that fits")
    assert not both.verdicts[3].fits
    one = choose_series(brain, [t1])
    assert one.inputs == {}
    assert one.reason == "no series for FLAIR, which the model needs as well"
    assert not one.verdicts[1].fits
    assert one.verdicts[1].reason.endswith("not used, as there is no series for FLAIR, which the model needs as well")


def test_no_series_is_two_inputs() -> None:
    rules = (SeriesRule(image="T1"), SeriesRule(image="FLAIR"))
    brain = model_of(*rules, images=("T1", "FLAIR"), use=Use("MR", dimensions=3, images=("T1", "FLAIR")))
    assert choose_series(brain, [ct(1, modality="MR")]).inputs == {}
    assert choose_series(brain, [ct(1, modality="MR"), ct(2, modality="MR")]).inputs == {"T1": 1, "FLAIR": 2}


# With a database -----------------------------------------------------------------------------------------------------


def choose(db: Database, study_id: int, models: Any, **more: Any) -> dict[str, Any]:
    with db.write() as c:
        return choose_for_study(c, study_id, models, **more)


def rows(db: Database, table: sa.Table) -> list[Any]:
    with db.read() as c:
        return list(c.execute(sa.select(table).order_by(table.c.id)).mappings())


def standing(db: Database, study_id: int) -> Any:
    with db.read() as c:
        return c.execute(sa.select(studies).where(studies.c.id == study_id)).mappings().one()


def test_facts_of_a_series_that_arrived(db: Database, send: Callable[..., int], headers: SimpleNamespace) -> None:
    send(*headers.volume(slices=4, SpacingBetweenSlices=3))
    with db.read() as c:
        facts = read_facts(c, dict(c.execute(sa.select(series)).mappings().one()))
    assert (facts.modality, facts.body_part, facts.images) == ("CT", "ABDOMEN", 4)
    assert (facts.thickness_mm, facts.size, facts.spacing_mm) == (3.0, (4.0, 20.0, 24.0), (3.0, 1.0, 1.0))
    assert facts.manufacturer == "Phantom works"
    assert facts.sop_classes == {"1.2.840.10008.5.1.4.1.1.2"}
    assert not facts.own
    assert facts.problem == ""


def test_a_study_is_queued_for_the_models_it_is_for(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture())
    outcome = choose(db, study, served)
    chest, _, liver = served
    assert len(outcome["queued"]) == 2
    assert list(outcome["reasons"]) == [liver.label]
    queued = rows(db, jobs)
    assert [job["kind"] for job in queued] == ["choose", "answer", "answer"]
    assert queued[1]["payload"]["series"] == {"image": 1}
    assert [job["payload"]["role"] for job in queued[1:]] == ["answers", "watches"]
    assert queued[1]["key"] == f"answer:{chest.checksum}:{study}:{queued[1]['payload']['inputs']}"
    assert standing(db, study)["status"] == "waiting"
    told = {row["model"]: (row["used"], row["reason"]) for row in rows(db, choices)}
    assert told[chest.label] == (True, "the only one that fits")
    assert told[liver.label] == (False, "modality CR, the model was made for CT")


def test_choosing_again_changes_nothing(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture())
    choose(db, study, served)
    before = (rows(db, jobs), [(r["id"], r["reason"]) for r in rows(db, choices)])
    send(headers.picture())  # the same image again
    choose(db, study, served)
    assert (rows(db, jobs), [(r["id"], r["reason"]) for r in rows(db, choices)]) == before


def test_a_study_waits_for_series_that_are_still_coming(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture())
    send(*headers.volume(series="2", slices=3), close=False)
    assert choose(db, study, served) == {"waits": 1}
    assert [job["kind"] for job in rows(db, jobs)] == ["choose"]


def test_late_slices_make_a_new_job_and_cancel_the_one_that_waits(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(*headers.volume(slices=6))
    choose(db, study, served)
    send(*headers.volume(slices=2, first=6))
    choose(db, study, served)
    answers = [job for job in rows(db, jobs) if job["kind"] == "answer"]
    assert [job["state"] for job in answers] == ["cancelled", "waiting"]
    assert answers[0]["error"] == "replaced: the study has other images now"
    assert answers[0]["payload"]["inputs"] != answers[1]["payload"]["inputs"]
    assert standing(db, study)["status"] == "waiting"
    assert [row["revision"] for row in rows(db, choices) if row["used"]] == [1, 2]


def test_a_study_no_model_is_for_says_why(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture(Modality="US"))
    choose(db, study, served)
    row = standing(db, study)
    assert row["status"] == "no-model"
    assert row["finding"] == (
        "chest: modality US, the model was made for CR; liver: modality US, the model was made for CT"
    )
    assert [job["kind"] for job in rows(db, jobs)] == ["choose"]


def test_a_service_without_models_says_so(db: Database, send: Callable[..., int], headers: SimpleNamespace) -> None:
    study = send(headers.picture())
    choose(db, study, ())
    assert standing(db, study)["finding"] == "no model of the service answers"


def test_mixed_patients_and_damaged_files_are_never_used(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    mixed = send(headers.picture(study="1"), headers.picture(study="1", number=2, PatientID="ANOTHER"))
    damaged = send(headers.picture(study="2"))
    with db.write() as c:
        c.execute(
            sa.update(instances).where(instances.c.source == "test", instances.c.id == 3).values(damage="altered")
        )
    for study, reason in ((mixed, "mixed patients"), (damaged, "1 of its files are missing or altered")):
        choose(db, study, served)
        assert standing(db, study)["status"] == "no-model"
        assert reason in standing(db, study)["finding"]
        assert "ANOTHER" not in standing(db, study)["finding"]


def test_our_own_results_in_a_study_are_no_inputs(
    db: Database, archive: Archive, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture())
    archive.store_result(headers.picture(series="9"))
    choose(db, study, served)
    told = {(row["series_id"], row["used"]) for row in rows(db, choices) if row["model"] == served[0].label}
    assert told == {(1, True), (2, False)}


def test_a_model_that_is_off_gets_nothing(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture())
    outcome = choose(db, study, served[:1], off=frozenset({"chest"}))
    assert outcome == {"queued": [], "reasons": {served[0].label: "switched off"}}
    assert standing(db, study)["finding"] == "chest: switched off"


def test_the_hash_of_inputs_knows_content_and_names(
    db: Database, send: Callable[..., int], headers: SimpleNamespace
) -> None:
    send(headers.picture(study="1"), headers.picture(study="2"))
    with db.read() as c:
        one, other = inputs_hash(c, {"image": 1}), inputs_hash(c, {"image": 2})
        assert one == inputs_hash(c, {"image": 1})
        assert len({one, other, inputs_hash(c, {"T1": 1}), inputs_hash(c, {"T1": 1, "T2": 2})}) == 4
        assert inputs_hash(c, {"T1": 1, "T2": 2}) != inputs_hash(c, {"T1": 2, "T2": 1})


def test_urgency_is_that_of_the_study_and_the_model(
    db: Database, send: Callable[..., int], headers: SimpleNamespace, served: tuple[ServedModel, ...]
) -> None:
    study = send(headers.picture())
    with db.write() as c:
        c.execute(sa.update(studies).values(urgency=1))
    urgent = replace(served[0], entry=replace(served[0].entry, urgency=1))
    choose(db, study, [urgent])
    assert rows(db, jobs)[-1]["priority"] == 2


def test_models_are_checked_against_each_other(packages: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="listed twice"):
        read_packages([ModelEntry(packages.chest), ModelEntry(packages.chest)])
    with pytest.raises(ConfigError, match='two versions of the model .chest. have role = "answers"'):
        read_packages([ModelEntry(packages.chest), ModelEntry(packages.chest2)])
    with pytest.raises(ConfigError, match="a rule is for the image 'T1'"):
        read_packages([ModelEntry(packages.chest, series=(SeriesRule(image="T1"),))])
    with pytest.raises(ConfigError, match="there is no model at"):
        read_packages([ModelEntry("nowhere")])
    named = read_packages([ModelEntry(packages.chest), ModelEntry(packages.chest2, name="second")])
    assert [model.name for model in named] == ["chest", "second"]


def test_what_a_package_says_is_what_the_model_says(packages: SimpleNamespace, served: tuple[ServedModel, ...]) -> None:
    from sagittal.model.load import load_model

    for path, model in zip((packages.chest, packages.chest2, packages.liver), served, strict=True):
        loaded = load_model(path)
        assert (model.name, model.checksum, model.task) == (loaded.name, loaded.checksum, loaded.plan.task)
        assert (model.size, model.store, model.classes) == (
            loaded.plan.prepare.size,
            loaded.plan.prepare.store,
            loaded.plan.scheme.classes,
        )
        assert model.use.spacing_mm == loaded.intended_use.spacing_mm
