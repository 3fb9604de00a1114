"""Photograph the pages for ``docs/readers-page.md``: Debian's Chromium over the tests' fake service, synthetic studies only."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "assets"
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def _fake_api() -> Any:
    spec = importlib.util.spec_from_file_location("fake_api", ROOT / "tests" / "serve" / "pages" / "fake_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_api"] = module
    spec.loader.exec_module(module)
    return module


def _keep(page: Any, name: str) -> None:
    path = OUT / name
    page.screenshot(path=path)
    picture = (
        Image.open(path).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )  # small, and sharp as before
    picture.save(path, optimize=True)
    print(name, path.stat().st_size)


def main() -> None:
    """Draw them."""
    import uvicorn
    from playwright.sync_api import sync_playwright

    from sagittal.anatomy import Scan

    api = _fake_api()
    app, fake = api.make_fake(Path(tempfile.mkdtemp()), api.Phantoms(Scan(pixels=200, slice_mm=3.0, dose_mgy=9.0)))
    fake.rows = [row for row in fake.rows if api.NASTY not in json.dumps(row) and "<" not in row["patient_name"]]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1366, "height": 768}, locale="en-GB", color_scheme="dark")
        page.goto(address)
        page.locator("#rows tr").first.wait_for()
        page.locator("#live.on").wait_for()
        _keep(page, "worklist.png")
        page.goto(address + "/study/1")
        page.locator("#on-boxes").wait_for()
        page.keyboard.press("2")
        page.locator("[data-layout=three]").click()
        page.locator("#part-purpose summary").click()
        page.wait_for_timeout(500)
        _keep(page, "study.png")
        page.goto(address + "/study/2")
        page.locator("#on-mask-0").wait_for()
        page.keyboard.press("2")
        page.keyboard.press("c")
        page.locator("#structure").select_option(label="nodule")
        canvas = page.locator(".pane-axial canvas")
        canvas.focus()
        box = canvas.bounding_box()
        for _ in range(3):
            page.keyboard.press("+")
        middle = (box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.51)
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 40, middle[1] + 18, steps=5)
        page.mouse.up()
        page.wait_for_timeout(300)
        _keep(page, "correction.png")
        page.goto(address + "/agreement")
        page.locator(".chart .point").first.wait_for()
        _keep(page, "agreement.png")
        browser.close()
    server.should_exit = True


if __name__ == "__main__":
    main()
