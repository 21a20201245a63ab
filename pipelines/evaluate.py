"""Evaluation: the same held-out questions to the base model, the fine-tuned model and the policy."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from actors.fleet import Fleet
from actors.model import language
from actors.model.chat import Chat
from actors.sample import Prompt, Sample, Sampling
from cluster.cli import stage_main
from cluster.failures import wait_for
from cluster.plan import make_plan
from cluster.recipe import Recipe
from cluster.run import RunFolder, write_json
from cluster.stages import STAGES, Result, stage_of
from pipelines.curves import learning_curves
from pipelines.figures import FIGURES, Answer, Proportion, divergence, model_figures, proportion, verdict
from pipelines.guide.facts import Country, countries
from pipelines.guide.questions import Question, held_out_questions
from pipelines.histograms import corpus_histograms
from pipelines.report import MODELS, render

ACTORS = 2


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Asks, counts, and writes `report.json`, `answers.json` and `index.html`."""
    clock, console = time.monotonic(), Console()
    questions = held_out_questions(recipe.seed)
    deadline = recipe.cluster.deadline_seconds
    chat, base = Chat.of(run.path("sft")), AutoTokenizer.from_pretrained(run.path("base"))
    plain = [Prompt(q.id, base.encode(q.text, add_special_tokens=False)) for q in questions]
    asked = [Prompt(q.id, chat.prompt([{"role": "user", "content": q.text}])) for q in questions]
    greedy = Sampling(1, 0.0, recipe.evaluate.max_tokens, recipe.seed)
    actors = min(ACTORS, recipe.rlhf.rollout_actors)
    share, context = make_plan(recipe).rollout, recipe.model.context
    answers = {}
    # The engines start once, from the base model, and take the others' weights: all three have one architecture.
    with Fleet(run.path("base"), actors, share, context, recipe.seed, deadline) as fleet:
        with console.status("asking the base model"):
            answers["base"] = _answers(questions, fleet.generate(plain, greedy), run.path("base"), base)
            completion = capital_completion(fleet, base, greedy)
        with console.status("asking the policy"):
            fleet.sync(1, language.load(run.path("policy")).state_dict())
            answers["policy"] = _answers(questions, fleet.generate(asked, greedy), run.path("policy"), chat.tokenizer)
            drawn = fleet.generate(asked, Sampling(1, 1.0, recipe.evaluate.max_tokens, recipe.seed))
        with console.status("asking the fine-tuned model"):
            fleet.sync(2, language.load(run.path("sft")).state_dict())
            answers["sft"] = _answers(questions, fleet.generate(asked, greedy), run.path("sft"), chat.tokenizer)
            kl = kl_from_reference(fleet, asked, [drawn[prompt.id][0] for prompt in asked], deadline)
    figures = {name: model_figures(answers[name]) for name in MODELS}
    ranked = recipe.rlhf.needs_reward_model
    report = {
        **{name: {key: asdict(value) for key, value in figures[name].items()} for name in MODELS},
        "reward_model": _metrics(run, "reward", ("pair_accuracy", "trust")) if ranked else None,
        "kl_from_sft": kl,
        "verdict": verdict(figures["sft"], figures["policy"]),
        "labeller": _metrics(run, "preferences", ("labeller", "noise", "rankings")) if ranked else None,
        "timings": _timings(run) | {"evaluate": round(time.monotonic() - clock, 1)},
        "seed": recipe.seed,
        "name": recipe.name,
    }
    report["base"]["capital_completion"] = asdict(completion)
    write_report(report, answers, run.root, out)
    _print(report, console)
    return Result(metrics={key: report[key] for key in (*MODELS, "reward_model", "kl_from_sft", "verdict")})


def write_report(report: dict[str, Any], answers: Mapping[str, Sequence[Answer]], root: Path, out: Path) -> None:
    """Writes the report's files; the page's drawings come from the finished stages under `root`."""
    rows = answer_rows(answers)
    write_json(out / "report.json", report)
    write_json(out / "answers.json", rows)
    page = render(report, rows, learning_curves(root), corpus_histograms(root))
    (out / "index.html").write_text(page, encoding="utf-8")


