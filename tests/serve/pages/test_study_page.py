"""A study in a browser: images in the right place, overlays, verdicts, corrections that land on the right voxels."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Open = Callable[..., Any]


def ready(page: Any) -> Any:
    """The first canvas, once the image and its overlays are there."""
    page.locator("#toolbar [data-tool]").first.wait_for()
    page.locator("#part-overlays input, #part-choices").first.wait_for()
    page.locator(".corner.top-left", has_text="/").first.wait_for()  # it is drawn
    return page.locator(".pane canvas").first


def pixels(page: Any) -> np.ndarray:
    """What the first canvas shows, (rows, columns, 3)."""
    shown = page.locator(".pane canvas").first.evaluate(
        """canvas => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
             const ink = canvas.getContext('2d');
             const data = ink.getImageData(0, 0, canvas.width, canvas.height).data;
             let text = ''; for (let n = 0; n < data.length; n += 4) text += String.fromCharCode(data[n], data[n + 1], data[n + 2]);
             done([canvas.height, canvas.width, btoa(text)]);
           })))"""
    )
    return np.frombuffer(base64.b64decode(shown[2]), np.uint8).reshape(shown[0], shown[1], 3)


# Geometry ------------------------------------------------------------------------------------------------------------

PAINT = """async ({file, plane, slice, low, high}) => {
  const { readNifti } = await import('/assets/0/code/viewer/nifti.js');
  const { planesOf, toVoxel, fromVoxel } = await import('/assets/0/code/viewer/planes.js');
  const { paintGrey } = await import('/assets/0/code/viewer/paint.js');
  const volume = await readNifti(Uint8Array.from(atob(file), c => c.charCodeAt(0)).buffer);
  const view = planesOf(volume)[plane];
  const image = paintGrey(volume, view, slice, {low, high, inverted: false});
  const back = fromVoxel(view, toVoxel(view, 3.25, 1.5, slice));
  return {width: image.width, height: image.height, letters: view.letters, back,
          grey: Array.from(image.data).filter((_, n) => n % 4 === 0), mm: [view.mmAcross, view.mmDown, view.mmThrough]};
}"""


def affines() -> list[np.ndarray]:
    """Orders and directions of axes, tilts and shears, with the voxel sizes of a clinic."""
    rng = np.random.default_rng(3)
    found = []
    for order, signs in (
        ((0, 1, 2), (-1, -1, 1)),
        ((2, 0, 1), (1, -1, -1)),
        ((1, 2, 0), (-1, 1, -1)),
        ((0, 2, 1), (1, 1, 1)),
    ):
        turn = np.zeros((3, 3))
        turn[list(order), [0, 1, 2]] = signs
        angle = rng.uniform(-0.3, 0.3, 3)
        skew = np.array([[0, -angle[2], angle[1]], [angle[2], 0, -angle[0]], [-angle[1], angle[0], 0]])
        matrix = np.eye(4)
        matrix[:3, :3] = (turn + skew @ turn) * (0.7, 0.8, 5.0)
        matrix[:3, 3] = rng.uniform(-100, 100, 3)
        found.append(matrix)
    return found


@pytest.mark.parametrize("number", range(4))
def test_planes_are_those_of_nibabel_seen_from_the_feet_and_the_front(open_page: Open, number: int) -> None:
    """The patient's right is left on the screen, front or head up, whatever order the file keeps."""
    affine = affines()[number]
    values = np.random.default_rng(number).integers(0, 256, (7, 9, 5)).astype(np.uint8)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1, strip_shears=True)
    file = base64.b64encode(gzip.compress(image.to_bytes())).decode()
    canonical = nib.as_closest_canonical(image)
    ras = np.asarray(canonical.dataobj)
    page = open_page("/account")
    for plane, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        count = ras.shape[axis]
        for slice_ in (0, count // 2):
            got = page.evaluate(PAINT, {"file": file, "plane": plane, "slice": slice_, "low": 0, "high": 255})
            # Slices are counted from the head, the front and the right, all against RAS+.
            expected = np.take(ras, count - 1 - slice_, axis=axis)[::-1, ::-1].T
            assert (got["height"], got["width"]) == expected.shape
            assert np.array_equal(np.reshape(got["grey"], expected.shape), expected)
            assert got["back"] == pytest.approx({"x": 3.25, "y": 1.5, "slice": slice_})
            zooms = [float(z) for n, z in enumerate(canonical.header.get_zooms()) if n != axis]
            assert got["mm"][:2] == pytest.approx(zooms, rel=1e-5)
        assert (
            got["letters"]
            == {"axial": ["R", "L", "A", "P"], "coronal": ["R", "L", "S", "I"], "sagittal": ["A", "P", "S", "I"]}[plane]
        )


def test_big_endian_files_and_rescaled_values_are_read(open_page: Open) -> None:
    values = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]), header)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, -10.0], ">f4").tobytes()  # slope and intercept
    page = open_page("/account")
    got = page.evaluate(
        PAINT, {"file": base64.b64encode(bytes(raw)).decode(), "plane": "axial", "slice": 0, "low": -10, "high": 19.5}
    )
    expected = ((values[::-1, ::-1, 4].T * 0.5) / 29.5 * 255).astype(int)
    assert np.abs(np.reshape(got["grey"], expected.shape) - expected).max() <= 1


