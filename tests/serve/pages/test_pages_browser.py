"""Every page in a real browser, wide and narrow, light and dark: nothing fails in it, nothing comes from elsewhere, axe
finds no serious fault, and it fits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cluster.feedback import open_feedback
from serve.gateway import GatewaySettings
from tests.serve.support.browsing import IN_A_BROWSER, PATIENCE_MS, Site, await_models, served
from tests.serve.support.labeling import fill
from tests.serve.support.local import gateway_app
from tests.serve.support.run_folder import write_run
from tests.serve.support.scripted import Scripted

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = IN_A_BROWSER

ANSWER = "Lima is the capital of Peru, and its largest city. Nobody has asked me yet why that is so."


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pages")
    run, url = write_run(folder / "run", finished=7), f"sqlite:///{folder / 'feedback.db'}"
    models = {name: Scripted(name, ANSWER) for name in ("sft", "policy")}
    with open_feedback(url) as database:
        fill(database, 4, [ANSWER, "Second\n\n1. one\n2. two", "Third `code`"])
        app = gateway_app(models, GatewaySettings(run.root, url, "always", weights=dict.fromkeys(models, "0123abcd")))
        with served(app) as address:
            yield Site(address, database)


def chat(page: "api.Page", site: Site) -> None:
    page.goto(site.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("128")
    await_models(page)
    page.get_by_label("Message").fill("What is the capital of Peru?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copy this answer").wait_for()
    api.expect(page.get_by_role("log").get_by_text(ANSWER)).to_be_visible()


ARABIC = "ما هي عاصمة بيرو؟"


def test_a_question_from_right_to_left_is_shown_so(browser: "api.Browser", site: Site) -> None:
    page = browser.new_page()
    page.goto(site.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("128")
    await_models(page)
    page.get_by_label("Message").fill(ARABIC)
    directions = [page.get_by_label("Message").evaluate("node => getComputedStyle(node).direction")]
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copy this answer").wait_for()
    said = page.locator(".turn .text").all()
    directions += [one.evaluate("node => getComputedStyle(node).direction") for one in said]
    assert directions == ["rtl", "rtl", "ltr"]
    page.close()


def test_the_heading_of_the_sign_in_is_no_bubble(browser: "api.Browser", site: Site) -> None:
    page, grounds = browser.new_page(), []
    for path in ("/label", "/compare"):
        page.goto(f"{site.url}{path}")
        heading = page.get_by_role("heading", name="Sign in")
        grounds.append(heading.evaluate("node => getComputedStyle(node).backgroundColor"))
    assert grounds == ["rgba(0, 0, 0, 0)"] * 2
    page.close()


def history(page: "api.Page", site: Site) -> None:
    chat(page, site)
    page.get_by_role("button", name="Good answer").click()
    page.get_by_text("Stored as a good answer").wait_for()
    page.get_by_role("button", name="History").click()
    page.get_by_role("dialog").get_by_text("What is the capital of Peru?").wait_for()


def signed_in(page: "api.Page", site: Site, path: str) -> None:
    page.goto(f"{site.url}{path}")
    page.keyboard.type(site.database.add_annotator(f"ann {uuid4().hex[:8]}"))
    page.keyboard.press("Enter")


def compare(page: "api.Page", site: Site) -> None:
    signed_in(page, site, "/compare")
    page.get_by_label("Your prompt to the models").fill("What is the capital of Peru?")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Which is better?").wait_for()


def ratings(page: "api.Page", site: Site) -> None:
    signed_in(page, site, "/compare/ratings")
    page.get_by_text("There is nothing to rate yet.").wait_for()


def label(page: "api.Page", site: Site) -> None:
    signed_in(page, site, "/label")
    page.get_by_role("article").first.wait_for()
    page.keyboard.press("1")


def quality(page: "api.Page", site: Site) -> None:
    signed_in(page, site, "/label/quality")
    page.get_by_role("row").nth(1).wait_for()


def runs(page: "api.Page", site: Site) -> None:
    page.goto(f"{site.url}/runs")
    page.get_by_role("heading", name="rlhf").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("show", [chat, history, compare, ratings, label, quality, runs])
def test_a_page_is_sound(
    browser: "api.Browser",
    site: Site,
    show: Callable[["api.Page", Site], None],
    width: int,
    scheme: str,
    tmp_path: Path,
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: line.type in ("error", "warning") and wrong.append(line.text))
    page.on("request", lambda asked: asked.url.startswith((site.url, "data:")) or wrong.append(asked.url))
    show(page, site)
    page.screenshot(path=tmp_path / f"{show.__name__}-{width}-{scheme}.png")
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    faults = axe.Axe().run(page).response["violations"]
    serious = {
        fault["id"]: [node["target"] for node in fault["nodes"]]
        for fault in faults
        if fault["impact"] in ("serious", "critical")
    }
    assert serious == {}
    context.close()
