"""What made an object: derived UIDs that never change, the right clock, the model among the equipment."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydicom.dataset import Dataset

from sagittal.prediction import Failure
from sagittal.write.equipment import ModelFacts, Stamp, add_equipment, derive_uids, made_at
from sagittal.write.names import one_line

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


def header(**fields: Any) -> Dataset:
    made = Dataset()
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def test_derived_uids_are_the_same_in_every_version() -> None:
    # What was sent once is known by these; another value would make every result of an archive a new one.
    assert derive_uids("model and images")("seg/instance") == "2.25.209168023344773016488457707627267958222"
    many = {derive_uids(str(seed))(name) for seed in range(50) for name in ("a", "b")}
    assert len(many) == 100
    assert all(len(one) <= 44 and not one.startswith("2.25.0") for one in many)


def test_times_are_on_the_clock_of_the_study(facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = Stamp(derive_uids("x"), NOON, facts)
    assert stamp.clock(header(TimezoneOffsetFromUTC="+0530")).strftime("%H%M%z") == "1730+0530"
    assert stamp.clock(header(TimezoneOffsetFromUTC="-0800")).strftime("%d%H") == "0404"
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        for wrong in (None, header(), header(TimezoneOffsetFromUTC="+9900"), header(TimezoneOffsetFromUTC="x")):
            assert stamp.clock(wrong).strftime("%H%M") == "2000"
        naive = Stamp(derive_uids("x"), NOON.replace(tzinfo=None), facts)
        assert naive.clock(header(TimezoneOffsetFromUTC="+0530")).hour == 12
    finally:
        monkeypatch.undo()
        time.tzset()


def test_when_a_prediction_was_made(found_classes: Any) -> None:
    assert made_at(found_classes("x")) == datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    now = datetime.now(UTC)
    for answer in (found_classes("x", made_at="yesterday"), Failure("x", "no")):
        assert abs(made_at(answer) - now) < timedelta(seconds=30)
        assert made_at(answer).tzinfo is not None


def test_the_model_is_the_last_of_the_equipment(facts: ModelFacts) -> None:
    earlier = header(Manufacturer="Anonymiser")
    source = header(Manufacturer="Maker", ManufacturerModelName="Scanner 3", ContributingEquipmentSequence=[earlier])
    made = Dataset()
    add_equipment(made, Stamp(derive_uids("x"), NOON.astimezone(timezone(timedelta(hours=1))), facts), source)
    first, scanner, model = made.ContributingEquipmentSequence
    assert first.Manufacturer == "Anonymiser"
    assert (scanner.ManufacturerModelName, scanner.PurposeOfReferenceCodeSequence[0].CodeValue) == (
        "Scanner 3",
        "109101",
    )
    assert (model.Manufacturer, model.ManufacturerModelName, model.DeviceSerialNumber) == (
        "Sagittal",
        "chest",
        "0123456789abcdef" * 4,
    )
    assert model.ContributionDateTime == "20260304130000+0100"
    assert len(source.ContributingEquipmentSequence) == 1


def test_one_line_is_cut_between_signs() -> None:
    for text in ("模型" * 60, "a" * 200, "é" * 70, "\ud800x", "a\\b\nc"):
        made = one_line(text)
        assert len(made.encode()) <= 64
        assert "\\" not in made
        assert made.isprintable()
