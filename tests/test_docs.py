"""The documents are right: the examples in them are read, called and run as they stand there."""

import asyncio
import gzip
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from actors.functions.caller import CallLimits
from actors.rewards.function import FunctionReward
from actors.types import NO_EPOCH, Answer, Prompt, Reply, RewardInput, RolloutId, Sample, Trajectory
from cluster import feedback
from cluster.errors import UserError
from cluster.feedback import open_feedback
from cluster.recipe.base import Call
from cluster.recipe.collect import ChatSource
from cluster.recipe.corpus import Source
from cluster.recipe.functions import load_function
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.recipe.reference import reference
from cluster.recipe.renamed import RENAMED
from cluster.run.folder import RunFolder
from pipelines.cli.main import app, main
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.data.chat_formats import read_conversations
from pipelines.data.preferences.annotators import JudgedAnswer, SyntheticAnnotator
from pipelines.data.prompts import read_prompts
from pipelines.evaluate.exam import load_exam
from tests.helpers import ROOT
from tests.markdown import EXAMPLE, PAGES, README, Block, Page, python_modules

LAYERS = ("actors", "cluster", "infra", "pipelines", "serve", "tests")
MINIMAL: dict[str, Any] = {
    "name": "my",
    "corpus": {"sources": [{"path": "text.txt"}]},
    "sft": {"sources": [{"path": "chats.jsonl"}]},
    "collect": {"sources": [{"path": "chats.jsonl"}]},
}
YAML_BLOCKS = [block for page in PAGES for block in page.blocks("yaml")]
# Commands that need no model: these are run, in the order of their page.
CHEAP = ("recipe", "doctor", "annotator", "feedback", "key", "version")
RANKED = next(block.text for page in PAGES for block in page.blocks("json"))
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Writes the modules that the pages show and their recipes' files into a folder on Python's path."""
    modules = python_modules()
    for name, (_, text) in modules.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    for name in ("text.txt", "chats.jsonl"):
        (tmp_path / name).write_text((EXAMPLE / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Merges `more` into `base`, section by section."""
    both = {key: merged(base[key], more[key]) for key in base.keys() & more.keys() if isinstance(base[key], dict)}
    return base | more | both


def write_judgements(run: RunFolder) -> None:
    """Stores people's judgements: a ranking with a better answer of their own, and a thumb."""
    asked = [{"role": "user", "content": "What is spelt?"}]
    with open_feedback(run.feedback_url) as database:
        database.add_prompts([feedback.FeedbackPrompt(id="p", messages=asked, split="train")])
        drawn = {"prompt_id": "p", "model": "sft", "weights": "0", "token_ids": [1]}
        rows = [feedback.Completion(index=index, text=f"Answer {index}.", **drawn) for index in (0, 1)]
        first, second = database.add_completions(rows)
        ranks = {str(first): 1, str(second): 2}
        database.add_ranking(feedback.Ranking(prompt_id="p", annotator="bo", ranks=ranks, better="An old wheat."))
        said = {"messages": asked, "answer": "A wheat.", "good": True}
        database.save_thumb(feedback.Thumb(request="1", caller="", model="policy", weights="0", **said))
        name = f"{feedback.COMPARED}1"
        database.add_prompts([feedback.FeedbackPrompt(id=name, messages=said["messages"], details={"compare": "ann"})])
        sides = [
            feedback.Completion(prompt_id=name, index=side, text=model, token_ids=[], model=model, weights="0")
            for side, model in enumerate(("sft", "policy"))
        ]
        ranks = {str(key): rank for rank, key in enumerate(database.add_completions(sides), start=1)}
        database.add_ranking(feedback.Ranking(prompt_id=name, annotator="ann", ranks=ranks))


def functions_of(value: Any) -> Iterator[str]:
    """Yields every function that a recipe's data names."""
    if isinstance(value, dict):
        yield from (found for key, one in value.items() if key == "function" and isinstance(found := one, str))
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from functions_of(one)


def parsed(words: list[str]) -> dict[str, Any]:
    """Parses words of the command line; raises typer's errors as the console script would see them."""
    command: Any = typer.main.get_command(app)
    name, context = "triptych", None
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "commands"):
            return dict(context.params)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


