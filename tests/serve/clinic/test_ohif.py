"""OHIF as it is installed, before the real service: the mask that it draws lies on the voxels that were found."""

from __future__ import annotations

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hospital
import tiny
from sagittal.errors import ResourceError
from sagittal.serve.viewer import install_viewer, viewers_folder
from sagittal.serve.viewer_fetch import from_npm

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PASSWORD = "seven grey herons sleep"
STUDY, SLICES, SIZE = 7, 40, 96


@pytest.fixture
def service(models: SimpleNamespace, tmp_path: Path) -> Any:
    """A service with OHIF beside its data, and a reader who may look."""
    if not shutil.which(CHROMIUM):
        if os.environ.get("CI"):
            pytest.fail("CI lacks chromium: .ci/apt.txt names it")
        pytest.skip("chromium is not installed: apt install chromium")
    made = hospital.Service(
        tmp_path / "service", {"model": [{"path": models.outliner}], "dicom": {"allow_unknown": True}}
    )
    try:
        install_viewer("ohif", viewers_folder(made.data), fetch=from_npm(environment=os.environ, home=Path.home()))
    except ResourceError as error:  # no way out to a registry: nothing that CI could install
        pytest.skip(f"OHIF cannot be fetched here: {error}")
    made.admit()
    from sagittal.database.connect import Database
    from sagittal.protect.users import add_user

    db = Database.open(f"sqlite:///{made.database}")
    add_user(db, "grace", "reader", password=PASSWORD)
    db.close()
    with made.start():
        yield made


def find_mask(address: str, study: int) -> tuple[list[int], dict[str, float]]:
    """Where OHIF draws the mask, (top, left, bottom, right) in pixels of the window, and where its canvas lies."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(60_000)
        page.goto(f"{address}/signin")
        page.fill("input[name=name]", "grace")
        page.fill("input[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/")
        page.goto(f"{address}/open/ohif/{study}")
        page.get_by_text("Skip all").click()
        page.get_by_text("Segmentation by").dblclick()
        canvas = page.locator("canvas.cornerstone-canvas").first.bounding_box()
        assert canvas is not None
        page.mouse.move(canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2)
        for _ in range(2 * SLICES):
            page.wait_for_timeout(1000)
            shown = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
            red = np.argwhere((shown[:, :, 0] - shown[:, :, 1] > 60) & (shown[:, :, 0] - shown[:, :, 2] > 60))
            red = red[(red[:, 1] > canvas["x"]) & (red[:, 1] < canvas["x"] + canvas["width"])]
            if len(red) > 1000:
                return [*red.min(axis=0).tolist(), *(red.max(axis=0) + 1).tolist()], dict(canvas)
            page.mouse.wheel(0, 100)
        browser.close()
    raise AssertionError("OHIF never shows the mask")


def test_the_mask_lies_on_the_voxels_that_were_found(service: Any) -> None:
    assert set(hospital.send_all(service.dicom_port, tiny.make_study(STUDY, SLICES, SIZE))) == {0}
    hospital.until(lambda: service.rows("select 1 from results") and service.settled(), 60, "the study is answered")
    with ThreadPoolExecutor(1) as aside:  # a browser of another test may have its loop in this thread
        (top, left, bottom, right), canvas = aside.submit(
            find_mask, f"http://127.0.0.1:{service.port}", service.rows("select id from studies")[0][0]
        ).result()
    side = min(canvas["width"], canvas["height"])  # the square image fills the canvas as far as it can
    first_row = canvas["y"] + (canvas["height"] - side) / 2
    first_column = canvas["x"] + (canvas["width"] - side) / 2
    found = [(top - first_row, bottom - first_row), (left - first_column, right - first_column)]
    _, rows, columns = tiny.block_of(STUDY, SLICES, SIZE)
    for (low, high), wanted in zip(found, (rows, columns), strict=True):
        assert abs(low * SIZE / side - wanted.start) < 1.5
        assert abs(high * SIZE / side - wanted.stop) < 1.5
