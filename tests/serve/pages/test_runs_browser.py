"""The run page and the chat page in a real browser, on a server that asks for keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cluster.keys import KeyRing
from cluster.run.folder import RunFolder
from cluster.run.trail import Decision, add_decision, read_answer
from serve.gateway import GatewaySettings
from tests.helpers import wait_until
from tests.serve.support.browsing import IN_A_BROWSER, PATIENCE_MS, await_models, served
from tests.serve.support.local import Parrot, gateway_app
from tests.serve.support.run_folder import HOSTILE, at_work, write_run

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = IN_A_BROWSER


@dataclass(frozen=True)
class Site:
    url: str
    run: RunFolder
    admin: str
    chat: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    run = write_run(tmp_path_factory.mktemp("run"), finished=7)
    keys = [KeyRing(run.root).add(name, [name], None, None, by="test") for name in ("admin", "chat")]
    app = gateway_app({"parrot": Parrot()}, GatewaySettings(run.root))
    with served(app) as url:
        yield Site(url, run, *keys)


@contextmanager
def opened(browser: "api.Browser", url: str, width: int) -> Iterator["api.Page"]:
    """Yields a page that fails the test on any error in it and on any request to another origin."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((url, "data:")) or errors.append(asked.url))
    yield page
    context.close()
    assert errors == []


