"""The page of check: one file, nothing from outside, every text escaped, small whatever the data."""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.check.check_dataset import Checked, look_through
from sagittal.check.facts import CaseFacts, ImageFacts, MaskFacts
from sagittal.check.findings import Finding, Findings
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.report.check_charts import bars, histogram
from sagittal.report.check_page import MOST_CASES, MOST_PAIRS, claim_page, render_check, write_check
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

HOSTILE = "<script>alert('x')</script>\"'&\u202e\x00{{7*7}}"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def images(self):
        return [a for tag, a in self.tags if tag == "img"]


def page_of(checked):
    text = render_check(checked)
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    return page


def picture(seed, shape=(30, 20, 1)):
    return Image(np.random.default_rng(seed).integers(0, 255, (1, *shape)).astype(np.float32), Grid(shape), bits=8)


def classed(number=30, names=("benign", "malignant")):
    scheme = LabelScheme("binary", names, "diagnosis")
    cases = [
        Case(
            f"c{n}", f"Meier-{n}",
            {"image": ImageSource(partial(picture, 4 if n == 9 else n), member=str(n))},
            truth=scheme.truth(names[n % 2]), split=("train", "val", "test")[n % 3],
        )
        for n in range(number)
    ]  # fmt: skip
    return Dataset("set", tuple(cases), scheme, skipped=(Skipped("lost", "an image without label", "no-truth"),))


def test_what_the_page_tells():
    page = page_of(look_through(classed()))
    assert "Not ready for training: the errors must be mended first. 2 errors, 3 warnings." in page.words
    assert "pixels-in-two-splits" in page.words
    assert "c4 = c9" in page.words
    assert "conflicting-labels" in page.words
    assert "image-without-truth" in page.words
    assert "lost" in page.words
    assert "train 10, val 10, test 10" in page.words


def test_pairs_stand_side_by_side_with_split_and_label():
    text = render_check(look_through(classed()))
    pair = re.search(r'<div class="pair">(.*?)</div>\s*</div>\s*(?=<|$)', text, re.DOTALL)[1]
    assert pair.count("<img") == 2
    assert pair.index("<strong>c4</strong>val · benign") < pair.index("<strong>c9</strong>train · malignant")
    pictures = re.findall(r'src="([^"]+)"', pair)
    assert pictures[0] == pictures[1]
    shown = Pillow.open(io.BytesIO(base64.b64decode(pictures[0].split(",")[1])))
    assert shown.size == (96, 64)


def test_patients_are_keys():
    text = render_check(look_through(classed()))
    assert "Meier" not in text
    assert re.search(r"patient p-[0-9a-f]{8}", text)


