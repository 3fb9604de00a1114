"""The pages in a real browser, over a fake service."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
#: No sandbox in containers; the pages need no WebGL but for the viewers of others.
FLAGS = ["--no-sandbox", "--disable-gpu"]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"pages_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake_api() -> Any:
    """The module of the fake service."""
    pytest.importorskip("fastapi")
    return _load("fake_api")


@pytest.fixture(scope="session")
def phantoms(fake_api: Any) -> Any:
    """Synthetic images with masks, boxes and maps."""
    return fake_api.Phantoms()


@pytest.fixture(scope="session")
def running(fake_api: Any, phantoms: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The fake service at work on a port of this machine."""
    import uvicorn

    app, fake = fake_api.make_fake(tmp_path_factory.mktemp("data"), phantoms)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    fake.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    fake.app = app
    yield fake
    server.should_exit = True
    server.force_exit = True
    thread.join(10)


@pytest.fixture
def fake(running: Any) -> Any:
    """The fake service as at its start."""
    running.reset()
    return running


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not shutil.which(CHROMIUM):
        if os.environ.get("CI"):
            pytest.fail("CI lacks chromium: .ci/apt.txt names it")
        pytest.skip("chromium is not installed: apt install chromium")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def contexts(browser: Any) -> Iterator[dict[Any, Any]]:
    """Windows by their options, kept from test to test with the files that they have loaded."""
    kept: dict[Any, Any] = {}
    yield kept
    for context in kept.values():
        context.close()


@pytest.fixture
def open_page(browser: Any, contexts: dict[Any, Any], fake: Any) -> Iterator[Callable[..., Any]]:
    """Open a page: ``open_page("/study/1", width=1024)``; the test fails on any error that the browser reports."""
    pages: list[Any] = []
    troubles: list[str] = []
    foreign: list[str] = []

    def open_it(path: str, *, width: int = 1366, height: int = 768, language: str = "en-GB", **more: Any) -> Any:
        key = (width, height, language, *sorted(more.items()))
        if key not in contexts:
            contexts[key] = browser.new_context(viewport={"width": width, "height": height}, locale=language, **more)
            contexts[key].set_default_timeout(10_000)
        contexts[key].clear_cookies()
        page = contexts[key].new_page()
        pages.append(page)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
        page.on("request", lambda sent: None if _own(sent.url, fake.address) else foreign.append(sent.url))
        page.troubles = troubles
        page.goto(fake.address + path)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert foreign == [], "a page asked another host"
    assert [one for one in troubles if "401" not in one and "403" not in one] == []


def _own(url: str, address: str) -> bool:
    return url.startswith((address + "/", "data:", "blob:"))
