"""The first screen of the run page and its lists in a real browser."""

from pathlib import Path

import pytest

from cluster.run.rounds import keep_round
from serve.gateway import GatewaySettings
from tests.serve.pages.test_run_list import report
from tests.serve.support.browsing import IN_A_BROWSER, served
from tests.serve.support.local import Parrot, gateway_app
from tests.serve.support.run_folder import HOSTILE, write_run

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = IN_A_BROWSER


@pytest.mark.parametrize("width", [1280, 360])
def test_the_first_screen_says_how_the_policy_stands_and_lists_lead_to_every_report(
    browser: "api.Browser", tmp_path: Path, width: int
) -> None:
    run, other = write_run(tmp_path / "mine", finished=7), write_run(tmp_path / "other", finished=7)
    report(run, "<h1>The first report</h1>", "Better.")
    keep_round(run.root, "report")
    report(run, "<h1>The second report</h1>", f"Worse {HOSTILE}.\nLonger.")
    report(other, "<h1>The other report</h1>", "The same.")
    with (
        served(gateway_app({"parrot": Parrot()}, GatewaySettings(run.root))) as url,
        browser.new_context(viewport={"width": width, "height": 800}) as context,
    ):
        page = context.new_page()
        page.goto(f"{url}/runs")
        answers = {
            "Is the policy better?": f"Worse {HOSTILE}.",
            "What happens now?": "No stage is at work.",
            "What changed?": "From round 1 of",
        }
        for title, text in answers.items():
            part = page.get_by_role("region", name=title)
            api.expect(part).to_contain_text(text)
            api.expect(part.get_by_text(text)).to_be_in_viewport()
        rounds = page.get_by_role("region", name="Table of the rounds").locator("tbody tr")
        api.expect(rounds).to_have_count(2)
        api.expect(rounds.nth(1)).to_contain_text("Better.")
        runs = page.get_by_role("region", name="Table of the runs").locator("tbody tr")
        api.expect(runs).to_have_count(2)
        api.expect(runs.filter(has_text="served here")).to_contain_text("mine")
        for name, title in (
            ("round 1", "The first report"),
            ("round 2", "The second report"),
            ("other", "The other report"),
        ):
            with context.expect_page() as opened:
                page.get_by_role("link", name=f"Report of {name}", exact=True).click()
            api.expect(opened.value.get_by_role("heading", name=title)).to_be_visible()
        assert page.evaluate("[window.hacked ?? null, document.documentElement.scrollWidth <= innerWidth]") == [
            None,
            True,
        ]
