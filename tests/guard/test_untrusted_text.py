"""JSON and XML from outside: entities, depth, size and damage end in errors that say which (incident 22)."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.errors import ReadError, SagittalError
from sagittal.guard.json_file import MAX_JSON_DEPTH, read_json
from sagittal.guard.xml_file import MAX_XML_DEPTH, MAX_XML_ELEMENTS, read_xml
from sagittal.read.open_dataset import open_dataset

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1 or str()};" * 10}">' for n in range(1, 10))
    + "]><annotation><filename>&lol9;</filename></annotation>"
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
        '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><annotation/>',
        "<!DOCTYPE annotation><annotation/>",
    ],
    ids=["billion laughs", "file", "external type", "parameter entity", "type alone"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_and_document_types_are_refused(write_text, tmp_path, text, encoding):
    path = tmp_path / "a.xml"
    path.write_text(text.replace('<?xml version="1.0"?>', ""), encoding=encoding)
    began = time.monotonic()
    with pytest.raises(ReadError, match="declares a document type or entities, which are not read"):
        read_xml(path)
    assert time.monotonic() - began < 1


def test_an_undeclared_entity_is_damage(write_text):
    with pytest.raises(ReadError, match="damaged or cut off in line 2"):
        read_xml(write_text("a.xml", "<annotation>\n&secret;</annotation>"))


def test_depth_size_and_number_of_elements_are_capped(write_text):
    deep = "<a>" * (MAX_XML_DEPTH + 1) + "</a>" * (MAX_XML_DEPTH + 1)
    with pytest.raises(ReadError, match=f"nested more than {MAX_XML_DEPTH} deep"):
        read_xml(write_text("deep.xml", deep))
    with pytest.raises(ReadError, match="nested more than"):
        read_xml(write_text("deeper.xml", "<a>" * 1_000_000))
    with pytest.raises(ReadError, match=f"holds more than {MAX_XML_ELEMENTS:,} elements"):
        read_xml(write_text("wide.xml", "<a>" + "<b/>" * MAX_XML_ELEMENTS + "</a>"))
    with pytest.raises(ReadError, match=r"has 16,777,\d+ bytes; at most 16,777,216 are read"):
        read_xml(write_text("large.xml", "<a>" + " " * 2**24 + "</a>"))


@pytest.mark.parametrize(
    "text", ["", "<a>", "<a></b>", "no xml", "<a/><b/>", '<?xml version="1.0" encoding="x-y"?><a/>']
)
def test_damaged_xml(write_text, text):
    with pytest.raises(ReadError, match="damaged or cut off in line|is empty|cannot be read"):
        read_xml(write_text("a.xml", text))


def test_elements_are_found_by_path(write_text):
    root = read_xml(write_text("a.xml", "<a>\n <b><c> one </c></b><b/>\n</a>"))
    assert (root.value("b", "c"), root.value("b", "x", "y"), len(root.all("b")), root.all("b")[0].line) == (
        "one",
        "",
        2,
        2,
    )


def test_a_hostile_annotation_is_left_out_and_the_others_are_used(tmp_path, write_text, write_png):
    good = "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>"
    for name, text in (("1", good), ("2", LAUGHS)):
        write_png(f"JPEGImages/{name}.png")
        write_text(f"Annotations/{name}.xml", text)
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset] == ["JPEGImages/1"]
    assert (
        "Annotations/2",
        "XML: declares a document type or entities, which are not read: they could fetch other files",
    ) in [(one.case, one.reason) for one in dataset.skipped]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, f"is nested more than {MAX_JSON_DEPTH} deep"),
        ('{"a":' * 100 + "1" + "}" * 100, f"is nested more than {MAX_JSON_DEPTH} deep"),
        ('{\n"a": 1,\n"b": }', "is damaged or cut off in line 3"),
        ('{"a": NaN}', "holds the number NaN, which is no JSON"),
        ('{"a": -Infinity}', "holds the number -Infinity"),
        ("[1, 2]", "holds a list where an object"),
        ("", "the file is empty"),
    ],
)
def test_json_that_cannot_be_used(write_text, text, message):
    with pytest.raises(ReadError, match=message):
        read_json(write_text("a.json", text))


def test_brackets_in_words_are_no_depth(write_text):
    assert read_json(write_text("a.json", {"a": "[" * 1000, "b": '\\"[['}))["a"] == "[" * 1000


def test_a_json_file_that_is_too_large_is_refused(write_text):
    with pytest.raises(ReadError, match="has 1,010 bytes; JSON of at most 1,000 is read"):
        read_json(write_text("a.json", {"a": "x" * 1001}), limit=1000)


def test_json_in_another_encoding(tmp_path):
    (tmp_path / "a.json").write_bytes('{"a": "\xe4"}'.encode("latin-1"))
    with pytest.raises(ReadError, match="is no text in UTF-8"):
        read_json(tmp_path / "a.json")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", ["coco", "voc", "msd"])
def test_mutated_annotations_end_in_a_data_set_or_in_our_errors(tmp_path, write_png, write_text, kind, changes):
    write_png("images/1.png")
    if kind == "coco":
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}
        image = {"id": 1, "file_name": "1.png", "width": 12, "height": 9}
        path = write_text("c.json", {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "a"}]})
    elif kind == "voc":
        path = write_text(
            "Annotations/1.xml",
            "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>",
        )
    else:
        write_png("imagesTr/1.png")
        write_png("labelsTr/1.png")
        listed = [{"image": "./imagesTr/1.png", "label": "./labelsTr/1.png"}]
        path = write_text(
            "dataset.json", {"labels": {"0": "background", "1": "a"}, "modality": {"0": "CT"}, "training": listed}
        )
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        at = int(place * len(raw))
        raw[at : at + len(value)] = value
    path.write_bytes(bytes(raw))
    with contextlib.suppress(SagittalError):
        assert len(open_dataset(tmp_path, layout=kind)) > 0
    path.unlink()