def answer_rows(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """One row a question, with what each model said to it."""
    return [
        {
            "kind": group[0].question.kind,
            "question": group[0].question.text,
            "answers": {
                name: {"text": answer.text, "right": answer.right, "stopped": answer.stopped}
                for name, answer in zip(answers, group, strict=True)
            },
        }
        for group in zip(*answers.values(), strict=True)
    ]


def capital_completion(fleet: Fleet, tokenizer: PreTrainedTokenizerBase, greedy: Sampling) -> Proportion:
    """How often the weights in the fleet continue "The capital of X is" with the capital, over all countries."""
    asked = countries()
    prompts = [
        Prompt(country.name, tokenizer.encode(f"The capital of {country.name} is", add_special_tokens=False))
        for country in asked
    ]
    drawn = fleet.generate(prompts, greedy)
    return proportion(sum(continues_right(country, drawn[country.name][0].text) for country in asked), len(asked))


def continues_right(country: Country, text: str) -> bool:
    """Whether a continuation begins with the capital's name."""
    return text.strip().startswith(country.capital.strip())


def kl_from_reference(fleet: Fleet, prompts: Sequence[Prompt], samples: Sequence[Sample], deadline: float) -> Any:
    """`figures.divergence` of samples, drawn at temperature 1, from the weights that the fleet holds now."""
    rows = [prompt.token_ids + drawn.token_ids for prompt, drawn in zip(prompts, samples, strict=True)]
    starts = [len(prompt.token_ids) for prompt in prompts]
    reference = wait_for(fleet.handles()[0].score.remote(rows, starts), deadline, "the fine-tuned model's scores")
    return divergence([drawn.logprobs for drawn in samples], reference)


def answer_of(question: Question, token_ids: Sequence[int], ends: set[int], tokenizer: Any) -> Answer:
    """The answer up to the first token with which this model ends. The engine stops at the chat's token only; greedy
    decoding to a base model's own end is the same as stopping there."""
    end = next((index for index, token in enumerate(token_ids) if token in ends), None)
    text = tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True).strip()
    return Answer(question, text, stopped=end is not None)


def _answers(
    questions: Sequence[Question], drawn: Mapping[str, list[Sample]], model: Path, tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    ends = AutoConfig.from_pretrained(model).eos_token_id
    known = set(ends) if isinstance(ends, list) else {ends}
    return [answer_of(question, drawn[question.id][0].token_ids, known, tokenizer) for question in questions]


def _metrics(run: RunFolder, folder: str, names: Sequence[str]) -> dict[str, Any]:
    metrics = run.require(folder, stage_of(folder).name).metrics
    return {name: metrics.get(name) for name in names}


def _timings(run: RunFolder) -> dict[str, float]:
    manifests = {stage.name: run.manifest(stage.folder) for stage in STAGES if stage.name != "evaluate"}
    return {name: manifest.seconds for name, manifest in manifests.items() if manifest is not None}


def _print(report: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"{report['name']}: held-out questions, 95 % intervals")
    table.add_column("")
    for name in MODELS:
        table.add_column(name, justify="right")
    for figure in FIGURES:
        cells = [report[name][figure.name] for name in MODELS]
        table.add_row(figure.title, *(f"{c['value']:.2f} ({c['low']:.2f}–{c['high']:.2f})" for c in cells))
    console.print(table)
    said = [f"base completes {report['base']['capital_completion']['value']:.2f} of capitals"]
    if report["reward_model"]:
        pairs = report["reward_model"]["pair_accuracy"]
        said.append(f"reward model orders {pairs['value']:.2f} of {pairs['n']} unseen pairs")
    console.print("; ".join([*said, f"KL from sft {report['kl_from_sft']['value']:.1f} nats an answer"]))
    console.print(report["verdict"])


if __name__ == "__main__":
    stage_main("evaluate")
