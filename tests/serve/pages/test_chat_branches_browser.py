"""The chat page in a real browser: chats have addresses and keep what was begun in them, and branch into versions."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve.gateway import GatewaySettings
from tests.serve.support.browsing import IN_A_BROWSER, served
from tests.serve.support.local import gateway_app
from tests.serve.support.scripted import Scripted

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = IN_A_BROWSER

HOSTILE = "<img src=x onerror='window.hacked = 1'>"
ADDRESS = re.compile(r"#/chat/[\w.-]+$")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = {
        "base": Scripted("base", "and so on", chat=False),
        "sft": Scripted("sft", f"As {HOSTILE} says"),
        "slow": Scripted("slow", " ".join(["again"] * 100), pause=0.2),
        "policy": Scripted("policy", "It is Lima."),
    }
    with served(gateway_app(models, GatewaySettings(tmp_path_factory.mktemp("run")))) as address:
        yield address


@contextmanager
def chatting(browser: "api.Browser", url: str, width: int = 1280) -> Iterator["api.Page"]:
    """Yields the chat page in a browser session of its own, with room for the scripted answers."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    set_up(page)
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    assert errors == []


def set_up(page: "api.Page") -> None:
    """Waits for the models and sets the number of tokens that the scripted models expect."""
    api.expect(page.locator("#model option")).not_to_have_count(0)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("128")


