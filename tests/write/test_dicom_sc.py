"""The page of a result: readable, complete, without identifiers, valid as Secondary Capture."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image as Pictures

from sagittal.case import Case
from sagittal.prediction import Failure, Prediction, Verdict
from sagittal.read.sources import file_source
from sagittal.write import lettering, result_page
from sagittal.write.dicom_sc import make_dicom_sc, write_dicom_sc
from sagittal.write.equipment import ModelFacts, Stamp, derive_uids
from sagittal.write.result_page import draw_page
from sagittal.write.sources import open_series
from sagittal.write.statement import make_statement

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
UNLIKE = Verdict(False, "unlike the cases the model knows", 1.0)


@pytest.fixture
def stamp(facts: ModelFacts) -> Stamp:
    return Stamp(derive_uids("seed"), NOON, facts)


def band(page: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in page[5, 5])


def test_a_page_is_a_valid_capture(
    study: Callable[..., Case], found_classes: Any, errors_of: Any, tmp_path: Path
) -> None:
    case = study(BodyPartExamined="CHEST")
    path = write_dicom_sc(found_classes(case.id), case, tmp_path / "sc.dcm")
    assert errors_of(path) == []
    header = pydicom.dcmread(path)
    assert header.pixel_array.shape == (1448, 1024, 3)
    assert (header.Modality, header.ConversionType, header.BurnedInAnnotation) == ("OT", "WSD", "NO")
    assert list(header.ImageType) == ["DERIVED", "SECONDARY"]
    assert len(header.SourceImageSequence) == 9
    assert "nodule (82 %)" in header.ImageComments
    assert "not checked by a person" in header.DerivationDescription


def test_states_look_different_and_say_what_they_are(
    study: Callable[..., Case], found_classes: Any, stamp: Stamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study()
    source = open_series(case, "x")
    answers: list[Prediction | Failure] = [
        found_classes(case.id),
        found_classes(case.id, decision=(), verdict=UNLIKE),
        Failure(case.id, f"case {case.id}: is a study of modality MR, the model was made for CT", "ScopeError"),
        found_classes(case.id, verdict=UNLIKE),
    ]
    written: list[str] = []
    real = result_page.write_line

    def keep(sheet: Any, place: Any, text: str, *rest: Any, **given: Any) -> None:
        written.append(text)
        real(sheet, place, text, *rest, **given)

    monkeypatch.setattr(result_page, "write_line", keep)
    bands, texts = [], []
    for answer in answers:
        written.clear()
        bands.append(band(make_dicom_sc(answer, source, case=case, stamp=stamp).pixel_array))
        texts.append(" ".join(written))
    assert len(set(bands)) == 3
    for text in texts:
        assert "Made by an algorithm. Not for diagnosis without a reader." in text
        assert "Is there a nodule, a mass or an effusion?" in text
        assert "Not for: children, studies after surgery of the chest" in text
        assert "AUC 0.94" in text
        assert "chest · 2.1 · sha256 0123456789abcdef" in text
    answered, abstained, refused, flagged = texts
    assert "nodule (82 %)" in answered
    assert "Confidence high: 82 %" in answered
    assert "Cannot be excluded (with 90 % coverage): nodule; mass." in answered
    assert "THE MODEL ABSTAINS" in abstained
    assert "Reason: unlike the cases the model knows" in abstained
    assert "82 %" not in abstained
    assert "THE STUDY WAS REFUSED" in refused
    assert "is a study of modality MR" in refused
    assert "Caution: unlike the cases the model knows" in flagged
    assert "nodule (82 %)" in flagged


def test_the_pixels_hold_no_identifiers(
    study: Callable[..., Case], found_classes: Any, found_boxes: Any, stamp: Stamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = result_page.write_line
    monkeypatch.setattr(
        result_page,
        "write_line",
        lambda sheet, place, text, *r, **g: (written.append(text), real(sheet, place, text, *r, **g)),
    )
    case = study(name="case-9", PatientName="Xylophon^Quincy", PatientID="ZQ-4711", AccessionNumber="ACC-0815")
    for answer in (found_classes(case.id), found_boxes(case.id, case.image().grid)):
        make_dicom_sc(answer, open_series(case, "x"), case=case, stamp=stamp)
    text = " ".join(written)
    for word in ("Xylophon", "Quincy", "4711", "0815", "1950", "2026", "1.2.3"):
        assert word not in text


def test_whether_names_stand_in_the_pixels_is_that_of_the_image(
    write_slice: Callable[..., Path], found_classes: Any, stamp: Stamp
) -> None:
    def flag(**fields: Any) -> str | None:
        path = write_slice(f"{len(str(fields))}.dcm", np.zeros((30, 25), np.uint8), **fields)
        case = Case("x", "x", {"image": file_source("x", path)})
        made = make_dicom_sc(found_classes("x"), open_series(case, "x"), case=case, stamp=stamp)
        return made.get("BurnedInAnnotation")

    ultrasound = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "Modality": "US"}
    assert flag() == "NO"  # a reconstructed CT
    assert flag(BurnedInAnnotation="YES") == "YES"
    assert flag(**ultrasound) is None
    assert flag(**ultrasound, BurnedInAnnotation="NO") == "NO"
    # Without a picture there is nothing but our own text.
    path = write_slice("us.dcm", np.zeros((30, 25), np.uint8), **ultrasound)
    source = open_series(Case("x", "x", {"image": file_source("x", path)}), "x")
    assert make_dicom_sc(found_classes("x"), source, stamp=stamp).BurnedInAnnotation == "NO"


def test_long_texts_stay_on_the_page(found_classes: Any, facts: ModelFacts) -> None:
    long = "word " * 400
    use = dict.fromkeys(("population", "indication", "user", "exclusions"), long)
    facts = replace(facts, name="n" * 64, question=long, intended_use=use, evidence=(long,) * 9)
    answer = found_classes("x", verdict=Verdict(False, long, 1.0))
    page = draw_page(make_statement(answer, facts), facts)
    assert page.shape == (1448, 1024, 3)
    # Margins are free of ink: nothing runs over them but the bands at the top.
    assert (page[130:, :30] == 255).all()
    assert (page[130:, -30:] == 255).all()
    assert (page[-6:] == 255).all()


def test_many_classes_are_counted_not_dropped(found_classes: Any, facts: ModelFacts) -> None:
    from sagittal.labels import ClassScores, LabelScheme

    names = tuple(f"finding {n}" for n in range(40))
    answer = found_classes(
        "x", "multilabel", scheme=LabelScheme("multilabel", names), finding=ClassScores(np.linspace(0, 1, 40)),
        decision=names[20:], conformal=(),
    )  # fmt: skip
    statement = make_statement(answer, facts)
    assert statement.summary.endswith("; and 14 more")
    assert len(statement.lines) == 40
    assert draw_page(statement, facts).shape == (1448, 1024, 3)


def test_chinese_is_drawn_with_a_font_that_has_it(found_classes: Any, facts: ModelFacts) -> None:
    if lettering.find_chinese_font() is None:
        if os.environ.get("CI"):
            pytest.fail("no font with Chinese signs: apt-get install fonts-wqy-microhei")
        pytest.skip("no font with Chinese signs is installed (Debian package fonts-wqy-microhei)")
    font = lettering._font(38, True, False)
    # A font without a sign draws the same box for all of them.
    drawn = {bytes(np.asarray(font.getmask(sign))) for sign in "模型弃权置信度"}
    assert len(drawn) == 7
    statement = make_statement(found_classes("x"), facts, language="zh")
    assert "置信度" in statement.confidence_words
    assert (draw_page(statement, facts) < 100).any()


def test_without_such_a_font_the_page_is_english(
    study: Callable[..., Case], found_classes: Any, stamp: Stamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagittal.write import dicom_sc

    monkeypatch.setattr(dicom_sc, "find_chinese_font", lambda: None)
    case = study()
    made = make_dicom_sc(found_classes(case.id), open_series(case, "x"), case=case, stamp=stamp, language="zh")
    assert "Made by an algorithm" in made.ImageComments


def test_the_picture_is_on_the_page(
    study: Callable[..., Case], found_classes: Any, facts: ModelFacts, stamp: Stamp
) -> None:
    case = study((40, 30, 9))
    grid = case.image().grid
    heat = np.zeros(grid.shape, np.float32)
    heat[20:25, 10:15, 4:6] = 1
    given = {"case": case, "stamp": stamp}
    plain = make_dicom_sc(found_classes(case.id), open_series(case, "x"), **given).pixel_array
    hot = make_dicom_sc(
        found_classes(case.id),
        open_series(case, "x"),
        heat=SimpleNamespace(heat=heat, grid=grid, method="gradcam"),
        **given,
    ).pixel_array

    def coloured(page: np.ndarray) -> int:
        values = page[300:1100].astype(int)
        return int(((values[..., 0] - values[..., 2]) > 60).sum())

    assert coloured(plain) == 0
    assert coloured(hot) > 200
    red = Pictures.new("RGB", (50, 50), (255, 0, 0))
    stream = io.BytesIO()
    red.save(stream, "PNG")
    page = draw_page(make_statement(found_classes("x"), facts), facts, picture=stream.getvalue())
    assert (page == (255, 0, 0)).all(axis=2).sum() > 10_000


def test_lines_are_broken_where_a_reader_expects_it() -> None:
    text = "置信度很高：约八成；不能排除（覆盖率九成）：结节。其余见报告，请阅片医师审阅。"
    lines = lettering.wrapped(text, 20, 150)
    assert "".join(lines) == text
    assert len(lines) > 3
    assert not [line for line in lines if line[0] in "，。；：）"]
    assert all(lettering.text_length(line, 20) <= 175 for line in lines)
    assert lettering.wrapped("x" * 100, 20, 150)[0] == "x" * len(lettering.wrapped("x" * 100, 20, 150)[0])
    assert lettering.fitted("a very long name indeed", 20, 100).endswith("…")
