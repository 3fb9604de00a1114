"""The viewers of others as they are installed: fetched from the npm registry, or of the folder SAGITTAL_TEST_VIEWERS."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sagittal.errors import ResourceError
from sagittal.serve.viewer import install_viewer, viewers_folder
from sagittal.serve.viewer_fetch import from_npm

#: WebGL without a graphics card.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def viewers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``sagittal viewer install niivue`` filled."""
    given = os.environ.get("SAGITTAL_TEST_VIEWERS", "")
    if given:
        return Path(given)
    folder = viewers_folder(tmp_path_factory.mktemp("viewers"))
    try:
        install_viewer("niivue", folder, fetch=from_npm(environment=os.environ, home=Path.home()))
    except ResourceError as error:  # no way out to a registry: nothing that CI could install
        pytest.skip(f"NiiVue cannot be fetched here: {error}")
    return folder


@pytest.fixture
def page(fake: Any, browser: Any, viewers: Path) -> Iterator[Any]:
    """A window with WebGL, and the installed viewers in the fake service's data."""
    shutil.copytree(viewers, fake.data / "viewers", dirs_exist_ok=True)
    opened = browser.browser_type.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    made = opened.new_page(viewport={"width": 1366, "height": 768}, locale="en-GB")
    made.set_default_timeout(30_000)
    troubles: list[str] = []
    made.on("pageerror", lambda error: troubles.append(str(error)))
    made.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    yield made
    opened.close()
    shutil.rmtree(fake.data / "viewers")
    assert troubles == []


def shown(page: Any) -> np.ndarray:
    """A photograph of NiiVue's canvas, (rows, columns, 3)."""
    picture = page.locator("#niivue").screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_niivue_shows_volume_masks_and_boxes_where_they_lie(page: Any, fake: Any) -> None:
    page.goto(fake.address + "/study/2")
    page.locator("#niivue").wait_for()
    page.locator("#on-mask-0").wait_for()
    page.locator("[data-layout=axial]").click()
    page.wait_for_timeout(1500)
    both = shown(page)
    page.locator("#on-mask-0").uncheck()
    page.wait_for_timeout(1000)
    one = shown(page)
    changed = np.argwhere(np.abs(one - both).sum(axis=2) > 20)
    assert len(changed) > 500
    assert changed[:, 1].mean() < both.shape[1] / 2  # the right lung is left on the screen
    page.goto(fake.address + "/study/1")
    page.locator("#on-boxes").wait_for()
    page.locator("[data-layout=axial]").click()
    page.keyboard.press("2")
    page.wait_for_timeout(1500)
    boxed = shown(page)
    page.locator("#on-boxes").uncheck()
    page.wait_for_timeout(1000)
    frame = np.argwhere(np.abs(shown(page) - boxed).sum(axis=2) > 60)
    assert len(frame) > 50
    assert frame[:, 1].mean() < boxed.shape[1] / 2


def test_who_corrects_goes_over_to_the_own_viewer_at_the_same_place(page: Any, fake: Any) -> None:
    page.goto(fake.address + "/study/2")
    page.locator("#niivue").wait_for()
    page.locator("#on-mask-0").wait_for()
    page.wait_for_timeout(500)
    slice_ = page.locator("#scrub").input_value()
    page.keyboard.press("c")
    page.locator(".pane-axial canvas").wait_for()
    page.locator(".corner.top-left", has_text="/").wait_for()
    assert page.locator("#scrub").input_value() == slice_
