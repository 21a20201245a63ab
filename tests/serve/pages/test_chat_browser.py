"""The chat page in a real browser: past chats that this browser keeps, and thumbs that reach the feedback database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.feedback import open_feedback
from serve.gateway import GatewaySettings
from serve.recording import Recording
from tests.helpers import wait_until
from tests.serve.support.browsing import IN_A_BROWSER, PATIENCE_MS, Site, await_models, served
from tests.serve.support.local import gateway_app
from tests.serve.support.scripted import Scripted

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = IN_A_BROWSER


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    models = {"base": Scripted("base", "and so on", chat=False), "policy": Scripted("policy", "It is **<b>Lima</b>**.")}
    with open_feedback(url) as database:
        settings = GatewaySettings(tmp_path, url, "always", weights=dict.fromkeys(models, "0123abcd"))
        with served(gateway_app(models, settings)) as address:
            yield Site(address, database)


@contextmanager
def chatting(browser: "api.Browser", site: Site) -> Iterator[tuple["api.Page", Callable[[str], None]]]:
    """Yields a browser session on the page, and a function that sends a message and waits for the answer."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(site.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("128")

    def ask(text: str) -> None:
        await_models(page)
        answers = page.get_by_role("button", name="Copy this answer")
        before = answers.count()
        page.get_by_label("Message").or_(page.get_by_label("Text to continue")).fill(text)
        page.keyboard.press("Enter")
        answers.nth(before).wait_for()

    yield page, ask
    context.close()
    assert errors == []


def test_past_chats_stay_in_this_browser_until_they_are_deleted(browser: "api.Browser", site: Site) -> None:
    with chatting(browser, site) as (page, ask):
        ask("What is the capital of Peru?")
        ask("And its largest city?")
        page.get_by_role("button", name="New").click()
        ask("Tell me about France.")
        page.reload()
        page.get_by_role("button", name="History").click()
        api.expect(page.get_by_role("listitem")).to_have_count(2)
        page.get_by_role("listitem").nth(1).get_by_role("button").first.press("Enter")
        api.expect(page.get_by_role("dialog")).to_be_hidden()
        log = page.get_by_role("log")
        # Whole answers are shown as Markdown, in which HTML is text.
        answer = "It is <b>Lima</b>."
        api.expect(log.locator(".text")).to_have_text(
            ["What is the capital of Peru?", answer, "And its largest city?", answer]
        )
        api.expect(log.locator("strong")).to_have_text(["<b>Lima</b>"] * 2)
        page.get_by_role("button", name="Raw").first.click()
        api.expect(log.locator(".text").nth(1)).to_have_text("It is **<b>Lima</b>**.")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("128")
        ask("Thanks")
        page.get_by_role("button", name="History").click()
        # The continued chat is now the newest one, and no third one was added.
        api.expect(page.get_by_role("listitem")).to_have_count(2)
        page.get_by_role("button", name="Delete What is the capital of Peru?").click()
        api.expect(page.get_by_role("listitem")).to_have_count(1)
        page.get_by_role("button", name="Delete all").click()
        api.expect(page.get_by_role("listitem")).to_have_count(0)
        page.reload()
        page.get_by_role("button", name="History").click()
        page.get_by_text("There is none yet.").wait_for()
        api.expect(page.get_by_role("listitem")).to_have_count(0)
    with chatting(browser, site) as (page, _):
        page.get_by_role("button", name="History").click()
        page.get_by_text("There is none yet.").wait_for()


def test_a_page_that_is_opened_before_the_models_are_loaded_waits_for_them(browser: "api.Browser", site: Site) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.clock.install()
    waiting: list[api.Route] = []
    page.route("**/v1/models", lambda route: waiting.append(route))
    page.goto(site.url)
    page.get_by_text("The models are being loaded").wait_for()
    page.get_by_label("Message").fill("What is the capital of Peru?")
    page.keyboard.press("Enter")
    page.get_by_text("Your message stays here until the models are loaded.").first.wait_for()
    waiting[0].abort()
    page.get_by_text("The models cannot be reached: the server does not answer.").wait_for()
    page.unroute("**/v1/models")
    page.clock.run_for(3000)
    page.get_by_text("The model policy answers in conversation.").wait_for()
    api.expect(page.get_by_label("Message")).to_have_value("What is the capital of Peru?")
    page.context.close()


