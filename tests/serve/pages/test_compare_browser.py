"""The compare page in a real browser: by keys alone, blind until the vote, on a phone, with hostile answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.feedback import open_feedback
from tests.serve.support.browsing import IN_A_BROWSER, Site, open_page, served
from tests.serve.support.scripted import Scripted, comparing

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = IN_A_BROWSER

HOSTILE = "Well <script>window.hacked=1</script> <img src=x onerror='window.hacked=2'> **so** it is"
MODELS = (
    Scripted("alpha", HOSTILE, pause=0.01),
    Scripted("beta", "Plainly no", pause=0.01),
    Scripted("raw", "and so on", chat=False),
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with (
        open_feedback(f"sqlite:///{tmp_path / 'feedback.db'}") as database,
        served(comparing(database, *MODELS)) as url,
    ):
        yield Site(url, database)


@contextmanager
def person(browser: "api.Browser", site: Site, name: str, width: int = 1280) -> Iterator["api.Page"]:
    """Yields a browser session, signed in on the compare page."""
    with open_page(browser, f"{site.url}/compare", site.database.add_annotator(name), width) as page:
        page.get_by_label("Your prompt to the models").wait_for()
        yield page


def ask(page: "api.Page", text: str) -> None:
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Which is better?").wait_for()


def test_votes_by_keys_alone_are_blind_and_enter_the_ratings(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ann") as page:
        for number, (key, outcome) in enumerate(
            (("ArrowLeft", "left"), ("ArrowRight", "right"), ("t", "tie"), ("b", "bad")), 1
        ):
            ask(page, f"Question {number}")
            content = page.content()
            assert "alpha" not in content
            assert "beta" not in content
            page.keyboard.press(key)
            api.expect(page.locator("#progress")).to_have_text(f"{number} vote{'s' * (number > 1)}")
            names = page.locator(".side h3 span:first-child").all_inner_texts()
            assert sorted(names) == ["alpha", "beta"]
            row = site.database.judgements("ann")[-1]
            prompt = site.database.prompt(row.prompt_id)
            assert prompt
            assert prompt.messages[0]["content"] == f"Question {number}"
            models = {completion.id: completion.model for completion in prompt.completions}
            assert [models[key] for key in row.presented] == names
            given = [row.ranks.get(str(key)) for key in row.presented]
            assert given == {"left": [1, 2], "right": [2, 1], "tie": [1, 1], "bad": [None, None]}[outcome]
            page.keyboard.press("n")
        # Three at once, the best first: a pick is taken back, and the last place needs none.
        page.get_by_label("How many models").select_option("3")
        page.get_by_label("Your prompt to the models").focus()
        ask(page, "Question 5")
        for key in ("1", "u", "3", "1"):
            page.keyboard.press(key)
        page.get_by_text("5 votes").wait_for()
        row = site.database.judgements("ann")[-1]
        assert [row.ranks[str(key)] for key in row.presented] == [2, 3, 1]
        page.goto(f"{site.url}/compare/ratings")
        page.get_by_text("4 votes; besides, all answers were bad 1 time.").wait_for()
        api.expect(page.get_by_role("row")).to_have_count(4)


def test_on_a_phone_by_touch_with_answers_in_which_nothing_runs(browser: "api.Browser", site: Site) -> None:
    with person(browser, site, "ben", width=360) as page:
        ask(page, "Is it?")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("window.hacked") is None
        assert page.locator("main").locator("script, img, a").count() == 0
        api.expect(page.locator("strong")).to_have_text("so")
        assert page.locator(".side").filter(has_text="<script>window.hacked=1</script>").count() == 1
        page.get_by_role("button", name="Both bad").click()
        page.locator("#outcome").filter(has_text="Both are bad. Left was").wait_for()
        page.get_by_role("button", name="Same prompt").click()
        page.get_by_role("status").filter(has_text="Which is better?").wait_for()
        api.expect(page.locator("#name-0")).to_have_text("Left")
        (row,) = site.database.judgements("ben")
        assert row.all_bad
