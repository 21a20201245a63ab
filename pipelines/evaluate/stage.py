"""Evaluation: the base model, the fine-tuned model and the policy on what none of them was trained on.

Rewards of answers to prompts that RLHF kept back, perplexity of held-out text, and the recipe's exam if it names one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.model import causal_lm
from actors.model.chat import Chat
from actors.types import Sampling
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder
from cluster.run.layout import STAGES
from cluster.run.stages import Result
from pipelines.evaluate.charts import corpus_histograms, learning_curves
from pipelines.evaluate.exam import Answer, Exam, Sitting, load_exam, model_figures
from pipelines.evaluate.held_out import MEASURES, HeldOutAnswers, answer_rows, changes, divergence_from_held, draw
from pipelines.evaluate.perplexity import Perplexity, losses, perplexity, text_rows
from pipelines.evaluate.report import MODELS, render
from pipelines.evaluate.stats import Change, Proportion
from pipelines.evaluate.verdict import perplexity_verdict, preference_verdict, reward_verdict, verdict
from pipelines.rlhf_setup import (
    TrainingPrompts,
    prompts_kept_back,
    prompts_to_train_on,
    reward_actors,
    rollout_fleet,
    wait_ready,
)

ACTORS = 2
# The fine-tuned model last: it then scores what the policy drew.
ORDER = ("base", "policy", "sft")


@dataclass
class Found:
    """What the models said and how they read, each by the model's name, and the policy's divergence.

    Attributes:
        answers: to the exam's questions, if there is an exam.
        completion: of the exam's sentences, by the base model.
        drawn: answers to prompts with their rewards, of all but the base model.
        nats: of every row of text.
        kl: of the policy from the fine-tuned model.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    completion: Proportion | None = None
    drawn: dict[str, HeldOutAnswers] = field(default_factory=dict)
    nats: dict[str, list[float]] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Asks, counts, and writes `report.json`, `answers.json` and `index.html`."""
    clock, console = time.monotonic(), Console()
    exam = load_exam(recipe)
    asked, kept_back = _prompts(recipe, Chat.of(run.path("sft")))
    text = text_rows(recipe, run)
    found = _ask(recipe, run, exam, asked, text, console)
    moved = run.require("policy").metrics.get("preference_accuracy")
    report = (
        _report(exam, found, kept_back, text, moved) | _ranked(recipe, run) | {"seed": recipe.seed, "name": recipe.name}
    )
    report["timings"] = _timings(run) | {"evaluate": round(time.monotonic() - clock, 1)}
    drawn = {name: found.drawn[name] for name in ("sft", "policy")}
    rows = answer_rows(list(asked.rendered.values()), asked.inputs, drawn)
    write_report(report, [*exam_rows(found.answers), *rows], exam, run.root, out)
    _print(report, exam, console)
    kept = ("rewards", "preference_accuracy", "perplexity", "reward_model", "kl_from_sft", "verdict")
    return Result(metrics={key: report[key] for key in (*MODELS, *kept)})


def _ask(
    recipe: Recipe,
    run: RunFolder,
    exam: Exam | None,
    asked: TrainingPrompts,
    text: list[list[int]],
    console: Console,
) -> Found:
    """Asks every model, one after the other, in the same engines."""
    found, deadline, prompts = Found(), recipe.cluster.deadline_seconds, list(asked.rendered.values())
    sitting = Sitting.of(exam, recipe, run) if exam else None
    sampling = Sampling(recipe.evaluate.samples_per_prompt, 1.0, recipe.rlhf.sampling.max_tokens, recipe.seed)
    with (
        reward_actors(recipe, run, asked.inputs) as scorers,
        # The engines start once and take all models' weights: those have one architecture.
        rollout_fleet(recipe, run.path("sft"), min(ACTORS, recipe.rlhf.fleet.rollout_actors), asked.inputs) as fleet,
    ):
        wait_ready(scorers, deadline)
        for version, name in enumerate(ORDER, 1):
            with console.status(f"asking the {MODELS[name].lower()} model"):
                fleet.load(version, causal_lm.load(run.path(name)).state_dict())
                if sitting:
                    found.answers[name] = sitting.answers(fleet, name)
                if sitting and name == "base":
                    found.completion = sitting.completion(fleet)
                if text:
                    found.nats[name] = losses(fleet, text, deadline)
                if name != "base":
                    found.drawn[name] = draw(fleet, scorers, prompts, sampling, recipe.rlhf.prompts_per_step)
        found.kl = divergence_from_held(fleet, prompts, found.drawn["policy"], deadline)
    return found


def _report(
    exam: Exam | None, found: Found, kept_back: bool, text: list[list[int]], moved: Mapping[str, float] | None
) -> dict[str, Any]:
    """The figures and the verdict; `moved` is as of `PreferenceProbe.measure`."""
    figures = {name: model_figures(exam, answers) for name, answers in found.answers.items()} if exam else {}
    changed = changes(found.drawn["sft"], found.drawn["policy"])
    read = perplexity(text, found.nats) if text else None
    report: dict[str, Any] = {
        name: {key: asdict(value) for key, value in figures.get(name, {}).items()} for name in MODELS
    }
    if found.completion:
        report["base"]["completion"] = asdict(found.completion)
    report["rewards"] = {name: asdict(change) for name, change in changed.items()} | {
        "kept_back": kept_back,
        "samples": len(found.drawn["sft"].groups[0]),
    }
    return report | {
        "perplexity": asdict(read) if read else None,
        "preference_accuracy": moved,
        "kl_from_sft": found.kl,
        "verdict": _verdict(exam, figures, changed, kept_back, read, moved),
    }


def write_report(
    report: dict[str, Any], rows: Sequence[Mapping[str, Any]], exam: Exam | None, root: Path, out: Path
) -> None:
    """Writes the report's files; the page's drawings come from the finished stages under `root`."""
    write_json(out / "report.json", report)
    write_json(out / "answers.json", rows)
    page = render(report, rows, learning_curves(root), corpus_histograms(root), exam)
    (out / "index.html").write_text(page, encoding="utf-8")


def exam_rows(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """One row a question of the exam, with what each model said to it."""
    by_question = zip(*(answers[name] for name in MODELS), strict=True) if answers else []
    return [
        {
            "kind": group[0].question.kind,
            "question": group[0].question.text,
            "answers": {
                name: {"text": answer.text, "right": answer.right, "stopped": answer.stopped}
                for name, answer in zip(MODELS, group, strict=True)
            },
        }
        for group in by_question
    ]


def _prompts(recipe: Recipe, chat: Chat) -> tuple[TrainingPrompts, bool]:
    """What to ask and whether RLHF kept it back; where it trained on every prompt, some of those."""
    kept_back = prompts_kept_back(recipe, chat)
    if kept_back.rendered:
        return kept_back, True
    return prompts_to_train_on(recipe, chat, recipe.evaluate.prompts), False


def _verdict(
    exam: Exam | None,
    figures: Mapping[str, Mapping[str, Any]],
    changed: Mapping[str, Change],
    kept_back: bool,
    read: Perplexity | None,
    moved: Mapping[str, float] | None,
) -> str:
    sentences = [reward_verdict(changed, kept_back, alone=not figures)]
    if moved:
        sentences.append(preference_verdict(moved))
    if exam:
        sentences.insert(0, verdict(exam, figures["sft"], figures["policy"]))
    if read:
        sentences.append(perplexity_verdict(read))
    return " ".join(sentences)


def _ranked(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """What is known of the reward model and of who ranked, if anybody did."""
    if not recipe.rlhf.needs_reward_model:
        return {"reward_model": None, "annotator": None}
    return {
        "reward_model": _metrics(run, "reward", ("pair_accuracy", "trust")),
        "annotator": _metrics(
            run, "preferences", ("annotator", "annotator_arguments", "stands_in_for_people", "rankings")
        ),
    }


def _metrics(run: RunFolder, folder: str, names: Sequence[str]) -> dict[str, Any]:
    metrics = run.require(folder).metrics
    return {name: metrics.get(name) for name in names}


def _timings(run: RunFolder) -> dict[str, float]:
    manifests = {stage.name: run.manifest(stage.folder) for stage in STAGES if stage.name != "evaluate"}
    return {name: manifest.seconds for name, manifest in manifests.items() if manifest is not None}


def _print(report: Mapping[str, Any], exam: Exam | None, console: Console) -> None:
    said = []
    if exam:
        console.print(_exam_table(report, exam))
    if exam and exam.completions:
        said.append(f"base completes {report['base']['completion']['value']:.2f} of sentences")
    console.print(_rewards_table(report))
    if report["reward_model"]:
        pairs = report["reward_model"]["pair_accuracy"]
        said.append(f"reward model orders {pairs['value']:.2f} of {pairs['n']} unseen pairs")
    console.print("; ".join([*said, f"KL from sft {report['kl_from_sft']['value']:.1f} nats an answer"]))
    console.print(report["verdict"])


def _exam_table(report: Mapping[str, Any], exam: Exam) -> Table:
    table = Table(title=f"{report['name']}: held-out questions, 95 % intervals")
    table.add_column("")
    for name in MODELS:
        table.add_column(name, justify="right")
    for figure in exam.figures:
        cells = [report[name][figure.name] for name in MODELS]
        table.add_row(figure.title, *(f"{c['value']:.2f} ({c['low']:.2f}–{c['high']:.2f})" for c in cells))
    return table


def _rewards_table(report: Mapping[str, Any]) -> Table:
    rewards = report["rewards"]
    kind = "kept back from RLHF" if rewards["kept_back"] else "that RLHF trained on"
    table = Table(title=f"{report['name']}: answers to {rewards['reward']['n']} prompts {kind}, 95 % intervals")
    for heading in ("", "sft", "policy", "change"):
        table.add_column(heading, justify="right" if heading else "left")
    for measure in MEASURES:
        cell = rewards[measure.name]
        change = f"{cell['change']:+.2f} ({cell['low']:+.2f} to {cell['high']:+.2f})"
        table.add_row(measure.title, f"{cell['before']:.2f}", f"{cell['after']:.2f}", change)
    if text := report["perplexity"]:
        change = f"{text['change']:+.1%} ({text['low']:+.1%} to {text['high']:+.1%})"
        table.add_row("Perplexity of held-out text", f"{text['sft']:.2f}", f"{text['policy']:.2f}", change)
    return table