def send(page: "api.Page", text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def expect_said(page: "api.Page", *texts: str) -> None:
    api.expect(page.get_by_role("log").locator(".text")).to_have_text(list(texts))


def test_the_address_of_a_chat_opens_it_with_its_draft_and_an_interrupted_answer(
    browser: "api.Browser", url: str
) -> None:
    with chatting(browser, url) as page:
        send(page, "What is the capital of Peru?")
        page.get_by_role("button", name="Copy this answer").wait_for()
        api.expect(page).to_have_url(ADDRESS)
        first = page.url
        page.get_by_label("Message").fill("A thought that is not fi")
        page.get_by_role("button", name="New").click()
        api.expect(page).to_have_url(f"{url}/")
        api.expect(page.get_by_label("Message")).to_have_value("")
        page.get_by_label("Model").select_option("slow")
        send(page, "Go on")
        expect_said(page, "Go on", re.compile("again again"))
        api.expect(page).to_have_url(ADDRESS)
        page.reload()
        # What was written until then is kept, and the question can be asked again.
        expect_said(page, "Go on", re.compile("again"))
        page.get_by_text("broken off").wait_for()
        page.get_by_role("button", name="Try again").wait_for()
        page.goto(first)
        expect_said(page, "What is the capital of Peru?", "It is Lima.")
        api.expect(page.get_by_label("Message")).to_have_value("A thought that is not fi")
        api.expect(page.get_by_label("Model")).to_have_value("policy")
        page.go_back()
        expect_said(page, "Go on", re.compile("again"))
        page.goto(f"{url}/#/chat/elsewhere")
        page.get_by_text("This browser does not keep the chat of this address").first.wait_for()
        # Chats that were stored before there were branches.
        turns = [{"role": "user", "text": "Old?"}, {"role": "assistant", "text": "Yes.", "who": "gone", "first": 0}]
        old = [{"id": "1-0.5", "model": "gone", "turns": turns, "first": 0, "time": 0}]
        page.evaluate("old => localStorage.setItem('triptych chats', JSON.stringify(old))", old)
        page.goto(f"{url}/#/chat/1-0.5")
        expect_said(page, "Old?", "Yes.")


def test_answers_are_written_anew_and_questions_edited_and_all_versions_stay(browser: "api.Browser", url: str) -> None:
    with chatting(browser, url, 360) as page:
        send(page, "Peru?")
        page.get_by_role("button", name="Copy this answer").wait_for()
        page.get_by_label("Model").select_option("sft")
        page.get_by_role("button", name="Regenerate this answer").click()
        expect_said(page, "Peru?", f"As {HOSTILE} says")
        send(page, "And then?")
        expect_said(page, "Peru?", f"As {HOSTILE} says", "And then?", f"As {HOSTILE} says")
        # The older version has nothing after it; the later one still has.
        page.get_by_role("button", name="Earlier version").click()
        expect_said(page, "Peru?", "It is Lima.")
        later = page.get_by_role("button", name="Later version")
        api.expect(later).to_be_focused()
        later.press("Enter")
        expect_said(page, "Peru?", f"As {HOSTILE} says", "And then?", f"As {HOSTILE} says")
        page.get_by_role("button", name="Edit what you wrote").first.click()
        edited = page.get_by_label("Edited text")
        api.expect(edited).to_have_value("Peru?")
        edited.press("Escape")
        page.get_by_role("button", name="Edit what you wrote").first.click()
        edited.fill(HOSTILE)
        edited.press("Enter")
        expect_said(page, HOSTILE, f"As {HOSTILE} says")
        page.reload()
        expect_said(page, HOSTILE, f"As {HOSTILE} says")
        page.get_by_role("button", name="Earlier version").click()
        expect_said(page, "Peru?", f"As {HOSTILE} says", "And then?", f"As {HOSTILE} says")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_all_models_answer_side_by_side_and_one_goes_on(browser: "api.Browser", url: str) -> None:
    with chatting(browser, url) as page:
        page.get_by_label("Model").select_option("All")
        send(page, "Peru?")
        columns = page.locator(".columns .turn")
        api.expect(columns).to_have_count(4)
        api.expect(columns.nth(3).get_by_role("button", name="Copy this answer")).to_be_visible()
        # The others go on while one of them has ended.
        api.expect(columns.nth(2).locator(".text")).to_contain_text("again again")
        page.keyboard.press("Escape")
        said = ["Peru?and so on", f"As {HOSTILE} says", re.compile("^again again.*"), "It is Lima."]
        expect_said(page, "Peru?", *said)
        tops = {round(columns.nth(number).bounding_box()["y"]) for number in range(4)}
        assert len(tops) == 1
        send(page, "And then?")
        page.get_by_text("Choose the answer to go on with first.").first.wait_for()
        page.reload()
        expect_said(page, "Peru?", *said)
        api.expect(page.get_by_label("Message")).to_have_value("And then?")
        set_up(page)
        page.get_by_role("button", name="Go on with the answer of policy").click()
        api.expect(page.get_by_label("Model")).to_have_value("policy")
        expect_said(page, "Peru?", "It is Lima.")
        with page.expect_request("**/v1/chat/completions") as asked:
            page.get_by_label("Message").press("Enter")
        sent = [one["content"].strip() for one in asked.value.post_data_json["messages"]]
        assert sent == ["Peru?", "It is Lima.", "And then?"]
        expect_said(page, "Peru?", "It is Lima.", "And then?", "It is Lima.")
        page.get_by_role("button", name="Show the versions side by side").click()
        expect_said(page, "Peru?", *said)


def other_tab(page: "api.Page") -> "api.Page":
    """Opens the page's address in another tab of the same browser."""
    tab = page.context.new_page()
    tab.goto(page.url)
    set_up(tab)
    return tab


def test_a_tab_shows_what_another_one_added_to_its_chat_and_goes_on_from_there(
    browser: "api.Browser", url: str
) -> None:
    with chatting(browser, url) as page:
        send(page, "Peru?")
        expect_said(page, "Peru?", "It is Lima.")
        page.get_by_role("button", name="Copy this answer").wait_for()
        tab = other_tab(page)
        expect_said(tab, "Peru?", "It is Lima.")
        page.get_by_label("Message").fill("A draft")
        send(tab, "And then?")
        said = ["Peru?", "It is Lima.", "And then?", "It is Lima."]
        expect_said(tab, *said)
        expect_said(page, *said)
        api.expect(page.get_by_label("Message")).to_have_value("A draft")
        page.get_by_label("Message").press("Enter")
        expect_said(page, *said, "A draft", "It is Lima.")
        expect_said(tab, *said, "A draft", "It is Lima.")
        # What one tab deletes, the other does not bring back.
        tab.get_by_role("button", name="History").click()
        tab.get_by_role("button", name="Delete Peru?").click()
        page.get_by_text("This chat was deleted in another tab").first.wait_for()
        send(page, "Still here?")
        expect_said(page, *said, "A draft", "It is Lima.", "Still here?", "It is Lima.")
        assert page.evaluate("localStorage.getItem('triptych chats')") == "[]"


def test_two_tabs_that_write_at_once_keep_both_as_branches_and_say_so(browser: "api.Browser", url: str) -> None:
    with chatting(browser, url) as page:
        send(page, "Peru?")
        page.get_by_role("button", name="Copy this answer").wait_for()
        tab = other_tab(page)
        page.get_by_label("Model").select_option("slow")
        send(page, "From the first tab")
        expect_said(page, "Peru?", "It is Lima.", "From the first tab", re.compile("again again"))
        tab.get_by_text("Another tab is writing in this chat").first.wait_for()
        send(tab, "From the second tab")
        expect_said(tab, "Peru?", "It is Lima.", "From the second tab", "It is Lima.")
        told = "This chat went on in another tab too. Both are kept as versions"
        tab.get_by_text(told).first.wait_for()
        page.keyboard.press("Escape")
        page.get_by_text(told).first.wait_for()
        for own in (page, tab):
            questions = own.get_by_role("log").locator(".turn.user")
            api.expect(questions).to_have_count(2)
            api.expect(questions.nth(1)).to_contain_text("2 of 2" if own is tab else "1 of 2")
        page.get_by_role("button", name="Later version").click()
        expect_said(page, "Peru?", "It is Lima.", "From the second tab", "It is Lima.")
        # Nothing is lost in what is stored, whichever tab stored last.
        page.reload()
        expect_said(page, "Peru?", "It is Lima.", "From the second tab", "It is Lima.")
        page.get_by_role("button", name="Earlier version").click()
        expect_said(page, "Peru?", "It is Lima.", "From the first tab", re.compile("again again"))
        page.get_by_text("stopped").wait_for()
