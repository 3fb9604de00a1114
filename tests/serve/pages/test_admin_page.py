"""The administrator's pages and those of agreement and account in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]


def opened(open_page: Open, name: str) -> Any:
    page = open_page(f"/admin#{name}")
    page.locator(f"#tab-{name}[aria-selected=true]").wait_for()
    page.locator("#panel h2").first.wait_for()
    return page


def test_troubles_are_counted_and_told(open_page: Open) -> None:
    page = opened(open_page, "events")
    page.locator("#tab-events .count:not([hidden])").wait_for()
    assert page.locator("#tab-events .count").inner_text() == "2"
    assert page.locator("#tab-dead .count").inner_text() == "1"
    told = page.locator("#panel").inner_text()
    assert "The PACS does not answer" in told
    assert "17" in told


def test_tabs_go_by_arrow_keys(open_page: Open) -> None:
    page = opened(open_page, "events")
    page.locator("#tab-events").focus()
    page.keyboard.press("ArrowDown")
    page.locator("#tab-queue[aria-selected=true]").wait_for()
    assert page.evaluate("document.activeElement.id") == "tab-queue"
    assert page.url.endswith("#queue")
    page.locator("#panel[aria-labelledby=tab-queue]").wait_for()
    stops = page.locator("[role=tab][tabindex='0']").count()
    assert stops == 1


def test_the_queue_is_paused_and_jobs_are_cancelled_and_run_again(open_page: Open, fake: Any) -> None:
    page = opened(open_page, "queue")
    page.locator("#pause").click()
    page.locator(".caution", has_text="paused").wait_for()
    assert ("queue", {"paused": True}) in fake.posted
    page.get_by_role("button", name="Cancel 92").click()
    page.locator("dialog button[type=submit]").click()
    page.locator(".notice", has_text="92").wait_for()
    page.locator("#tab-dead").click()
    page.get_by_role("button", name="Run again 88").click()
    page.locator(".notice", has_text="88").wait_for()
    assert [path for path, _ in fake.posted if path.startswith("jobs/")][:2] == ["jobs/92/cancel", "jobs/88/retry"]


def test_models_are_switched_and_compared(open_page: Open, fake: Any) -> None:
    page = opened(open_page, "models")
    text = page.locator("#panel table").inner_text()
    assert "0.9.0" in text
    assert "1.2.0" in text
    assert "78 % (63 % – 88 %), n = 40" in text
    page.get_by_role("button", name="Switch off lungs 1.2.0").click()
    page.locator("dialog button[type=submit]").click()
    page.get_by_role("button", name="Switch on lungs 1.2.0").wait_for()
    assert fake.models_on == {"lung-nodules": True, "lungs": False}


def test_destinations_are_tested(open_page: Open) -> None:
    page = opened(open_page, "destinations")
    assert "connection refused" in page.locator("#panel").inner_text()
    page.get_by_role("button", name="Test pacs").click()
    page.locator(".notice.good", has_text="C-ECHO answered").wait_for()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rules", ["lung|chest", "0 – 6", "thinnest", "30"]),
        ("storage", ["384 GiB", "9.1 GiB", "812,345", "Files on the disk are missing"]),
        ("conflicts", ["dicom CT1", "dicom CT2", "Take the second"]),
        ("refusals", ["no pixel data", "1,048,576 bytes unpack"]),
        ("audit", ["sign in", "dr.synthetic", "refused"]),
    ],
)
def test_panels_say_what_the_service_told(open_page: Open, name: str, words: list[str]) -> None:
    text = opened(open_page, name).locator("#panel").inner_text()
    assert [word for word in words if word not in text] == []


def test_a_conflict_is_settled(open_page: Open, fake: Any) -> None:
    page = opened(open_page, "conflicts")
    page.get_by_role("button", name="Take the second 4").click()
    page.locator("dialog button[type=submit]").click()
    page.locator("dialog").wait_for(state="detached")
    page.wait_for_timeout(100)
    assert ("conflicts/4", {"decision": "take-second"}) in fake.posted


def test_the_trail_is_verified(open_page: Open) -> None:
    page = opened(open_page, "audit")
    page.locator("#verify").click()
    page.locator(".mark.good", has_text="1,234 records").wait_for()


def test_a_user_is_added_and_the_link_is_shown_once(open_page: Open, fake: Any) -> None:
    page = opened(open_page, "users")
    page.locator("#add-user").click()
    page.locator("dialog input[name=name]").fill("dr.new")
    page.locator("dialog select").select_option("reader")
    page.keyboard.press("Enter")
    field = page.locator("dialog input.secret")
    field.wait_for()
    assert field.input_value() == f"{fake.address}/link#a-secret-that-works-once"
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert ("users", {"name": "dr.new", "role": "reader"}) in fake.posted
    assert "a-secret-that-works-once" not in page.content()


def test_engineers_see_no_people_and_no_trail(open_page: Open, fake: Any) -> None:
    fake.role = "engineer"
    page = opened(open_page, "models")
    assert page.locator("#tab-users").count() == 0
    assert page.locator("#tab-audit").count() == 0
    assert not any("/api/users" in one or "/api/audit" in one for one in fake.asked)


def test_agreement_is_drawn_with_intervals(open_page: Open) -> None:
    page = open_page("/agreement")
    page.locator(".chart .point").first.wait_for()
    assert page.locator(".chart .point").count() == 10
    assert page.locator(".chart .whisker").count() == 30
    first = page.locator(".chart .point title").first.text_content()
    # Wilson's interval of 5 in 6, by statsmodels' proportion_confint: 0.4365 to 0.9699.
    assert first == "09-07: 83 % (44 % – 97 %), n = 6"
    assert page.locator("#export").get_attribute("href") == "/api/export/truth"
    page.locator("select[name=model]").select_option("lung-nodules")
    page.wait_for_function(
        "() => document.querySelector('#export').getAttribute('href').endsWith('model=lung-nodules')"
    )


def test_ones_own_language_and_tokens(open_page: Open, fake: Any) -> None:
    page = open_page("/account")
    page.locator("#add-token").click()
    page.locator("dialog input[name=name]").fill("notebook")
    page.keyboard.press("Enter")
    page.locator("dialog input.secret").wait_for()
    assert page.locator("dialog input.secret").input_value() == "sg_synthetic-token"
    page.keyboard.press("Escape")
    assert ("tokens", {"name": "notebook", "days": 365}) in fake.posted
    page.locator("#language").select_option("zh")
    page.locator("h1", has_text="我的账户").wait_for()


def test_an_answer_that_fails_is_told_in_words(open_page: Open, fake: Any) -> None:
    page = opened(open_page, "events")
    page.context.set_offline(True)
    page.locator("#tab-storage").click()
    page.locator(".notice.bad", has_text="does not answer").first.wait_for()
    assert page.locator("#panel .problem").count() == 1
    page.context.set_offline(False)
    page.troubles.clear()  # the browser itself reports the lost connection
