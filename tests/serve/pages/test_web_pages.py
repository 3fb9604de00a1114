"""Pages as files: languages, policy, what is served and what is not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from sagittal.serve.web_pages import FOLDER, LANGUAGES, PAGES, POLICY, assets, build, choose_language, render, texts

SCRIPTS = sorted(path for path in FOLDER.rglob("*.js"))
MARKS = (("niivue", "no"), ("ohif", "no"), ("oidc", "no"))


@pytest.fixture
def client(fake: Any) -> TestClient:
    return TestClient(fake.app, headers={"accept-language": "en"})


def test_both_languages_say_the_same_things() -> None:
    english, chinese = texts("en"), texts("zh")
    assert english.keys() == chinese.keys()
    assert all(value.strip() for words in (english, chinese) for value in words.values())


def test_the_same_places_are_filled_in_in_both_languages() -> None:
    def places(text: str) -> set[str]:
        return set(re.findall(r"\{(\w+)\}", text))

    different = [key for key, text in texts("en").items() if places(text) != places(texts("zh")[key])]
    assert different == []


def test_chinese_is_chinese() -> None:
    """A word that was forgotten stands there in English."""
    same = {key for key, text in texts("en").items() if texts("zh")[key] == text}
    # Names of formats, of products, numbers alone.
    known = re.compile(r"object\.(seg|sr|fhir|hl7|json|rtstruct|nifti)|window\.suv-\d+|viewer\.(slice|niivue)")
    assert {key for key in same if not known.fullmatch(key)} == set()


def used_keys() -> tuple[set[str], set[str]]:
    """Keys that are named in full, and beginnings of those that are put together."""
    whole, begun = set(), set()
    for path in FOLDER.rglob("*"):
        if path.suffix == ".html":
            whole |= set(re.findall(r"\{\{([\w.-]+)\}\}", path.read_text(encoding="utf-8")))
        if path.suffix == ".js":
            text = path.read_text(encoding="utf-8")
            whole |= set(re.findall(r"""["`]([a-z][\w-]*(?:\.[\w-]+)+)["`]""", text))
            begun |= set(re.findall(r"""`([a-z][\w-]*(?:\.|-)[\w.-]*)\$\{""", text))
            begun |= {f"{group}." for group in re.findall(r"""word\("([\w.-]+)",""", text)}
    return whole, begun


def test_every_word_that_a_page_names_is_known() -> None:
    for path in SCRIPTS:
        for key in re.findall(r"""\bt\(\s*"([\w.-]+)\"""", path.read_text(encoding="utf-8")):
            assert key in texts("en"), f"{path.name}: {key}"


def test_no_word_is_kept_that_no_page_says() -> None:
    whole, begun = used_keys()
    unused = [key for key in texts("en") if key not in whole and not any(key.startswith(start) for start in begun)]
    assert [key for key in unused if not key.startswith(("use.", "said.", "verdict.", "yes", "no"))] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
def test_every_page_is_written_in_every_language(page: str, language: str) -> None:
    text = render(page, language, MARKS).content.decode()
    assert f'<html lang="{language}"' in text
    assert "{{" not in text


class _Attributes(HTMLParser):
    """Collects what a strict policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        self.inside = tag if tag in ("script", "style") and "src" not in names else ""
        self.bad += [f"{tag} {name}" for name in names if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action"):
            if (names.get(name) or "/").startswith(("http:", "https:", "//", "javascript:")):
                self.bad.append(f"{tag} {name}")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.bad.append(f"inline {self.inside}")


@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
def test_no_page_holds_anything_inline_or_foreign(page: str) -> None:
    parser = _Attributes()
    parser.feed(render(page, "en", MARKS).content.decode())
    assert parser.bad == []


def test_no_script_makes_markup_of_text() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextualFragment"
        r"|setTimeout\(\s*[\"'`]|\.cssText|https?://(?!www\.w3\.org/)"
    )
    found = {path.name: forbidden.findall(path.read_text(encoding="utf-8")) for path in SCRIPTS}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_scripts_are_small_and_say_what_they_are() -> None:
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("// "), path.name
        assert len(text.splitlines()) <= 420, path.name


@pytest.mark.parametrize(
    "address", ["/", "/study/5", "/agreement", "/admin", "/account", "/signin", "/link", "/link/abc"]
)
def test_pages_are_sent_under_the_policy(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert "connect-src 'self';" in POLICY
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-language"] == "en"
    assert "Accept-Language" in answer.headers["vary"]


def test_a_browser_that_has_a_page_is_not_sent_it_again(client: TestClient) -> None:
    first = client.get("/assets/0/code/dom.js")
    again = client.get("/assets/0/code/dom.js", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"  # of another version than this one
    assert "immutable" in client.get(f"/assets/{build()}/code/dom.js").headers["cache-control"]


@pytest.mark.parametrize(
    "name",
    ["../web_pages.py", "..%2fweb_pages.py", "text/../../config.py", "worklist.html", "code", "code/", "x.js", "%00"],
)
def test_nothing_but_the_listed_files_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/assets/0/{name}").status_code == 404


def test_every_file_that_a_page_or_module_loads_is_there() -> None:
    for page in set(PAGES.values()):
        for name in re.findall(
            rf'(?:src|href)="/assets/{build()}/([^"]+)"', render(page, "en", MARKS).content.decode()
        ):
            assert name in assets()
    for path in SCRIPTS:
        for name in re.findall(r'from "(\./[^"]+|\.\./[^"]+)"', path.read_text(encoding="utf-8")):
            assert (path.parent / name).resolve().is_file(), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("cookie", "accept", "default", "language"),
    [
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "en", "zh"),
        (None, "en;q=0.5, zh;q=0.4", "zh", "en"),
        (None, "de, fr", "zh", "zh"),
        (None, "", "en", "en"),
        ("zh", "en", "en", "zh"),
        ("../x", "en", "zh", "en"),
        (None, "zh;q=0, en;q=0.1", "zh", "en"),
        (None, ";;;q=,,,=" * 500, "en", "en"),
    ],
)
def test_the_language_is_the_chosen_one_else_the_browsers(
    cookie: str | None, accept: str, default: str, language: str
) -> None:
    assert choose_language(cookie, accept, default) == language


def test_text_files_are_sent_as_json(client: TestClient) -> None:
    sent = client.get("/assets/0/text/zh.json")
    assert sent.headers["content-type"].startswith("application/json")
    assert json.loads(sent.content)["page.worklist"] == "工作列表"


# Contrast ------------------------------------------------------------------------------------------------------------


def tokens(theme: str) -> dict[str, tuple[float, float, float]]:
    """The colours of a theme, 0 to 1."""
    css = (FOLDER / "style" / "tokens.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root(?:\[data-theme=\"dark\"\])? \{(.*?)\n\}", css, re.DOTALL)[:2]
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", light))
    if theme == "dark":
        found |= dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", dark))
    return {key: tuple(int(value[n : n + 2], 16) / 255 for n in (0, 2, 4)) for key, value in found.items()}  # type: ignore[misc]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The ratio of two colours' luminances (WCAG 2.2, relative luminance)."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_rightly() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0.466667,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.01)  # #777777, by WebAIM's checker


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_every_ground(theme: str) -> None:
    colours = tokens(theme)
    grounds = ("ground", "panel", "raised", "marked")
    low = {
        (text, ground): round(contrast(colours[text], colours[ground]), 2)
        for text in ("text", "muted", "accent", "good", "doubt", "bad")
        for ground in grounds
        if contrast(colours[text], colours[ground]) < 4.5
    }
    assert low == {}
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["panel"], colours["bad"]) >= 4.5  # counts of troubles


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_edges_and_focus_can_be_seen(theme: str) -> None:
    """WCAG 2.2, 1.4.11: 3:1 for what shows where a control is."""
    colours = tokens(theme)
    for ground in ("ground", "panel", "raised"):
        assert contrast(colours["edge"], colours[ground]) >= 3
        assert contrast(colours["focus"], colours[ground]) >= 3
    assert contrast(colours["bar"], colours["panel"]) >= 3
