"""The whole loop on real engines, small enough for a test, and killed on its way."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, get_args

import psutil
import pyarrow.parquet as parquet
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cluster.recipe.base import Probe
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder, file_fingerprint
from cluster.run.layout import STAGES, Stage, stage_named
from cluster.run.metrics import read_metrics
from cluster.run.versions import Versions
from cluster.trace import read_trace
from pipelines.cli.main import main
from pipelines.stage_table import run_named_stage
from tests.helpers import ROOT, answers, free_port, wait_until
from tests.serve.support.browsing import CHROMIUM

RECIPE = ROOT / "infra" / "recipes" / "demo.yaml"
# Actors import this module, and nothing that it does not need.
OWN = "tests.functions"
SMALL = [
    "model.hidden=64",
    "model.layers=2",
    "model.vocabulary=1024",
    "corpus.sources.0.limit=1500",
    "corpus.sources.1.limit=100",
    "pretrain.epochs=1",
    "pretrain.checkpoint_every=5",
    f"sft.sources=[{{kind: function, function: '{OWN}:few_conversations'}}]",
    "collect.prompts=80",
    "collect.held_out_share=0.3",
    "reward.epochs=1",
    # A reward model so small may fail any probe.
    f"rlhf.accept_probes=[{', '.join(get_args(Probe))}]",
    # An engine takes longer to start than to answer all that is asked here.
    "rlhf.fleet.rollout_actors=1",
    "rlhf.steps=4",
    "rlhf.prompts_per_step=4",
    "rlhf.sampling.samples_per_prompt=4",
    "rlhf.checkpoint_every=1",
    "rlhf.stop.probe_every=2",
    "evaluate.tasks=[cloze, refusal, instructions]",
    # There are 1,107 questions, and models trained so little write as much as they may.
    "evaluate.max_tokens=8",
]
STORY = ["serve.story.rankings=8", "serve.story.steps=3", "serve.story.epochs=2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# Rows of metrics that a stage has written when everything is killed: after its first checkpoint, two steps and more
# before its end. The trainer of pre-training is that of fine-tuning and the reward model too; the corpus has tests of
# its own for kills.
KILLED_AFTER = {"pretrain": 12, "rlhf": 2}
# Five times the longest time between two kills on an idle machine of two cores; other tests run beside it.
SECONDS = 1000


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[RunFolder, str]:
    """Runs one command, and kills everything in the middle of two stages; returns the run and the last output."""
    folder = tmp_path_factory.mktemp("runs")
    run = RunFolder(folder / "small")
    words = ["run", str(RECIPE), *SMALL, f"run={run.root}"]
    with (folder / "log").open("w") as log:
        for name in KILLED_AFTER:
            kill_in_the_middle([sys.executable, "-m", "pipelines", *words], stage_named(name), run, log)
        # The last time in this process, whose Ray cluster the tests below need anyway.
        with contextlib.redirect_stdout(log), pytest.raises(SystemExit) as ended:
            main(words)
    assert not ended.value.code, f"the run failed; see {log.name}"
    return run, (folder / "log").read_text()


@pytest.fixture(scope="module")
def finished(killed: tuple[RunFolder, str]) -> RunFolder:
    return killed[0]


def kill_in_the_middle(command: list[str], stage: Stage, run: RunFolder, log: IO[str]) -> None:
    """Starts the command and kills the tree of its processes once the stage has something to lose."""
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True) as first:
        wait_until(lambda: first.poll() is not None or has_begun(stage, run), SECONDS, f"the middle of {stage.name}")
        assert first.poll() is None, f"the run ended with {first.returncode} before {stage.name}; see {log.name}"
        family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert run.manifest(stage.folder) is None, f"{stage.name} was over before it was killed"


def has_begun(stage: Stage, run: RunFolder) -> bool:
    """Tells whether a stage has made anything that a kill could lose."""
    return len(read_metrics(run.partial(stage.folder))) >= KILLED_AFTER[stage.name]


def visit_story(url: str) -> None:
    """Goes through the story page in a browser, from the first click to the last, once its server answers."""
    wait_until(lambda: answers(url), SECONDS, "the server")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        page = browser.new_page()
        page.set_default_timeout(1000 * SECONDS / 2)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/story")
        # Three models, each with the chances of five tokens, of which the first is the most probable.
        page.locator("#models article").nth(2).wait_for()
        page.locator("#sentences button").nth(1).click()
        page.locator("#models:not([aria-busy]) article").nth(2).wait_for()
        chances = [float(bar.get_attribute("value") or 0) for bar in page.locator("#models meter").all()]
        assert len(chances) == 15
        assert all(chances[at] >= chances[at + 1] > 0 for at in range(14) if at % 5 < 4)
        # Trained tokens are those of the answer.
        trained = page.locator("#conversation b.trained").all_inner_texts()
        assert trained[-1] == "<|end|>"
        assert "<|user|>" not in trained
        page.locator("#held-out button").first.click()
        page.locator("#held-out-answers article").nth(1).wait_for()
        # Every prompt is ranked with the keys; a reload in the middle loses none.
        page.locator("#prompt-title").focus()
        tasks = 0
        while page.locator("#task").is_visible():
            for rank in range(1, page.locator("#answers article").count() + 1):
                page.keyboard.press(str(rank))
            page.keyboard.press("Enter")
            tasks += 1
            if tasks == 3:
                page.reload()
                page.locator("#models article").nth(2).wait_for()
                page.locator("#prompt-title").focus()
        assert page.locator("#ranked").inner_text().startswith(f"{tasks} of {tasks} ranked")
        page.locator("#train").click()
        page.locator("#answers-now tr").first.wait_for()
        page.locator("#chat-link").wait_for()
        assert page.locator("#training-state").inner_text() == "Done: 3 steps of reinforcement learning."
        assert page.locator("#curves figure").count() == 4
        assert page.locator("#answers-now tr").count() == 5
        page.locator("#chat-link a").click()
        wait_until(lambda: page.locator("#model").input_value() == "visitor", 60, "the chat with the visitor's policy")
        assert errors == []


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_after_a_kill_the_same_command_goes_on(killed: tuple[RunFolder, str]):
    run, printed = killed
    for name in KILLED_AFTER:
        assert f"{name:<9} resumed" in printed
    steps = [row["step"] for row in read_metrics(run.path("base"))]
    assert steps == list(range(len(steps)))
    assert not list(run.partial("base").parent.iterdir())


@pytest.mark.slow
def test_every_stage_leaves_a_whole_artifact(finished: RunFolder):
    for stage in STAGES:
        manifest = finished.require(stage.folder)
        # The inputs of the stage that ranks include people's judgements.
        judged = {"judgements"} if stage.folder == "preferences" else set()
        assert set(manifest.inputs) == set(stage.after) | judged
    for name in ("base", "sft", "policy"):
        model = AutoModelForCausalLM.from_pretrained(finished.path(name))
        assert model.config.hidden_size == 64
        assert finished.require(name).weights == file_fingerprint(finished.path(name) / "model.safetensors")
    reward = AutoModelForSequenceClassification.from_pretrained(finished.path("reward"))
    assert reward.config.num_labels == 1
    assert not list((finished.root / ".partial").iterdir())


@pytest.mark.slow
def test_the_report_has_every_figure_with_its_interval(finished: RunFolder):
    report = json.loads((finished.path("report") / "report.json").read_text())
    sizes = {"capital_accuracy": 40, "harmful_compliance": 50, "over_refusal": 50, "misconception_rate": 30}
    for model in ("base", "sft", "policy"):
        for name, least in {**sizes, "stop_rate": 200}.items():
            figure = report[model][name]
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
            assert figure["n"] >= least
    assert report["reward_model"]["pair_accuracy"]["n"] > 0
    rewards = report["rewards"]
    assert rewards["held_out"]
    assert report["kl_from_sft"]["n"] == rewards["reward"]["n"] == 200
    assert rewards["reward"]["low"] <= rewards["reward"]["change"] <= rewards["reward"]["high"]
    # Better than a uniform guess among the 1,024 tokens: fine-tuning goes on with text of the corpus.
    assert all(1 < report["perplexity"][model] < 1024 for model in ("base", "sft", "policy"))
    assert set(report["timings"]) == {stage.name for stage in STAGES}
    assert report["seed"] == 1


@pytest.mark.slow
def test_reinforcement_is_on_policy_and_the_end_of_every_prompt_is_recorded(finished: RunFolder):
    rows = read_metrics(finished.path("policy"))
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["version"] for row in rows] == [1, 2, 3, 4]
    # The engines' log-probabilities are those of the learner's weights, and of the newest version.
    assert max(row["behavior_gap"] for row in rows) < 1e-3
    assert {row["staleness"] for row in rows} == {0.0}
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    # Before the first step the policy is the fine-tuned model; after two it leans to other tokens.
    leans = [
        [ratio for shown in row["rollouts"] for answer in shown["answers"] for _, ratio in answer["tokens"]]
        for row in rows
    ]
    assert leans[0] == pytest.approx([0] * len(leans[0]), abs=1e-3)
    assert max(map(abs, leans[2])) > 0.01
    metrics = finished.require("policy").metrics
    assert metrics["prompts"] == {"trained": 16, "filtered": 0, "failed": 0}
    # Held-out judgements are looked at before the third step and after the last.
    assert ["preference_accuracy" in row for row in rows] == [False, False, True, False]
    assert metrics["preference_accuracy"]["low"] < metrics["preference_accuracy"]["value"]


@pytest.mark.slow
def test_the_trace_holds_every_answer_of_the_newest_steps(finished: RunFolder):
    rows, traces = read_metrics(finished.path("policy")), read_trace(finished.path("policy"))
    assert traces is not None
    assert [trace["step"] for trace in traces] == [row["step"] for row in rows[-len(traces) :]]
    for trace, row in zip(traces, rows[-len(traces) :], strict=True):
        draws = [span for span in trace["spans"] if span["what"] == "draw" and span["tokens"]]
        handed = {prompt["id"] for prompt in trace["prompts"]}
        assert sum(prompt["tokens"] for prompt in trace["prompts"]) == row["tokens"]
        assert handed == {name for span in draws for name in span["prompts"] if name in handed}
        assert trace["end"] - trace["begin"] > row["rollout_seconds"]
        assert {actor["version"] for actor in trace["actors"]} == {row["version"]}


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_one_rollout_actor_gives_the_same_policy_bit_by_bit_also_after_a_kill(
    finished: RunFolder, tmp_path: Path, ray_session: None
):
    again = RunFolder(tmp_path / "again")
    shutil.copytree(finished.root, again.root, ignore=shutil.ignore_patterns("policy", "report", ".partial", "lock"))
    recipe = load_recipe(RECIPE, [*SMALL, f"run={again.root}"])
    assert run_named_stage(stage_named("rlhf"), recipe, again) == "done"
    learned = ("reward", "loss", "gradient_norm", "kl", "behavior_gap", "tokens")
    rows, expected = (
        [[row[name] for name in learned] for row in read_metrics(r.path("policy"))] for r in (again, finished)
    )
    assert rows == expected
    assert file_fingerprint(again.path("policy") / "model.safetensors") == finished.require("policy").weights


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.timeout(SECONDS)
def test_a_visitor_of_the_story_page_trains_a_policy_on_their_own_rankings(finished: RunFolder, ray_session: None):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    own = finished.require("policy").weights
    port = free_port()
    with ThreadPoolExecutor(max_workers=1) as thread:
        visit = thread.submit(visit_story, f"http://127.0.0.1:{port}")
        visit.add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as ended:
            main(["serve", str(finished.root), "--port", str(port), *STORY])
    assert not ended.value.code
    visit.result()
    branch = RunFolder(finished.root / "story")
    rankings = parquet.read_table(branch.path("preferences") / "rankings.parquet").to_pylist()
    assert {row["annotator"] for row in rankings} == {"visitor"}
    assert branch.require("reward").metrics["rankings"] == sum(row["split"] == "train" for row in rankings)
    assert branch.require("policy").metrics["steps"] == 3
    # The visitor's policy does not touch the run's own.
    assert Versions(branch, "policy").live().weights == branch.require("policy").weights
    assert finished.require("policy").weights == own == file_fingerprint(finished.path("policy") / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_ppo_of_adapters_with_stale_samples_runs_too(finished: RunFolder, ray_session: None):
    settings = [
        "rlhf.algorithm=ppo",
        "rlhf.fleet.max_staleness=1",
        "rlhf.minibatches=2",
        "rlhf.lora={rank: 4, alpha: 8}",
    ]
    recipe = load_recipe(RECIPE, [*SMALL, *settings, f"run={finished.root}"])
    assert run_named_stage(stage_named("rlhf"), recipe, finished) == "done"
    rows = read_metrics(finished.path("policy"))
    assert rows[0]["value_loss"] > 0
    assert max(row["staleness"] for row in rows) > 0


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_a_run_on_ones_own_prompts_is_judged_by_its_own_rewards(finished: RunFolder, tmp_path: Path, ray_session: None):
    (tmp_path / "own.jsonl").write_text("".join(f'{{"prompt": "Say {word}", "response": "A"}}\n' for word in "abcdef"))
    (tmp_path / "text.txt").write_text("The capital of France is Paris. " * 400)
    source = f"{{kind: files, path: {tmp_path / 'own.jsonl'}}}"
    settings = [
        f"sft.sources=[{source}]",
        f"collect.sources=[{source}]",
        "collect.prompts=2",
        f"rlhf.rewards=[{{kind: function, function: '{OWN}:length', weight: 2}}]",
        f"rlhf.environment={{function: '{OWN}:hush', turns: 2}}",
        f"evaluate.text=[{{kind: files, path: {tmp_path / 'text.txt'}}}]",
        "evaluate.text_tokens=1000",
    ]
    recipe = load_recipe(RECIPE, [*SMALL, *settings, f"run={finished.root}"])
    assert run_named_stage(stage_named("evaluate"), recipe, finished) == "done"
    report = json.loads((finished.path("report") / "report.json").read_text())
    rows = json.loads((finished.path("report") / "answers.json").read_text())
    assert [row["question"] for row in rows if row["kind"] != "held out"] == []
    assert len(rows) == report["rewards"]["reward"]["n"] == 4
    # The function gets the last answer, which is also the one that is shown.
    said = [row["answers"][name] for row in rows for name in ("sft", "policy")]
    assert all(answer["reward"] == pytest.approx(2 * len(answer["text"]), abs=4) for answer in said)
    assert report["reward_model"] is None
    # The first token of each of the four rows of 256 tokens has nothing before it.
    assert report["perplexity"]["tokens"] == 996
    assert "By its rewards" in report["verdict"]