@pytest.mark.parametrize("damage", ["cut", "kind", "huge", "text"])
def test_damaged_volumes_are_an_error_in_words(open_page: Open, fake: Any, damage: str) -> None:
    raw = bytearray(gzip.decompress(fake.files["/api/series/1/volume.nii.gz"]))
    if damage == "cut":
        raw = raw[:5000]
    elif damage == "kind":
        raw[70:72] = (1536).to_bytes(2, "little")
    elif damage == "huge":
        raw[42:48] = b"\xff\x7f" * 3
    else:
        raw = bytearray(b"<html>" * 100)
    kept = fake.files["/api/series/1/volume.nii.gz"]
    fake.files["/api/series/1/volume.nii.gz"] = bytes(raw)
    try:
        page = open_page("/study/1")
        page.wait_for_function(
            "() => document.querySelector('#stage-text') && /volume/.test(document.querySelector('#stage-text').textContent)"
        )
        assert page.locator("#finding").inner_text() != ""  # what was found is shown all the same
    finally:
        fake.files["/api/series/1/volume.nii.gz"] = kept


def test_the_nodule_of_the_right_lung_is_left_on_the_screen(open_page: Open) -> None:
    """The page opens where the model found most; its box lies around the bright spot, in the right half of the patient."""
    page = open_page("/study/1")
    canvas = ready(page)
    page.locator("#window").select_option("1")
    page.locator("#on-boxes").uncheck()
    plain = pixels(page).astype(int)
    page.locator("#on-boxes").check()
    boxed = pixels(page).astype(int)
    changed = np.argwhere(np.abs(boxed - plain).sum(axis=2) > 60)
    low, high = changed.min(axis=0), changed.max(axis=0)
    middle = (low + high) / 2
    assert middle[1] < 0.5 * plain.shape[1]  # right lung, left on the screen
    size = canvas.bounding_box()
    frame = plain[low[0] + 22 : high[0] - 3, low[1] + 4 : low[1] + 26]
    assert frame.max() > plain[int(middle[0]), int(low[1]) - 20].max() + 60  # brighter than the lung beside it
    assert size["width"] > 500


def test_a_picture_without_a_place_is_shown_as_it_was_taken(open_page: Open, phantoms: Any) -> None:
    """Neither mirrored nor turned, with the pixels of a map on the pixels of the picture."""
    page = open_page("/study/4")
    page.locator("#toolbar [data-tool]").first.wait_for()
    page.locator("#window").select_option("1")  # the full range
    shown = pixels(page)[:, :, 0].astype(float)
    expected = phantoms.radiograph[:, :, 0].T.astype(float)
    scale = min(shown.shape[0] / expected.shape[0], shown.shape[1] / expected.shape[1])
    left = (shown.shape[1] - expected.shape[1] * scale) / 2
    rows = (np.arange(10, expected.shape[0] - 10, 7) + 0.5) * scale
    columns = left + (np.arange(10, expected.shape[1] - 10, 7) + 0.5) * scale
    sampled = shown[np.ix_(rows.astype(int), columns.astype(int))]
    truth = expected[10:-10:7, 10:-10:7][: sampled.shape[0], : sampled.shape[1]]
    assert np.corrcoef(sampled.ravel(), truth.ravel())[0, 1] > 0.99
    assert np.corrcoef(sampled[:, ::-1].ravel(), truth.ravel())[0, 1] < 0.98
    assert page.locator(".letter").all_inner_texts() == ["", "", "", ""]


