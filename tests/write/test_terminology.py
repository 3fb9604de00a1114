"""Coded names: the right code for what people call things, and a valid private one for the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from sagittal.errors import ConfigError, ReadError
from sagittal.write import terminology
from sagittal.write.terminology import PRIVATE_SCHEME, Terminology, read_terminology


def known_codes() -> dict[str, set[str]]:
    """SNOMED codes -> their meanings, as DICOM PS3.16 uses them."""
    found: dict[str, set[str]] = {}
    for values in concepts["SCT"].values():
        for code, (meaning, _) in values.items():
            found.setdefault(code, set()).add(meaning.lower())
    return found


def test_every_code_is_one_of_the_standard_with_its_meaning() -> None:
    file = json.loads(Path(terminology.__file__).with_name("terminology.json").read_text(encoding="utf-8"))
    known = known_codes()
    codes = [
        *file["categories"].values(),
        *file["modifiers"].values(),
        *(e["type"] for e in file["structures"].values()),
    ]
    for value, scheme, meaning in codes:
        assert scheme == "SCT"
        assert meaning.lower() in known[value], (value, meaning)
        assert len(value) <= 16
        assert len(meaning) <= 64


@pytest.mark.parametrize(
    ("name", "meaning", "modifier", "regions"),
    [
        ("liver", "Liver", None, []),
        ("Left Kidney", "Kidney", "Left", []),
        ("kidney_right", "Kidney", "Right", []),
        ("lung_upper_lobe_left", "Upper lobe of lung", "Left", []),
        ("Anterior hippocampus", "Hippocampus", "Anterior", []),
        ("left ventricle", "Left ventricle", None, []),
        ("heart_atrium_right", "Right atrium", None, []),
        ("vertebrae_L1", "L1 vertebra", None, []),
        ("rib_left_7", "Rib", "Left", []),
        ("Pancreatic tumour", "Neoplasm", None, ["Pancreas"]),
        ("pulmonary-nodule", "Nodule", None, ["Lung"]),
        ("retinal vessels", "Blood Vessel", None, ["Retina"]),
        ("Edema", "Edema", None, []),
    ],
)
def test_names_as_people_write_them(name: str, meaning: str, modifier: str | None, regions: list[str]) -> None:
    term = Terminology().find(name)
    assert term.known
    assert term.type.meaning.lower() == meaning.lower()
    assert (term.modifier.meaning if term.modifier else None) == modifier
    assert [region.meaning for region in term.regions] == regions
    assert term.name == name


@pytest.mark.parametrize("name", ["gizmo", "Anterior", "left right kidney", "label 3", "", "x" * 90])
def test_unknown_names_have_a_private_code(name: str) -> None:
    term = Terminology().find(name)
    assert not term.known
    assert term.type.scheme == PRIVATE_SCHEME
    assert 1 <= len(term.type.value) <= 16
    assert 1 <= len(term.type.meaning) <= 64
    assert Terminology().find(name).type == term.type
    assert Terminology().find(name + " other").type != term.type


def test_a_file_of_the_user_comes_first(write_text: Callable[..., Path]) -> None:
    path = write_text(
        "terms.json",
        {
            "liver": {"category": "abnormal", "type": ["1", "99X", "Own liver"], "colour": "#010203"},
            "gizmo": {
                "category": ["85756007", "SCT", "Tissue"],
                "type": ["2", "99X", "Gizmo"],
                "modifier": ["7771000", "SCT", "Left"],
                "regions": [["10200004", "SCT", "Liver"]],
                "also": ["thing"],
            },
        },
    )
    own = read_terminology(path)
    assert own.find("Liver").type.meaning == "Own liver"
    assert own.find("liver").colour == (1, 2, 3)
    thing = own.find("THING")
    assert (thing.type.meaning, thing.category.meaning, thing.modifier.meaning) == ("Gizmo", "Tissue", "Left")
    assert thing.regions[0].meaning == "Liver"
    assert own.find("spleen").type.meaning == "Spleen"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"liver": 3}, "structure 'liver': an object with 'category' and 'type' was expected, not int"),
        ({"liver": {"typ": []}}, "structure 'liver': unknown key 'typ'. Did you mean 'type'"),
        ({"liver": {"category": "anatomy"}}, "'type' is missing"),
        ({"liver": {"type": ["1", "SCT"]}}, "a code is a list of value, scheme and meaning"),
        ({"liver": {"type": ["1" * 17, "SCT", "Liver"]}}, "at most 16 characters"),
        (
            {"liver": {"type": ["1", "SCT", "Liver"], "category": "anatomie"}},
            "unknown category 'anatomie'. Did you mean",
        ),
        ({"liver": {"type": ["1", "SCT", "Liver"], "colour": "red"}}, "colour must be like '#dd8265'"),
        ({"liver": {"type": ["1", "SCT", "Liver"], "also": "x"}}, "'also' must be a list"),
    ],
)
def test_wrong_files_are_named(write_text: Callable[..., Path], content: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read_terminology(write_text("terms.json", content))


def test_a_file_that_is_no_json(write_text: Callable[..., Path]) -> None:
    with pytest.raises(ReadError, match="damaged or cut off in line 1"):
        read_terminology(write_text("terms.json", "{liver"))


def test_structures_of_one_code_have_different_colours() -> None:
    terms = Terminology().find_all(["kidney left", "kidney right", "anterior hippocampus", "posterior hippocampus"])
    assert len({term.colour for term in terms}) == 4
    assert len({term.colour for term in Terminology().find_all([f"part {chr(97 + n)}" for n in range(20)])}) == 20