def test_hostile_texts_are_only_text():
    scheme = LabelScheme("binary", (HOSTILE, "b"), HOSTILE)
    cases = [
        Case(f"{HOSTILE}{n}", HOSTILE, {HOSTILE: ImageSource(partial(picture, n // 2), member=str(n))},
             truth=scheme.truth(scheme.classes[n % 2]), source=HOSTILE)
        for n in range(6)
    ]  # fmt: skip
    dataset = Dataset(
        HOSTILE, tuple(cases), scheme, skipped=(Skipped(HOSTILE, HOSTILE),), layout=HOSTILE, notes=(HOSTILE,)
    )
    page = page_of(look_through(dataset))
    assert "<script>alert('x')</script>" in page.words
    assert "{{7*7}}" in page.words
    text = render_check(look_through(dataset))
    assert "<script" not in text
    assert "\u202e" not in text
    assert "\x00" not in text


def test_masks_are_drawn_and_measured():
    scheme = LabelScheme("structures", ("liver", "spleen"))
    grid = Grid((30, 20, 8), np.diag([2.0, 2.0, 5.0, 1.0]))

    def outline():
        layers = np.zeros((1, *grid.shape), np.uint8)
        layers[0, 5:15, 5:15, 3:5] = 1
        return Segmentation(layers, grid, (Structure("liver", (1,)), Structure("spleen", (2,))))

    cases = tuple(
        Case(f"c{n}", f"c{n}", {"CT": ImageSource(partial(volume, grid, n))}, truth=SegmentationSource(outline))
        for n in range(6)
    )
    page = page_of(look_through(Dataset("organs", cases, scheme)))
    assert "in 6 masks 4 ml (4 to 4)" in page.words  # 200 voxels of 20 mm3
    assert "structure-never-occurs" in page.words
    coloured = Pillow.open(io.BytesIO(base64.b64decode(page.images()[0]["src"].split(",")[1])))
    assert coloured.mode == "RGB"
    pixels = np.asarray(coloured).astype(int)
    assert ((pixels[..., 0] - pixels[..., 2]) > 100).sum() > 50  # the orange line


def volume(grid, seed):
    return Image(np.random.default_rng(seed).uniform(-200, 300, (1, *grid.shape)).astype(np.float32), grid, "HU", "CT")


def test_boxes_are_drawn_where_they_lie_and_the_wrong_one_is_marked():
    scheme = LabelScheme("objects", ("cell",))
    sound = [[2.5, 1.5, -0.5], [8.5, 5.5, 0.5]]
    truths = [Boxes(np.array([sound]), [0]), Boxes(np.array([sound, [[9, 9, -0.5], [9, 12, 0.5]]]), [0, 0])]
    cases = tuple(
        Case(f"c{n}", f"c{n}", {"image": ImageSource(partial(picture, n))}, truth=truth)
        for n, truth in enumerate(truths)
    )
    page = page_of(look_through(Dataset("cells", cases, scheme)))
    rects = [a for tag, a in page.tags if tag == "rect" and a.get("vector-effect")]
    places = {(a["x"], a["y"], a["width"], a["height"]): a["stroke"] for a in rects}
    # 30 x 20 pixels: from (2.5, 1.5) to (8.5, 5.5) is 0.1, 0.1, 0.2, 0.2 of the picture
    assert places["0.1000", "0.1000", "0.2000", "0.2000"] == "#e69f00"
    marked = [(a["x"], a["y"]) for a in rects if a["stroke"] == "#ff0033"]
    assert marked == [("0.3167", "0.4750")]  # once, in its finding; not in the sample
    assert "2 cell" in page.words


def test_ten_thousand_cases_fit_into_five_megabytes():
    """Every finding names every case, every picture is as large as pictures get."""
    scheme = LabelScheme("multiclass", tuple(f"class {n}" for n in range(100)))
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    Pillow.fromarray(rng.integers(0, 255, (176, 176, 3), dtype=np.uint8)).save(noise, "JPEG", quality=78)
    blob = np.frombuffer(noise.getvalue(), np.uint8)
    image = ImageFacts(
        (224, 224, 1), 3, "1", "OT", 8, None, None, 1.0, 0.0, 255.0, 100.0, 30.0, (1.0, 80.0, 100.0, 120.0, 250.0), "d", "v",
        picture=blob,
    )  # fmt: skip
    mask = MaskFacts((224, 224, 1), None, None, {}, {}, picture=blob)
    names = [f"case-{n:05d}-{'x' * 40}" for n in range(10_000)]
    cases = tuple(
        Case(name, name, {"image": ImageSource(partial(picture, 0))}, truth=scheme.truth(scheme.classes[n % 100]))
        for n, name in enumerate(names)
    )
    facts = {name: CaseFacts(name, {"image": image}, {}, mask) for name in names}
    pairs = tuple(zip(names[::2], names[1::2], strict=True))
    findings = [
        Finding(
            "warning", f"code-{n}", "m" * 3000, tuple(names), pairs if n % 2 else (), dict.fromkeys(names, "d" * 500)
        )
        for n in range(24)
    ]
    checked = Checked(Dataset("large", cases, scheme), Findings(findings), facts)
    text = render_check(checked)
    assert len(text.encode()) < 5_000_000
    page = page_of(checked)
    assert "pictures were left out to keep the page small" in page.words
    assert len(page.images()) >= 2 * MOST_PAIRS + MOST_CASES


def test_nothing_found_and_nothing_read():
    dataset = Dataset("none", classed(24).cases[:8] + classed(24).cases[10:], classed().scheme)
    page = page_of(look_through(dataset, pixels="none"))
    assert "read 0 of 22" in page.words
    assert "A sample" not in page.words
    empty = page_of(Checked(Dataset("empty", ()), Findings(), {}))
    assert "Training may start. Nothing was found." in empty.words


def test_where_a_page_may_be_written(tmp_path):
    with pytest.raises(ConfigError, match="ends in .html or .json, such as -o check.html"):
        claim_page(tmp_path / "page.pdf")
    (tmp_path / "there.html").write_text("mine")
    with pytest.raises(ConfigError, match="there.html exists already and is kept. To replace it: --overwrite"):
        claim_page(tmp_path / "there.html")
    assert claim_page(tmp_path / "there.html", overwrite=True) == tmp_path / "there.html"


def test_findings_as_json(tmp_path):
    import json

    checked = look_through(classed())
    write_check(checked, tmp_path / "deep" / "findings.json")
    assert json.loads((tmp_path / "deep" / "findings.json").read_text(encoding="utf-8")) == checked.findings.to_json()


def test_bars_are_as_long_as_counts():
    drawn = Page(str(bars({"a": {"train": 30, "test": 10}, "b": {"": 20}})))
    widths = [float(a["width"]) for tag, a in drawn.tags if tag == "rect"]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[1], rel=0.01)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([5.0] * 9, "all 9 are 5 mm"),
        ([1.0, 2.0, 3.0], "1 3 mm"),
        ([1.0] * 20 + [1e5] * 20, "log scale"),
        ([*np.linspace(0, 1, 400), 1e6, np.nan], "1 beyond"),
        ([], ""),
    ],
)
def test_histograms(values, words):
    page = Page(str(histogram(values, "spacing", "mm")))
    assert words in page.words


def test_histogram_counts_every_value():
    values = np.random.default_rng(0).normal(size=500)
    page = Page(str(histogram(values, "x")))
    titles = [int(text) for text in page.text if text.strip().isdigit()]
    assert sum(titles) == 500
