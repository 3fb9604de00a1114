"""The worklist in a browser: rows, filters, keys, live changes, hostile names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]


def rows(page: Any) -> Any:
    return page.locator("#rows tr")


def names(page: Any) -> list[str]:
    return [str(text) for text in page.locator("#rows td:nth-child(4)").all_inner_texts()]


def test_it_lists_studies_the_urgent_first(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    assert rows(page).count() == 50
    first = rows(page).first
    assert "Receiving" in first.inner_text()
    assert first.locator(".u-2").count() == 1
    answered = page.locator("tr[data-id='1']")
    assert re.search(r"\d+ %", answered.inner_text())
    assert answered.locator(".bar").get_attribute("aria-label") is not None
    page.locator("select[name=sort]").select_option("newest")
    abstained = page.locator("tr[data-id='4']")
    abstained.wait_for()
    assert "abstained" in abstained.inner_text()
    assert "%" not in abstained.inner_text()


def test_waiting_times_go_on_and_those_of_answers_do_not(open_page: Open) -> None:
    page = open_page("/")
    waiting, answered = (page.locator(f"tr[data-id='{n}'] td:nth-child(3)") for n in (8, 1))
    before, still = waiting.inner_text(), answered.inner_text()
    page.wait_for_function(
        "text => document.querySelector(\"tr[data-id='8'] td:nth-child(3)\").textContent !== text", arg=before
    )
    assert answered.inner_text() == still


def test_a_study_is_fetched_from_a_pacs_by_its_accession_number(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    page.locator("#fetch").click()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert not [path for path, _ in fake.posted if path == "fetch"]
    page.locator("#fetch").click()
    page.locator("dialog input[name=accession]").fill("A*")
    page.locator("dialog button[type=submit]").click()
    assert page.locator("dialog").count() == 1, "no wildcards"
    page.locator("dialog input[name=accession]").fill(" A-2041 ")
    page.keyboard.press("Enter")
    page.locator("#notices").get_by_text("It is being fetched.").wait_for()
    assert fake.posted[-1] == ("fetch", {"pacs": "hospital-pacs", "accession": "A-2041"})


def test_search_waits_until_typing_ends_and_asks_once(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    fake.asked.clear()
    page.locator("#search").evaluate(
        """node => { for (const text of ['b', 'be', 'ber', 'berta']) {
             node.value = text; node.dispatchEvent(new Event('input', {bubbles: true})); } }"""
    )
    page.wait_for_function("() => document.querySelectorAll('#rows tr').length < 20")
    asked = [one for one in fake.asked if "text=" in one]
    assert len(asked) == 1
    assert "text=berta" in asked[0]
    assert set(names(page)) == {"Phantom, Berta"}


def test_filters_go_to_the_service_and_stay_when_one_comes_back(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    page.locator("#statuses button[data-status='failed']").click()
    page.wait_for_function("() => document.querySelectorAll('#rows tr').length === 5")
    with page.expect_response("**/api/studies?*modality=CT*") as answer:
        page.locator("select[name=modality]").select_option("CT")
    assert "status=failed" in answer.value.url
    page.goto(fake.address + "/study/1")
    page.go_back()
    rows(page).first.wait_for()
    assert page.locator("#statuses button[data-status='failed']").get_attribute("aria-pressed") == "true"
    assert "text" not in page.url
    page.locator("#clear").click()
    page.wait_for_function("() => document.querySelectorAll('#rows tr').length === 50")


def test_counts_stand_at_the_states(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    expected = sum(one["status"] == "answered" for one in fake.rows)
    assert page.locator("#statuses button[data-status='answered']").inner_text().split()[-1] == str(expected)
    assert page.locator("#statuses button[data-status='']").inner_text().split()[-1] == "60"


def test_keys_move_and_open(open_page: Open) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    for key in ("j", "j", "ArrowDown", "k"):
        page.keyboard.press(key)
    focused = page.evaluate("document.activeElement.closest('tr').dataset.id")
    assert focused == page.locator("#rows tr").nth(1).get_attribute("data-id")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("j")
    assert page.locator("#search").input_value() == "j"  # typed, not moved
    page.keyboard.press("Backspace")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/study/\d+$"))


def test_the_focus_stays_while_the_list_changes(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    page.locator("#live.on").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    at = page.evaluate("document.activeElement.closest('tr').dataset.id")
    new = dict(fake.rows[0], id=777, patient_name="Neu^Urgent", urgency=2, status="waiting", waiting_s=9e5)
    fake.rows.insert(0, new)
    fake.tell({"kind": "study", "id": 777})
    page.locator("tr[data-id='777']").wait_for()
    assert names(page)[0] == "Neu, Urgent"
    assert page.evaluate("document.activeElement.closest('tr').dataset.id") == at


def test_a_change_is_shown_without_a_reload(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    page.locator("#live.on").wait_for()
    row = next(one for one in fake.rows if one["id"] == 8)
    row.update(status="answered", finding="1 nodule: 7 mm", confidence=0.999)
    fake.tell({"kind": "study", "id": 8})
    page.locator("tr[data-id='8']", has_text="1 nodule: 7 mm").wait_for()
    assert "> 99 %" in page.locator("tr[data-id='8']").inner_text()  # never "100 %" of what is not certain


def test_more_pages_follow(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    page.locator("#scroll").evaluate("node => node.scrollTo(0, node.scrollHeight)")
    page.wait_for_function("() => document.querySelectorAll('#rows tr').length === 60")
    assert page.locator("#more").is_hidden()
    ids = [row.get_attribute("data-id") for row in rows(page).all()]
    assert len(set(ids)) == 60


@pytest.mark.parametrize("path", ["/", "/study/5", "/admin#users"])
def test_markup_in_names_stays_text(open_page: Open, fake: Any, path: str) -> None:
    page = open_page(path)
    page.locator("#rows tr, #finding, #panel table, .chart").first.wait_for()
    page.wait_for_timeout(150)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script:not([src])").count() == 0
    if path in ("/study/5", "/admin#users"):
        assert "<script>window.hacked" in page.locator("body").inner_text()


def test_names_of_every_script_are_written_as_people_write_them(open_page: Open) -> None:
    page = open_page("/", language="zh-CN")
    rows(page).first.wait_for()
    shown = set(names(page))
    assert {"王小东 Wang, XiaoDong", "山田太郎 Yamada, Tarou", "Синтетик, Анна"} <= shown
    assert page.locator("html").get_attribute("lang") == "zh"
    assert "工作列表" in page.locator("#top").inner_text()


def test_the_language_can_be_changed(open_page: Open) -> None:
    page = open_page("/", language="zh-CN")
    rows(page).first.wait_for()
    page.get_by_role("button", name="English").click()
    page.locator("#top", has_text="Worklist").wait_for()
    assert page.locator("html").get_attribute("lang") == "en"


def test_who_is_not_signed_in_is_asked_to(open_page: Open, fake: Any) -> None:
    fake.signed_in = False
    page = open_page("/study/1")
    page.wait_for_url("**/signin?next=%2Fstudy%2F1")
    page.locator("input[name=name]").fill("dr.synthetic")
    page.locator("input[name=password]").fill("wrong")
    page.keyboard.press("Enter")
    page.locator("#problem:not([hidden])").wait_for()
    assert page.locator("input[name=password]").input_value() == ""
    page.locator("input[name=password]").fill("a right sentence")
    page.keyboard.press("Enter")
    page.wait_for_url("**/study/1")
    assert page.locator("#oidc").count() == 0


def test_signing_in_leads_nowhere_else(open_page: Open, fake: Any) -> None:
    page = open_page("/account")
    for wanted in ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/api/logout"):
        page.goto(f"{fake.address}/signin?next={wanted}")  # signed in already: it goes on at once
        page.wait_for_url(fake.address + "/")


def test_signing_out_forgets_the_filters(open_page: Open, fake: Any) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    page.locator("#search").fill("Berta")
    page.wait_for_function("() => (sessionStorage.getItem('sagittal.worklist') ?? '').includes('Berta')")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/signin")
    page.wait_for_function("() => sessionStorage.length === 0")
    assert not fake.signed_in


def test_a_link_works_and_its_secret_leaves_no_trace(open_page: Open, fake: Any) -> None:
    fake.signed_in = False
    page = open_page("/link#a-secret-that-works-once")
    page.locator("input[name=password]").wait_for()
    page.wait_for_url("**/link")
    page.locator("input[name=name]").fill("anna")
    page.locator("input[name=password]").fill("a long sentence, easily kept")
    page.locator("input[name=again]").fill("a long sentence, easily kept?")
    page.keyboard.press("Enter")
    page.locator("#problem", has_text="differ").wait_for()
    page.locator("input[name=again]").fill("a long sentence, easily kept")
    page.keyboard.press("Enter")
    page.wait_for_url(fake.address + "/")
    assert fake.posted == [("link", {"name": "anna", "password": "a long sentence, easily kept"})]


def test_a_link_for_somebody_asks_for_no_name_and_a_used_one_for_nothing(open_page: Open, fake: Any) -> None:
    fake.signed_in = False
    page = open_page("/link#a-secret-of-anna-that-works")
    page.locator("#about", has_text="anna").wait_for()
    assert page.locator("input[name=name]").is_hidden()
    for name in ("password", "again"):
        page.locator(f"input[name={name}]").fill("a long sentence, easily kept")
    page.keyboard.press("Enter")
    page.wait_for_url(fake.address + "/")
    assert fake.posted == [("link", {"password": "a long sentence, easily kept"})]
    page = open_page("/link#a-link-that-was-used-before")
    page.locator("#problem", has_text="used already").wait_for()
    assert page.locator("form").is_hidden()
    page.troubles.clear()  # the browser itself reports the 404


@pytest.mark.parametrize(("width", "language"), [(1366, "en-GB"), (1024, "zh-CN")])
def test_pages_fit_their_screens(open_page: Open, width: int, language: str) -> None:
    page = open_page("/", width=width, language=language, has_touch=width == 1024)
    for path, there in (
        ("/", "#rows tr"),
        ("/study/1", ".pane canvas"),
        ("/study/4", "#finding"),
        ("/admin#models", "#panel table"),
        ("/admin#audit", "#panel table"),
        ("/agreement", ".chart"),
        ("/account", "table"),
    ):
        page.goto("about:blank")
        page.goto(page_address(page, path))
        page.locator(there).first.wait_for()
        wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{path} is {wide} pixels wider than {width}"
        if path == "/":
            over = page.locator("#scroll").evaluate("node => node.scrollWidth - node.clientWidth")
            assert over <= 0, f"the list is {over} pixels too wide at {width}"
        if path.startswith("/study"):
            cut = page.evaluate(
                "[...document.querySelectorAll('.side *, .toolbar *, .patient *')].filter(n => n.getClientRects().length"
                " && n.getBoundingClientRect().right > innerWidth + 1).map(n => n.tagName + n.className)"
            )
            assert cut == []


_ADDRESS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _address(fake: Any) -> None:
    _ADDRESS["now"] = fake.address


def page_address(page: Any, path: str) -> str:
    return _ADDRESS["now"] + path


@pytest.mark.parametrize("path", ["/", "/study/2", "/admin#users"])
def test_every_control_has_a_name_and_ids_are_unique(open_page: Open, path: str) -> None:
    page = open_page(path)
    page.locator("#rows tr, #finding, .chart, #panel table").first.wait_for()
    found = page.evaluate(
        """() => {
          const name = (n) => (n.getAttribute('aria-label') ?? '') + (n.labels ? [...n.labels].map(l => l.textContent).join('') : '')
            + (['INPUT', 'SELECT'].includes(n.tagName) ? '' : n.textContent) + (n.title ?? '');
          const mute = [...document.querySelectorAll('button, a, input, select, textarea, [role=img], canvas')]
            .filter(n => n.getClientRects().length && !name(n).trim()).map(n => n.outerHTML.slice(0, 120));
          const ids = [...document.querySelectorAll('[id]')].map(n => n.id);
          return {mute, twice: ids.filter((id, n) => ids.indexOf(id) !== n), h1: document.querySelectorAll('h1').length,
                  main: document.querySelectorAll('main').length, lang: document.documentElement.lang};
        }"""
    )
    assert found == {"mute": [], "twice": [], "h1": 1, "main": 1, "lang": "en"}


def test_the_first_tab_stop_skips_to_the_content(open_page: Open) -> None:
    page = open_page("/")
    rows(page).first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


def test_schemes_follow_the_system_and_images_are_dark(open_page: Open) -> None:
    page = open_page("/", color_scheme="light")
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.goto(page_address(page, "/study/1"))
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page = open_page("/agreement", color_scheme="dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_little_moves_for_who_asked_for_that(open_page: Open) -> None:
    page = open_page("/", reduced_motion="reduce")
    rows(page).first.wait_for()
    moving = page.evaluate("document.getAnimations().length")
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    assert moving == 0
    assert page.evaluate("document.getAnimations().length") == 0
