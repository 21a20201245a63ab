"""The label page in a real browser: by keyboard alone, by dragging, with hostile answers, by two people at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI

from cluster.feedback import Feedback, Ranking, open_feedback
from serve.pages.label import label_router
from tests.helpers import wait_until
from tests.serve.support.browsing import IN_A_BROWSER, open_page, served
from tests.serve.support.labeling import fill

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = IN_A_BROWSER

HOSTILE = (
    "<script>window.hacked = 1</script>\n<img src=x onerror='window.hacked = 2'>\n"
    "[click](javascript:window.hacked=3) ![](http://127.0.0.1:9/seen.png)\n\n# <b onclick=window.hacked=4>head</b>"
)
TEXTS = ["First **bold** answer", "Second\n\n1. one\n2. two", "Third `code`", HOSTILE]


@dataclass(frozen=True)
class Site:
    url: str
    database: Feedback

    def said(self, name: str) -> list[Ranking]:
        return self.database.judgements(name)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    app = FastAPI()
    with open_feedback(f"sqlite:///{tmp_path / 'feedback.db'}") as database:
        fill(database, 4, TEXTS)
        app.include_router(label_router(database, people=1))
        with served(app) as url:
            yield Site(f"{url}/label", database)


@contextmanager
def person(browser: "api.Browser", site: Site, name: str, width: int = 1280) -> Iterator["api.Page"]:
    """Yields a browser session with the page open at its first prompt."""
    with open_page(browser, site.url, site.database.add_annotator(name), width) as page:
        page.get_by_role("article").first.wait_for()
        yield page


def shown(page: "api.Page") -> str:
    return page.locator("#messages .body").inner_text()


def press(page: "api.Page", keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def test_a_whole_ranking_by_keyboard_alone_with_a_reload_in_the_middle(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ann") as page:
        press(page, "2 1")
        first = shown(page)
        page.reload()
        page.get_by_role("article", name="Answer A, rank 2").wait_for()
        api.expect(page.get_by_role("article", name="Answer B, rank 1")).to_be_visible()
        press(page, "Enter")
        api.expect(page.get_by_role("status")).to_have_text("Not ranked yet: C, D.")
        # A change and its undo, then down to the third answer, a tie with the first, and the last.
        press(page, "4 u ArrowDown ArrowDown 2 4 Enter")
        page.get_by_text("ann: 1 done").wait_for()
        (row,) = site.said("ann")
        assert [row.ranks[str(answer)] for answer in row.presented] == [2, 1, 2, 3]
        assert row.seconds > 0
        # u with nothing to undo goes back to the last prompt.
        press(page, "u")
        page.get_by_role("article", name="Answer D, rank 3").wait_for()
        assert shown(page) == first
        press(page, "b Enter")
        wait_until(lambda: site.said("ann")[0].all_bad, 60, "the judgement")
        # Keys are ignored until the next prompt is there; the count was the same before.
        wait_until(lambda: shown(page) != first, 60, "the next prompt")
        page.get_by_text("ann: 1 done, 3 left").wait_for()
        press(page, "s")
        page.get_by_role("dialog").wait_for()
        press(page, "ArrowDown Enter")
        page.get_by_text("ann: 2 done").wait_for()
        assert [row.skipped for row in site.said("ann")] == [None, "The question makes no sense"]


def type_key(page: "api.Page", code: str, key: str, **more: int) -> None:
    """Presses a key that the layout of this machine does not have."""
    event = {"code": code, "key": key, "bubbles": True, "cancelable": True, **more}
    page.evaluate("event => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', event))", event)


def test_keys_rank_on_any_layout_and_input_methods_keep_theirs(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ann") as page:
        # The digits of a French keyboard, of a Cyrillic one with Caps Lock, and of the number pad.
        for code, key in (("Digit2", "é"), ("Digit1", "!"), ("Numpad3", "3"), ("Digit4", "'")):
            type_key(page, code, key)
        page.get_by_role("article", name="Answer D, rank 4").wait_for()
        # The Enter that accepts a suggestion of an input method confirms nothing.
        type_key(page, "Enter", "Enter", keyCode=229)
        api.expect(page.get_by_role("article", name="Answer A, rank 2")).to_be_visible()
        # After a click on a rank, Enter confirms.
        page.get_by_role("group", name="Rank of answer A").get_by_role("button", name="1").click()
        press(page, "Enter")
        page.get_by_text("ann: 1 done").wait_for()
        (row,) = site.said("ann")
        assert [row.ranks[str(answer)] for answer in row.presented] == [1, 1, 2, 3]


def test_an_outdated_page_asks_before_it_overwrites_and_retries_a_failing_server_a_few_times(
    browser: "api.Browser", site: Site
) -> None:
    with person(browser, site, "ann") as page:
        first = shown(page).removeprefix("Q ")
        found = site.database.prompt(first)
        assert found
        ranks = {str(row.id): place for place, row in enumerate(found.completions, 1)}
        for choice, kept in (("Keep the other one", False), ("Keep this one", True)):
            site.database.save_ranking(Ranking(prompt_id=first, annotator="ann", ranks=ranks))
            press(page, "b Enter")
            page.get_by_role("dialog").get_by_role("button", name=choice).click()
            wait_until(lambda: shown(page) != f"Q {first}", 60, "the next prompt")
            assert site.said("ann")[0].all_bad is kept
            if kept:
                break
            # Back to the same prompt, which a third page changes once more.
            press(page, "u")
            page.get_by_text("Back at your last answer").wait_for()
        sent: list[int] = []

        def fail(route: "api.Route") -> None:
            sent.append(1)
            route.fulfill(status=500, json={"error": {"message": "the disk is full"}})

        page.route("**/label/judgement", fail)
        page.clock.install()
        press(page, "1 2 3 4 Enter")

        def sent_again() -> bool:
            page.clock.run_for(500)
            return len(sent) == 4

        wait_until(sent_again, 60, "the page to send it again")
        trouble = page.get_by_role("alert")
        api.expect(trouble).to_contain_text(
            "Not saved: the disk is full. It is kept in this browser; Enter sends it again."
        )
        page.clock.run_for(30_000)
        assert len(sent) == 4
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        api.expect(trouble).to_be_in_viewport()
        page.unroute("**/label/judgement")
        press(page, "Enter")
        page.get_by_text("ann: 2 done").wait_for()


def test_a_whole_ranking_by_dragging(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ann") as page:

        def drag(letter: str, rank: int, place: str) -> None:
            chip = page.locator(place).get_by_role("button", name=letter, exact=True)
            slot = page.locator(f'.slot[data-rank="{rank}"]')
            chip.scroll_into_view_if_needed()
            start, end = chip.bounding_box(), slot.bounding_box()
            assert start
            assert end
            page.mouse.move(start["x"] + 10, start["y"] + 10)
            page.mouse.down()
            page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=4)
            page.mouse.up()
            slot.get_by_role("button", name=letter, exact=True).wait_for()

        drag("A", 3, "#answers")
        drag("B", 1, ".board")
        drag("C", 1, ".board")
        drag("D", 4, ".board")
        drag("D", 2, ".board")
        page.get_by_role("button", name="helpful?").first.click()
        page.get_by_text("Write a better answer").click()
        page.get_by_label("A better answer").fill("1. mine")
        page.get_by_role("button", name="Confirm").click()
        page.get_by_text("ann: 1 done").wait_for()
        (row,) = site.said("ann")
        assert [row.ranks[str(answer)] for answer in row.presented] == [3, 1, 1, 2]
        assert row.marks == {str(row.presented[0]): {"helpful": True}}
        assert row.better == "1. mine"


def test_two_people_at_once_on_a_desk_and_a_phone(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ann") as desk, person(browser, site, "ben", width=360) as phone:
        assert shown(desk) != shown(phone)
        for page in (desk, phone):
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            for index in range(len(TEXTS)):
                page.get_by_role("group", name="Rank of").nth(index).get_by_role("button").nth(index).click()
        for page in (desk, phone):
            page.get_by_role("button", name="Confirm").click()
        for page in (desk, phone):
            page.get_by_text("1 done").wait_for()
        ranked = site.database.rankings()
        assert {row.annotator for row in ranked} == {"ann", "ben"}
        assert len({row.prompt_id for row in ranked}) == 2
        assert [[row.ranks[str(answer)] for answer in row.presented] for row in ranked] == [[1, 2, 3, 4]] * 2


def test_nothing_in_an_answer_runs_or_is_fetched(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ann") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        page.get_by_role("article").first.wait_for()
        hostile = page.get_by_role("article").filter(has_text="window.hacked")
        text = hostile.inner_text()
        assert "<script>window.hacked = 1</script>" in text
        assert "onerror='window.hacked = 2'" in text
        assert "click (javascript:window.hacked=3)" in text
        hostile.locator("p").first.click()
        hostile.locator("h3").click()
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main").locator("script, img, a, iframe, [onerror], [onclick]").count() == 0
        assert asked
        assert all(url.startswith(site.url) or url.startswith("data:") for url in asked)
        # The answer's Markdown is rendered.
        api.expect(page.locator("strong")).to_have_text("bold")
        api.expect(page.locator(".answer ol li")).to_have_text(["one", "two"])