def test_a_past_chat_that_is_opened_before_the_models_are_loaded_goes_on(browser: "api.Browser", site: Site) -> None:
    with chatting(browser, site) as (page, ask):
        ask("What is the capital of Peru?")
        waiting: list[api.Route] = []
        page.route("**/v1/models", lambda route: waiting.append(route))
        page.reload()
        page.get_by_text("The models are being loaded").wait_for()
        page.get_by_role("button", name="New").click()
        page.get_by_label("Message").fill("Nobody reads this yet")
        page.keyboard.press("Enter")
        page.get_by_text("Your message stays here until the models are loaded.").first.wait_for()
        api.expect(page.get_by_label("Message")).to_have_value("Nobody reads this yet")
        open_first_past_chat(page)
        wait_for_route(page, waiting)
        waiting[0].continue_()
        await_models(page)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Max tokens").fill("128")
        ask("Sure?")
        page.get_by_role("button", name="History").click()
        api.expect(page.get_by_role("listitem")).to_have_count(1)


def open_first_past_chat(page: "api.Page") -> None:
    page.get_by_role("button", name="History").click()
    page.get_by_role("listitem").first.get_by_role("button").first.click()


def wait_for_route(page: "api.Page", waiting: list["api.Route"]) -> None:
    """Waits for a request that a route holds; Playwright tells of it while it is called."""

    def is_there() -> bool:
        page.title()
        return bool(waiting)

    wait_until(is_there, 60, "the request")


def test_thumbs_reach_the_feedback_and_can_be_changed_and_taken_back(browser: "api.Browser", site: Site) -> None:
    with chatting(browser, site) as (page, ask):
        page.get_by_label("System prompt").fill("Be brief.")
        ask("What is the capital of Peru?")
        ask("Sure?")
        good, poor = (page.get_by_role("button", name=name).nth(1) for name in ("Good answer", "Poor answer"))
        good.click()
        page.get_by_text("Stored as a good answer, thank you.").wait_for()
        (thumb,) = site.database.thumbs()
        assert (thumb.model, thumb.weights, thumb.good, thumb.caller) == ("policy", "0123abcd", True, "")
        assert thumb.answer == "It is **<b>Lima</b>**. "
        assert [(one["role"], one["content"]) for one in thumb.messages] == [
            ("system", "Be brief."),
            ("user", "What is the capital of Peru?"),
            ("assistant", "It is **<b>Lima</b>**. "),
            ("user", "Sure?"),
        ]
        poor.press("Enter")
        page.get_by_text("Stored as a poor answer, thank you.").wait_for()
        assert [one.good for one in site.database.thumbs()] == [False]
        # It is still pressed when the chat is opened again, and pressing it once more takes it back.
        page.reload()
        api.expect(poor).to_have_attribute("aria-pressed", "true")
        api.expect(good).to_have_attribute("aria-pressed", "false")
        poor.click()
        page.get_by_text("Taken back.").wait_for()
        assert site.database.thumbs() == []


def test_a_thumb_is_kept_that_is_stored_after_its_chat_was_left(browser: "api.Browser", site: Site) -> None:
    with chatting(browser, site) as (page, ask):
        ask("What is the capital of Peru?")
        waiting: list[api.Route] = []
        page.route("**/thumbs", lambda route: waiting.append(route))
        page.get_by_role("button", name="Poor answer").click()
        wait_for_route(page, waiting)
        page.get_by_role("button", name="New").click()
        ask("Tell me about France.")
        waiting[0].continue_()
        page.get_by_text("Stored as a poor answer, thank you.").wait_for()
        page.get_by_role("button", name="History").click()
        page.get_by_role("button", name="What is the capital of Peru?").first.click()
        api.expect(page.get_by_role("button", name="Poor answer")).to_have_attribute("aria-pressed", "true")


def test_a_model_that_continues_text_is_rated_on_that_text_alone(browser: "api.Browser", site: Site) -> None:
    with chatting(browser, site) as (page, ask):
        page.get_by_label("Model").select_option("base")
        ask("Once upon a time")
        ask("The capital of Peru")
        page.get_by_role("button", name="Poor answer").nth(1).click()
        page.get_by_text("Stored as a poor answer, thank you.").wait_for()
        (thumb,) = site.database.thumbs()
        assert thumb.messages == [{"role": "user", "content": "The capital of Peru"}]
        assert (thumb.model, thumb.answer, thumb.good) == ("base", "and so on ", False)


def test_the_page_asks_before_a_prompt_is_stored(browser: "api.Browser", tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    models = {"policy": Scripted("policy", "It is Lima.")}
    settings = GatewaySettings(tmp_path, url, "always", recording=Recording("ask", 7.0))
    with open_feedback(url) as database, served(gateway_app(models, settings)) as address:
        with chatting(browser, Site(address, database)) as (page, ask):
            consent = page.get_by_label("Let this server store what I send for 7 days")
            assert not consent.is_checked()
            ask("Not this one.")
            consent.check()
            ask("But this one.")
            wait_until(lambda: len(database.live_prompts()) == 1, 30, "the prompt")
            consent.uncheck()
            ask("And no more.")
        (row,) = database.live_prompts()
        assert row.messages[-1]["content"] == "But this one."