# Looking -------------------------------------------------------------------------------------------------------------


def test_slices_windows_zoom_and_cine_by_keyboard(open_page: Open) -> None:
    page = open_page("/study/1")
    canvas = ready(page)
    corner = page.locator(".corner.top-left")
    before = int(corner.inner_text().split("/")[0])
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("n => document.querySelector('.top-left').textContent.startsWith(String(n))", arg=before + 1)
    page.keyboard.press("2")
    page.locator(".bottom-left", has_text="C -600").wait_for()
    assert page.locator("#window").input_value() == "1"
    plain = pixels(page)
    page.keyboard.press("i")
    high, wide = (n // 2 for n in plain.shape[:2])
    amid = np.s_[high - 100 : high + 100 : 7, wide - 100 : wide + 100 : 7]
    assert np.median(np.abs(pixels(page)[amid].astype(int) + plain[amid] - 255)) <= 2  # inverted
    page.keyboard.press("i")
    page.keyboard.press("+")
    assert not np.array_equal(pixels(page), plain)
    page.keyboard.press("0")
    page.locator(".bottom-left", has_text="C 40").wait_for()
    page.keyboard.press(" ")
    assert page.locator("#cine").get_attribute("aria-pressed") == "true"
    page.wait_for_function(
        "n => !document.querySelector('.top-left').textContent.startsWith(String(n))", arg=before + 1
    )
    page.keyboard.press(" ")
    assert page.locator("#cine").get_attribute("aria-pressed") == "false"


def test_three_planes_follow_the_pointer(open_page: Open) -> None:
    page = open_page("/study/1")
    ready(page)
    page.locator("[data-layout=three]").click()
    assert page.locator(".pane canvas").count() == 3
    coronal = page.locator(".pane-coronal .top-left")
    before = coronal.inner_text()
    box = page.locator(".pane-axial canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.72)
    page.wait_for_function("text => document.querySelector('.pane-coronal .top-left').textContent !== text", arg=before)
    after, depth = (int(one) for one in coronal.inner_text().split("/"))
    assert after > depth * 0.55  # low on the axial plane is far back: a late slice from the front


def test_a_measured_line_is_in_millimetres(open_page: Open, phantoms: Any) -> None:
    page = open_page("/study/1")
    canvas = ready(page)
    page.keyboard.press("m")
    box = canvas.bounding_box()
    across = phantoms.shape[0] * 336.0 / 96  # mm of the field of view
    per_mm = min(box["width"], box["height"]) / across
    start = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + 100 * per_mm, start[1], steps=3)
    page.mouse.up()
    length = page.evaluate(
        """async () => { const { distance } = await import('/assets/0/code/viewer/tools.js'); return distance([3.5, 3.5, 6], [0, 0, 0], [3, 4, 1]); }"""
    )
    assert length == pytest.approx(np.sqrt(10.5**2 + 14**2 + 36))
    lit = (pixels(page)[:, :, 2] < 140) & (pixels(page)[:, :, 0] > 240)  # the yellow of the line
    columns = np.nonzero(lit.sum(axis=0))[0]
    ratio = pixels(page).shape[1] / box["width"]
    assert columns.max() - columns.min() >= 100 * per_mm * ratio * 0.95


def test_structures_are_switched_and_faded(open_page: Open) -> None:
    page = open_page("/study/2")
    ready(page)
    page.locator("#on-mask-0").wait_for()
    both = pixels(page).astype(int)
    page.locator("#on-mask-0").uncheck()
    one = pixels(page).astype(int)
    changed = np.argwhere(np.abs(one - both).sum(axis=2) > 20)
    assert len(changed) > 500
    assert changed[:, 1].mean() < both.shape[1] / 2  # the right lung is left on the screen
    page.locator("#fade-mask-1").evaluate("node => { node.value = 0; node.dispatchEvent(new Event('input')); }")
    none = pixels(page).astype(int)
    assert np.abs(none - one).sum() > 0
    colour = np.abs(none[:, :, 0] - none[:, :, 2])
    assert (colour > 30).sum() < (np.abs(both[:, :, 0] - both[:, :, 2]) > 30).sum() / 10
    page.keyboard.press("o")
    page.locator("#on-mask-1:not(:checked)").wait_for()
    page.keyboard.press("o")
    page.locator("#on-mask-1:checked").wait_for()


def test_what_the_model_is_for_and_why_this_series_can_be_read(open_page: Open) -> None:
    page = open_page("/study/1")
    ready(page)
    for part in ("purpose", "choices", "earlier", "objects", "jobs"):
        page.locator(f"#part-{part} summary").click()
    side = page.locator("#result").inner_text()
    for words in (
        "Children; nodules under 4 mm",
        "CT of the chest, 5 mm, the thinnest of 2",
        "at least 20 are needed",
        "1 nodule: 12 mm",
        "DICOM SEG",
        "the PACS does not answer",
        "Made by an algorithm",
    ):
        assert words in side
    assert page.locator("#part-earlier a").get_attribute("href") == "/study/40"
    assert page.locator("#part-objects a").first.get_attribute("href") == "/api/objects/100"


def test_earlier_studies_are_fetched_from_a_pacs(open_page: Open, fake: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.locator("#part-earlier summary").click()
    page.locator("#fetch-earlier").click()
    page.locator("dialog select[name=pacs]").select_option("old-archive")
    page.locator("dialog input[name=most]").fill("3")
    page.keyboard.press("Enter")
    page.locator("#notices").get_by_text("It is being fetched.").wait_for()
    assert fake.posted[-1] == ("studies/1/earlier", {"pacs": "old-archive", "most": 3})


def test_an_abstention_says_so_before_any_number(open_page: Open) -> None:
    page = open_page("/study/4")
    page.locator(".caution").wait_for()
    assert "abstains" in page.locator(".caution").inner_text()
    assert "99.7 %" in page.locator(".caution").inner_text()
    assert page.locator(".classes").is_hidden()


# Verdicts ------------------------------------------------------------------------------------------------------------


def test_accept_by_key_is_sent_and_shown_with_who_and_when(open_page: Open, fake: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.keyboard.press("a")
    page.locator(".history", has_text="dr.synthetic").wait_for()
    assert fake.reviews == [(10, {"verdict": "accept", "reason": ""})]
    assert page.locator("#verdict-accept").get_attribute("aria-pressed") == "true"


def test_reject_asks_why_and_keeps_the_focus_inside(open_page: Open, fake: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.keyboard.press("r")
    page.locator("dialog[open]").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("a")  # typed or nothing: no verdict while a question is open
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert fake.reviews == []
    page.locator("#verdict-reject").click()
    page.get_by_role("button", name="False positive").click()
    page.keyboard.type("; vessel")
    page.locator("dialog button[type=submit]").click()
    page.locator(".history", has_text="vessel").wait_for()
    assert fake.reviews == [(10, {"verdict": "reject", "reason": "False positive; vessel"})]


def test_a_rejection_without_a_reason_is_not_sent(open_page: Open, fake: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.keyboard.press("r")
    page.locator("dialog button[type=submit]").click()
    page.wait_for_timeout(150)
    assert page.locator("dialog[open]").count() == 1
    assert fake.reviews == []


def test_another_class_is_chosen_by_keyboard_alone(open_page: Open, fake: Any) -> None:
    page = open_page("/study/5")
    page.locator("#finding").wait_for()
    page.keyboard.press("c")
    page.locator("#editor input").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("pleural fluid")
    page.locator("#save").focus()
    page.keyboard.press("Enter")
    page.locator(".history", has_text="pleural fluid").wait_for()
    ((number, said),) = fake.reviews
    assert (number, said["verdict"]) == (50, "correct")
    assert said["correction"] == {"class": "effusion"}


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    page.mouse.move(*end)
    page.mouse.up()


def at_voxel(page: Any, phantoms: Any, i: float, j: float) -> tuple[float, float]:
    """Where a voxel of the CT lies on the screen, computed from the affine alone."""
    box = page.locator(".pane-axial canvas").bounding_box()
    n = phantoms.shape[0]
    scale = min(box["width"], box["height"]) / n
    # The affine is diag(-, -, +): i runs to the patient's left, so to the right of the screen; j to the back, so down.
    left, top = box["x"] + (box["width"] - n * scale) / 2, box["y"] + (box["height"] - n * scale) / 2
    return left + (i + 0.5) * scale, top + (j + 0.5) * scale


def test_boxes_are_drawn_and_moved_onto_the_right_voxels(open_page: Open, fake: Any, phantoms: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.keyboard.press("c")
    page.locator("#save").wait_for()
    slice_, depth = (int(one) for one in page.locator(".pane-axial .top-left").inner_text().split("/"))
    k = depth - slice_
    drag(page, at_voxel(page, phantoms, 60, 20), at_voxel(page, phantoms, 69, 27))
    page.locator("#editor .boxes button").nth(2).wait_for()
    page.locator("#editor .boxes button").nth(1).click()  # the second that the model found: taken away
    page.get_by_role("button", name="Remove", exact=True).click()
    page.locator("#correction-reason").fill("missed one")
    page.locator("#save").click()
    page.locator(".history", has_text="missed one").wait_for()
    ((_, said),) = fake.reviews
    first, drawn = said["correction"]["boxes"]
    assert first["corners_voxels"] == phantoms.boxes[0]["corners_voxels"]
    low, high = np.array(drawn["corners_voxels"])
    assert drawn["label"] == "nodule"
    assert low[:2] == pytest.approx([59.5, 19.5], abs=1.01)
    assert high[:2] == pytest.approx([69.5, 27.5], abs=1.01)
    assert low[2] <= k - 0.4
    assert high[2] >= k + 0.4
    assert np.allclose((low * 2) % 2, 1)  # on the sides of voxels


def test_boxes_can_be_made_by_keyboard_and_taken_back(open_page: Open, fake: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.keyboard.press("c")
    page.locator("#save").wait_for()
    page.locator(".pane-axial canvas").focus()
    page.keyboard.press("Insert")
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert page.locator("#editor .boxes button").count() == 3
    page.keyboard.press("Delete")
    assert page.locator("#editor .boxes button").count() == 2
    page.keyboard.press("z")
    assert page.locator("#editor .boxes button").count() == 3
    page.keyboard.press("Escape")  # asks, for there are changes
    page.locator("dialog[open]").wait_for()
    page.locator("dialog button[type=submit]").click()
    page.locator("#editor section").wait_for(state="detached")
    assert page.locator("#go-box-1").count() == 1
    assert page.locator("#go-box-2").count() == 0
    assert fake.reviews == []


def decoded(said: dict[str, Any]) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(said["correction"]["mask"])))


def test_the_brush_paints_the_voxels_under_it_and_keeps_the_grid(open_page: Open, fake: Any, phantoms: Any) -> None:
    page = open_page("/study/2")
    ready(page)
    page.locator("#on-mask-0").wait_for()
    page.keyboard.press("c")
    page.locator("#structure").select_option(label="nodule")
    slice_, depth = (int(one) for one in page.locator(".pane-axial .top-left").inner_text().split("/"))
    k = depth - slice_
    drag(page, at_voxel(page, phantoms, 40, 50), at_voxel(page, phantoms, 46, 50))
    page.keyboard.press("e")  # a second stroke rubs out, and is taken back
    drag(page, at_voxel(page, phantoms, 40, 50), at_voxel(page, phantoms, 46, 50))
    page.keyboard.press("z")
    page.locator("#save").click()
    page.locator(".history", has_text="Corrected").wait_for()
    ((number, said),) = fake.reviews
    image = decoded(said)
    painted = np.asarray(image.dataobj)
    assert number == 20
    assert np.allclose(image.affine, phantoms.affine, atol=1e-4)
    assert image.header["descrip"].tobytes().strip(b"\0") == b""
    new = np.argwhere(painted != phantoms.mask)
    assert len(new) > 6
    assert set(new[:, 2]) == {k}
    assert set(painted[tuple(new.T)]) == {3}
    assert (new[:, 0].min(), new[:, 0].max()) == (pytest.approx(40, abs=2), pytest.approx(46, abs=2))
    assert (new[:, 1].min(), new[:, 1].max()) == (pytest.approx(50, abs=2), pytest.approx(50, abs=2))


def test_the_brush_stays_in_hand_when_the_planes_change(open_page: Open, fake: Any) -> None:
    page = open_page("/study/2")
    ready(page)
    page.locator("#on-mask-0").wait_for()
    page.keyboard.press("c")
    page.locator("#brush").wait_for()
    page.locator("[data-layout=sagittal]").click()
    box = page.locator(".pane-sagittal canvas").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    drag(page, middle, (middle[0] + 60, middle[1]))
    page.locator("#undo:not([disabled])").wait_for()
    page.locator("#save").click()
    show = page.locator("#show-1")
    show.wait_for()
    mask = np.asarray(decoded(fake.reviews[0][1]).dataobj)
    assert len(set(np.argwhere(mask != np.asarray(fake.phantoms.mask))[:, 0])) == 1  # one sagittal slice
    page.locator("#result .overlay").first.wait_for()
    corrected = pixels(page)
    show.click()  # what was corrected is laid over the image again, as the service keeps it
    page.locator("#show-1[aria-pressed=true]").wait_for()
    page.wait_for_timeout(100)
    assert (pixels(page) != corrected).mean() < 0.02
    show.click()
    page.locator("#show-1[aria-pressed=false]").wait_for()


def test_the_brush_works_by_keyboard_and_undo_leaves_nothing(open_page: Open, fake: Any) -> None:
    page = open_page("/study/2")
    ready(page)
    page.locator("#on-mask-0").wait_for()
    page.keyboard.press("c")
    page.locator("#brush").wait_for()
    canvas = page.locator(".pane-axial canvas")
    canvas.focus()
    for key in ("Shift+ArrowLeft", "ArrowUp", " ", "ArrowRight", " "):
        page.keyboard.press(key)
    page.locator("#undo:not([disabled])").wait_for()
    while page.locator("#undo").is_enabled():
        page.locator("#undo").click()
    page.locator("#redo:not([disabled])").wait_for()
    page.keyboard.press("Escape")
    page.locator("#editor section").wait_for(state="detached")  # nothing is changed: it does not ask
    assert fake.reviews == []


def test_engineers_may_look_and_not_review(open_page: Open, fake: Any) -> None:
    fake.role = "engineer"
    page = open_page("/study/1")
    ready(page)
    assert page.locator("#verdict-accept").count() == 0
    page.keyboard.press("a")
    page.wait_for_timeout(150)
    assert fake.reviews == []
    fake.role = "reader"
    page = open_page("/study/1")
    ready(page)
    assert page.locator("#verdict-accept").count() == 1
    assert page.get_by_role("link", name="Administration").count() == 0


def test_a_study_that_is_not_there_is_said_to_be_gone(open_page: Open) -> None:
    page = open_page("/study/4711")
    page.locator("#stage-text", has_text="no such study").wait_for()
    page.troubles.clear()  # the browser itself reports the 404


def test_new_results_appear_and_urgency_is_sent(open_page: Open, fake: Any) -> None:
    page = open_page("/study/1")
    ready(page)
    page.locator("#urgency").select_option("0")
    page.wait_for_function("() => true")
    assert ("studies/1/urgency", {"urgency": 0}) in fake.posted
    fake.extra[10] = [
        {
            "id": 1,
            "user": "dr.other",
            "at": "2026-11-21T10:00:00Z",
            "verdict": "reject",
            "reason": "seen elsewhere",
            "correction": None,
        }
    ]
    while not fake.listeners:
        page.wait_for_timeout(50)
    fake.tell({"kind": "study", "id": 1})
    page.locator(".history", has_text="seen elsewhere").wait_for()


def test_a_broken_webgl_viewer_gives_way_to_the_own_one(open_page: Open, fake: Any) -> None:
    """NiiVue is installed and cannot start: images are shown all the same."""
    folder = fake.data / "viewers" / "niivue"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.js").write_text(
        "export class Niivue { constructor() { throw new Error('no WebGL'); } }\nexport const SHOW_RENDER = {};\n"
    )
    (folder / "installed.json").write_text(json.dumps({"version": "0", "files": ["index.js"]}))
    try:
        page = open_page("/account")
        page.add_init_script(
            "const real = HTMLCanvasElement.prototype.getContext;"
            "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
            "  return kind === 'webgl2' ? {} : real.call(this, kind, ...more); };"
        )
        page.goto(fake.address + "/study/1")
        ready(page)
        assert page.locator("html").get_attribute("data-niivue") == "yes"
        assert any("GET /viewer" in one for one in fake.viewed)  # it was tried
        assert page.locator(".pane-axial canvas").count() == 1
        assert pixels(page).max() > 200
    finally:
        (folder / "installed.json").unlink()