@pytest.mark.parametrize("width", [1280, 360])
def test_the_run_page_asks_for_a_key_and_shows_the_run(browser: "api.Browser", site: Site, width: int) -> None:
    with opened(browser, site.url, width) as page:
        page.goto(f"{site.url}/runs")
        page.get_by_role("dialog").get_by_text("This server asks for a key.").wait_for()
        assert page.locator("#state").inner_text() == "reading the run …"
        page.keyboard.type(site.chat)
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_text("this needs a key with the scope admin; yours has chat").wait_for()
        page.keyboard.type(site.admin)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="rlhf").wait_for()
        api.expect(page.get_by_role("status")).to_have_text("7 of 7 stages done")
        sft = page.get_by_role("region", name="sft")
        api.expect(sft.get_by_text("base mark of base")).to_be_visible()
        curves = page.get_by_role("img", name="held out loss over steps 0 to 199: from 4 to 0.07")
        api.expect(curves).to_have_count(7)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        api.expect(page.locator("#samples .sample")).to_have_count(24)
        contents = page.get_by_role("navigation", name="Stages and samples")
        contents.get_by_role("link", name="samples").click()
        # The contents stay in sight.
        assert page.evaluate("scrollY") > contents.bounding_box()["y"] == 0
        sft.get_by_text("What it wrote at step 200").click()
        api.expect(sft.locator(".sample")).to_have_count(2)
        api.expect(sft.get_by_text("Lima.").first).to_be_visible()
        rlhf = page.get_by_role("region", name="rlhf")
        rlhf.get_by_text("Answers sampled at step 200, token by token").click()
        api.expect(rlhf.get_by_text("reward 1.50")).to_be_visible()
        said = rlhf.locator(".said").first.locator("b")
        assert said.evaluate_all("tokens => tokens.slice(0, 4).map(token => [token.className, token.title])") == [
            ["lean3", "log ratio 1.70"],
            ["lean-1", "log ratio -0.60"],
            ["lean0", "log ratio 0.00"],
            ["other", ""],
        ]
        rlhf.get_by_text("Who did what in steps 8 to 9").click()
        lanes = rlhf.locator(".trace").first.locator(".lane:not(.head)")
        names = ["rollout 0", "rollout 1", "rollout 2", "rollout 10", "learner", "rewards"]
        assert sorted(lanes.locator(".who").all_inner_texts()) == sorted(names)
        assert lanes.locator(".who").all_inner_texts()[:4] == names[:4]
        api.expect(lanes.first.get_by_text("weights 10, ready, 2,000 tokens/s")).to_be_visible()
        api.expect(lanes.nth(1).get_by_text("gone")).to_be_visible()
        assert lanes.nth(1).locator("i.lost").get_attribute("title") == "rollout 1 was lost, 0.50 s, 2 prompts"
        staleness = rlhf.get_by_text("25 % by weights 1 version behind; 4 are with the rollout actors still")
        api.expect(staleness).to_be_visible()
        rlhf.get_by_text("Where each prompt of step 9 was").click()
        prompts = rlhf.locator(".trace").last.locator(".lane:not(.head)")
        assert prompts.locator(".who").all_inner_texts() == [HOSTILE, "b", "c", "d"]
        api.expect(prompts.last.get_by_text("750 tokens, 1 version behind")).to_be_visible()
        kinds = prompts.last.locator("i:not(.edge)").evaluate_all("bars => bars.map(bar => [bar.className, bar.title])")
        assert kinds[0] == ["waits", "with the rollout actors for 2.00 s"]
        assert [kind for kind, _ in kinds] == ["waits", "draw", "reward", "learn"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        grounds = said.evaluate_all("tokens => tokens.map(token => getComputedStyle(token).backgroundColor)")
        assert len(set(grounds[:3])) == 3
        assert page.evaluate("window.hacked") is None
        # The key is stored in this tab only.
        assert page.evaluate("Object.values(localStorage).length") == 0
        page.reload()
        page.get_by_role("heading", name="rlhf").wait_for()


def test_the_run_page_follows_a_run(browser: "api.Browser", site: Site) -> None:
    with opened(browser, site.url, 1280) as page:
        page.goto(site.url)
        page.evaluate("key => sessionStorage.setItem('triptych key', key)", site.admin)
        page.goto(f"{site.url}/runs")
        page.get_by_text("7 of 7 stages done").wait_for()
        site.run.begin("report", "another recipe")
        page.get_by_text("interrupted; the same command resumes it").wait_for()
        with at_work(site.run):
            page.get_by_text("6 of 7 stages done; evaluate is at work").wait_for()
        for step, decision in (("begin", "begun"), ("gates", "passed"), ("compare", "passed")):
            add_decision(site.run.root, Decision(2, step, decision, f"the {step} of round 2"))
        page.get_by_role("heading", name="A new policy waits").wait_for()
        # The page says so until it looks at the run again, which waits meanwhile.
        held: list[api.Route] = []
        page.route("**/runs/data", lambda route: held.append(route))
        page.get_by_role("button", name="Let it take over").click()
        page.get_by_text("Approved: the loop goes on.").wait_for()
        page.unroute("**/runs/data")
        for route in held:
            route.continue_()
        answer = read_answer(site.run.root, 2)
        assert answer
        assert (answer.approved, answer.by) == (True, "admin")
        page.get_by_text("Judgements that the policies learned from").click()
        page.get_by_text("0 judgements. All are still there.").wait_for()


def test_the_run_page_asks_for_a_key_once(browser: "api.Browser", site: Site) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.clock.install()
        refused: list[int] = []
        page.on("response", lambda reply: reply.url == f"{site.url}/runs/data" and refused.append(reply.status))
        page.goto(f"{site.url}/runs")
        page.get_by_role("dialog").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("The run could not be read").wait_for()

        def looked_again() -> bool:
            # The page sets its timer only when it has read the answer before.
            page.clock.run_for(6_000)
            return len(refused) > 4

        # The answer before the last has certainly been read.
        wait_until(looked_again, 60, "the page to look again")
        assert set(refused) == {401}
        api.expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_chat_page_asks_for_a_key_once(browser: "api.Browser", site: Site) -> None:
    with opened(browser, site.url, 1280) as page:
        page.goto(site.url)
        page.get_by_role("dialog").wait_for()
        page.keyboard.type(site.chat)
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for(state="detached")
        await_models(page)
        page.locator("#prompt").fill("hello")
        with page.expect_response("**/v1/chat/completions") as answered:
            page.keyboard.press("Enter")
        assert answered.value.status == 200
        assert answered.value.request.headers["authorization"] == f"Bearer {site.chat}"
        page.get_by_role("log").get_by_text("hello").nth(1).wait_for()
        api.expect(page.get_by_role("dialog")).to_have_count(0)