@cache
def names_of_the_code() -> set[str]:
    """Returns the words of the program, the tests and the benches that are written as class names are."""
    files = (path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
    return {name for path in files for name in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", path.read_text())}


@cache
def is_key(place: str) -> bool:
    """Tells whether the recipe has a key, or a section, of that dotted name."""
    try:
        reference(place)
    except UserError:
        return False
    return True


def test_the_readme_is_short() -> None:
    assert len(README.text.split()) <= 900


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_a_page_is_read_in_minutes_and_has_an_example(page: Page) -> None:
    if page.path.name == "recipe.md":
        return
    assert 40 <= len(page.text.splitlines()) <= 150
    examples = page.blocks("yaml", "python", "sh", "console")
    assert examples or page.path.name == "glossary.md"


@pytest.mark.parametrize("page", [*PAGES, Page("infra/bench/README.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links():
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in Page(str(target.relative_to(ROOT))).anchors(), f"{page.name}: {link}"


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: f"{block.page}:{block.text[:20]!r}")
def test_recipes_are_valid_and_their_functions_are_there(block: Block, written: Path) -> None:
    data = yaml.safe_load(block.text)
    recipe = written / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(data if "name" in data else merged(MINIMAL, data)), encoding="utf-8")
    load_recipe(recipe)
    for name in functions_of(data):
        load_function(name)


def test_the_readmes_recipe_and_reward_are_those_of_the_example() -> None:
    data, reward = (block.text for block in README.blocks("yaml"))
    assert data + reward == (EXAMPLE / "own.yaml").read_text(encoding="utf-8")
    assert README.blocks("python")[0].text == (EXAMPLE / "rewards.py").read_text(encoding="utf-8")


def test_python_functions_do_what_their_pages_say(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = python_modules()
    kinds = {kind for kind, _ in found.values()}
    assert kinds == {"source", "chats", "reward", "annotator", "environment", "exam"}
    for name, (kind, _) in found.items():
        module = importlib.import_module(name)
        functions = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name]
        CHECKS[kind](f"{name}:{functions[-1]}")


def _source(function: str) -> None:
    source = Source(kind="function", function=function)
    texts = [document for split in plan_splits([source], 1) for document in read_split(split)]
    assert len({document.text for document in texts}) == len(texts) > 1


def _chats(function: str) -> None:
    source = ChatSource(kind="function", function=function, arguments={"names": ["Ann", "Bo"]})
    assert len(read_conversations([source], 1).messages) == len(read_prompts([source], 1)) == 2


def _reward(function: str) -> None:
    asked = RewardInput([{"role": "user", "content": "What is spelt?"}], {"answer": "wheat"})
    prompt = Prompt("p", [])
    samples = [
        Sample(
            RolloutId(NO_EPOCH, "p", index),
            token_ids=[],
            logprobs=[],
            weight_versions=[],
            finish_reason="stop",
            text=text,
        )
        for index, text in enumerate(("Wheat.", " a" * 20))
    ]
    reward = FunctionReward(function, CallLimits(seconds=30, attempts=1, at_once=1))
    assert reward.score([prompt], [samples], [asked]) == [[1.0, 0.0]]
    reward.close()


def _annotator(function: str) -> None:
    annotator = SyntheticAnnotator.of(Call(function=function, arguments={"noise": 0.0}))
    annotator.check({"p": {}})
    answers = [JudgedAnswer("long answer", True), JudgedAnswer("short", True), JudgedAnswer("short", True)]
    assert list(annotator.judge("p", {}, answers, "1").ranks) == [3, 1, 1]


def _environment(function: str) -> None:
    asked = RewardInput([{"role": "user", "content": "Hi"}], {"answer": "5"})

    async def converse() -> list[Reply]:
        environment = load_function(function, "environment")()
        await environment.reset(asked)
        answers = [Answer(text, text, finished=True) for text in ("3", "9", "5")]
        return [await environment.step(Trajectory(asked, [], [answer], [], [])) for answer in answers]

    low, high, right = asyncio.run(converse())
    assert (low.messages[0]["content"], high.messages[0]["content"]) == ("higher", "lower")
    assert (low.reward, right.reward, right.messages) == (0.0, 1.0, [])


def _exam(function: str) -> None:
    exam = load_exam(Recipe.model_validate({**MINIMAL, "evaluate": {"exam": {"function": function}}}))
    assert exam is not None
    question = exam.questions[0]
    assert [exam.right(question, text) for text in (f"It is {question.key}.", "")] == [True, False]


CHECKS = {
    "source": _source,
    "chats": _chats,
    "reward": _reward,
    "annotator": _annotator,
    "environment": _environment,
    "exam": _exam,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_set_keys_that_exist(page: Page, written: Path) -> None:
    (written / "my.yaml").write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    for words in page.commands():
        if words[0] == "triptych":
            overrides = parsed(words[1:]).get("overrides")
            load_recipe(written / "my.yaml", overrides)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2])
        else:
            assert words[0] in (".", "cd", "export", "ray", "tensorboard"), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_without_a_model_run(
    page: Page, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (written / "my.yaml").write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    (written / "own.yaml").write_text((EXAMPLE / "own.yaml").read_text(), encoding="utf-8")
    for name in ("rankings.jsonl", "gold.jsonl"):
        (written / name).write_text(RANKED, encoding="utf-8")
    with gzip.open(written / "pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(HH))
    for run in ("my", "demo"):
        (written / "runs" / run).mkdir(parents=True)
    write_judgements(RunFolder(written / "runs" / "my"))
    for words in page.commands():
        # These commands would ask a cluster, and there is none.
        cheap = words[0] == "triptych" and (words[1] in CHEAP or "--plan" in words)
        if cheap and "--cluster" not in words:
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
            # A problem that doctor finds on this machine is not the page's fault.
            assert ended.value.code in ((0, 1) if words[1] == "doctor" else (0,)), (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_backticks_exist(page: Page) -> None:
    sections, old = set(Recipe.model_fields), set(RENAMED)
    for text in page.code():
        word = re.split(r"[=:\s]", text)[0]
        if text.startswith("triptych "):
            command: Any = typer.main.get_command(app)
            for name in text.split()[1:]:
                if not hasattr(command, "commands"):
                    break
                assert name in command.commands, f"{page.name}: {text}"
                command = command.commands[name]
        elif re.fullmatch(r"[a-z_]+(\.[a-z_*]+)+", word) and word.split(".")[0] in sections and not _is_file(word):
            known = is_key(word) or (page.path.name == "glossary.md" and word in old)
            assert known, f"{page.name}: the recipe has no key {word}"
        elif re.fullmatch(rf"({'|'.join(LAYERS)})(/[\w.]+)+/?", text):
            assert (ROOT / text).exists(), f"{page.name}: {text}"
        elif re.fullmatch(rf"({'|'.join(LAYERS)})(\.\w+)+", word):
            assert pkgutil.resolve_name(word), f"{page.name}: {text}"
        elif re.fullmatch(r"([A-Z][a-z]+){2,}", text):
            assert text in names_of_the_code(), f"{page.name}: nothing is called {text}"


def _is_file(word: str) -> bool:
    return Path(word).suffix in (".md", ".py", ".db", ".url", ".json", ".jsonl", ".yaml", ".html")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_runs_from_its_text_to_its_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = [
        "model.hidden=64",
        "model.layers=2",
        "model.vocabulary=512",
        "sft.epochs=4",
        "sft.batch_rows=4",
        "rlhf.steps=2",
        "rlhf.prompts_per_step=4",
        "rlhf.fleet.rollout_actors=1",
    ]
    environment = {**os.environ, "PYTHONPATH": f".{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pipelines", "run", "own.yaml", f"run={run}", *small]
    done = subprocess.run(
        command, cwd=EXAMPLE, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "report" / "report.json").read_text())
    assert {path.name for path in run.iterdir()} >= {"corpus", "base", "sft", "policy", "report"}
    assert not (run / "reward").exists()
    assert report["rewards"]["held_out"]
    assert report["rewards"]["reward"]["n"] == 10
    assert 0 <= report["rewards"]["reward"]["before"] <= 1
    manifest = json.loads((run / "policy" / "manifest.json").read_text())
    assert manifest["metrics"]["prompts"] == {"trained": 8, "filtered": 0, "failed": 0}
