"""The stage `evaluate`: compares the base model, the fine-tuned model and the policy on data they were not trained on.

It measures rewards on prompts that RLHF did not train on, the perplexity of held-out text, and the recipe's exam if it
names one, and writes the report.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.model import causal_lm
from actors.model.chat import Chat
from actors.model.sharding.fsdp import parameters
from actors.model.tokenizer import load_tokenizer
from actors.types import Sampling
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder
from cluster.run.layout import STAGES
from cluster.run.stages import Result
from pipelines.evaluate.charts import corpus_histograms, learning_curves
from pipelines.evaluate.exam import Exam, GradedAnswer, exam_changes, exam_figures, load_exam
from pipelines.evaluate.exam_runner import ExamRunner, graded_for_all, grading_failures
from pipelines.evaluate.held_out import (
    RewardedAnswers,
    answer_rows,
    divergence_from_loaded,
    paired_changes,
    sample_and_reward,
)
from pipelines.evaluate.perplexity import negative_log_likelihoods, perplexity, text_rows
from pipelines.evaluate.report import MODELS, print_report, render
from pipelines.evaluate.stats import Proportion
from pipelines.evaluate.tasks.items import EvaluationTask
from pipelines.evaluate.tasks.loading import load_tasks
from pipelines.evaluate.tasks.measure import TaskAnswers, run_task
from pipelines.evaluate.tasks.models import EngineModel
from pipelines.evaluate.tasks.results import task_figures, task_sentences
from pipelines.evaluate.tasks.run import write_task_files
from pipelines.evaluate.verdict import (
    OTHERS,
    exam_verdict,
    preference_verdict,
    reward_model_verdict,
    reward_verdict,
    signs_verdict,
)
from pipelines.rlhf.setup import (
    RlhfPrompts,
    held_out_prompts,
    prompt_chat,
    reward_pools,
    rollout_fleet,
    training_prompts,
    wait_ready,
)

MAX_ACTORS = 2
# The fine-tuned model last: it then scores the policy's answers.
MODEL_ORDER = ("base", "policy", "sft")


@dataclass
class ModelOutputs:
    """Answers and scores of the models, by the model's name.

    Attributes:
        exam_answers: answers to the exam's questions; empty without an exam.
        completion: how often the base model continues the exam's sentences rightly; None without sentences.
        rewarded: rewarded answers to prompts, of all models but the base model.
        nats: negative log-likelihoods of the rows of text; empty without text.
        kl: divergence of the policy from the fine-tuned model.
        tasks: results of tasks, by task and model; empty without tasks.
    """

    exam_answers: dict[str, list[GradedAnswer]] = field(default_factory=dict)
    completion: Proportion | None = None
    rewarded: dict[str, RewardedAnswers] = field(default_factory=dict)
    nats: dict[str, list[float]] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, TaskAnswers]] = field(default_factory=dict)


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Runs the stage: writes `report.json`, `answers.json` and `index.html` to `out`."""
    clock, console = time.monotonic(), Console()
    exam = load_exam(recipe)
    prompts, held_out = evaluation_prompts(recipe, prompt_chat(recipe, run.path("sft")))
    text, tasks = text_rows(recipe, run), load_tasks(recipe.evaluate.tasks)
    if recipe.rlhf.environment and any(task.metric == "checked" for task in tasks):
        console.print("tasks that are answered are left out: the policy expects the turns of rlhf.environment")
        tasks = [task for task in tasks if task.metric != "checked"]
    outputs = _run_models(recipe, run, exam, prompts, text, tasks, console)
    trained = run.require("policy").metrics
    drift, signs = trained.get("preference_accuracy"), trained.get("signs") if recipe.rlhf.needs_reward_model else None
    feedback = {**_feedback_figures(recipe, run), "signs": signs}
    report = _report(exam, outputs, held_out, bool(recipe.rlhf.rewards), text, drift, feedback)
    report |= {"seed": recipe.seed, "name": recipe.name, "tasks": task_figures(tasks, outputs.tasks)}
    comparisons = pairwise(MODELS) if tasks else ()
    report["verdict"] = "\n".join(
        [report["verdict"], *(line for pair in comparisons for line in task_sentences(report["tasks"], *pair))]
    )
    report["timings"] = _timings(run) | {"evaluate": round(time.monotonic() - clock, 1)}
    rewarded = {name: outputs.rewarded[name] for name in ("sft", "policy")}
    rows = answer_rows(list(prompts.rendered.values()), prompts.inputs, rewarded)
    if tasks:
        write_task_files(tasks, outputs.tasks, report["tasks"], recipe.seed, out)
    write_report(report, [*exam_rows(outputs.exam_answers), *rows], exam, run.root, out)
    print_report(report, exam, console)
    in_manifest = (
        "changes",
        "rewards",
        "failed_verdicts",
        "failed_gradings",
        "preference_accuracy",
        "perplexity",
        "reward_model",
        "kl_from_sft",
        "tasks",
        "verdict",
    )
    return Result(metrics={key: report[key] for key in (*MODELS, *in_manifest)})


def _run_models(
    recipe: Recipe,
    run: RunFolder,
    exam: Exam | None,
    prompts: RlhfPrompts,
    text: list[list[int]],
    tasks: Sequence[EvaluationTask],
    console: Console,
) -> ModelOutputs:
    """Loads one model after the other into the same engines, and collects its answers and scores."""
    context = recipe.model.context
    outputs, deadline, rendered = ModelOutputs(), recipe.cluster.deadline_seconds, list(prompts.rendered.values())
    exam_runner = ExamRunner.of(exam, recipe, run) if exam else None
    # A base model that was taken over may have a template of its own.
    chats_as_base = bool(load_tokenizer(run.path("base")).chat_template)
    sampling = Sampling(recipe.evaluate.samples_per_prompt, 1.0, recipe.rlhf.sampling.max_tokens, recipe.seed)
    actors = min(MAX_ACTORS, recipe.rlhf.fleet.rollout_actors)
    with (
        reward_pools(recipe, run, prompts.inputs) as pools,
        # The engines start once and take all models' weights: those have one architecture.
        rollout_fleet(recipe, run.path("sft"), actors, prompts.inputs) as fleet,
    ):
        wait_ready(pools, deadline)
        for version, name in enumerate(MODEL_ORDER, 1):
            with console.status(f"evaluating the {MODELS[name].lower()} model"):
                fleet.load(version, parameters(causal_lm.load(run.path(name))))
                if exam_runner:
                    outputs.exam_answers[name] = exam_runner.answers(fleet, name)
                if exam_runner and name == "base":
                    outputs.completion = exam_runner.completion(fleet)
                if text:
                    outputs.nats[name] = negative_log_likelihoods(fleet, text, deadline)
                evaluated = EngineModel.of(
                    fleet, run.path(name), context, deadline, chats=name != "base" or chats_as_base
                )
                for task in tasks:
                    outputs.tasks.setdefault(task.name, {})[name] = run_task(task, evaluated)
                if name != "base":
                    outputs.rewarded[name] = sample_and_reward(
                        fleet, pools, rendered, sampling, recipe.rlhf.prompts_per_step, recipe.rlhf.environment_weight
                    )
        outputs.kl = divergence_from_loaded(fleet, rendered, outputs.rewarded["policy"], deadline)
    outputs.tasks = {task: {name: found[name] for name in MODELS} for task, found in outputs.tasks.items()}
    return outputs


def _report(
    exam: Exam | None,
    outputs: ModelOutputs,
    held_out: bool,
    rewarded: bool,
    text: list[list[int]],
    drift: Mapping[str, float] | None,
    feedback: dict[str, Any],
) -> dict[str, Any]:
    """Computes the figures and the verdict.

    Args:
        exam: if the recipe names one.
        outputs: the outputs of the models.
        held_out: whether RLHF did not train on the prompts.
        rewarded: whether RLHF has rewards: it may learn from a teacher alone.
        text: rows of held-out text.
        drift: the value of `PreferenceProbe.measure`, if RLHF measured it.
        feedback: the value of `_feedback_figures`, and the `signs` of over-optimization, or None.
    """
    answers = graded_for_all(outputs.exam_answers)
    figures = {name: exam_figures(exam, given) for name, given in answers.items()} if exam else {}
    shares = {name: exam_changes(exam, answers[name], answers["policy"]) for name in OTHERS} if exam else {}
    changes = paired_changes(outputs.rewarded["sft"], outputs.rewarded["policy"])
    text_perplexity = perplexity(text, outputs.nats) if text else None
    report: dict[str, Any] = {
        name: {key: asdict(value) for key, value in figures.get(name, {}).items()} for name in MODELS
    }
    if outputs.completion:
        report["base"]["completion"] = asdict(outputs.completion)
    report["rewards"] = {name: asdict(change) for name, change in changes.items()} | {
        "held_out": held_out,
        "samples": len(outputs.rewarded["sft"].groups[0]),
    }
    # The sentences on figures that got worse come first.
    sentences = exam_verdict(exam, shares, text_perplexity)
    if trust := (feedback["reward_model"] or {}).get("trust"):
        sentences.append(reward_model_verdict(trust))
    sentences.insert(
        len(sentences) if exam else 0, reward_verdict(changes, held_out, alone=not exam, rewarded=rewarded)
    )
    if drift:
        sentences.append(preference_verdict(drift))
    if feedback["signs"]:
        sentences.append(signs_verdict(feedback["signs"]))
    return report | {
        "changes": {name: {key: asdict(value) for key, value in each.items()} for name, each in shares.items()},
        "perplexity": asdict(text_perplexity) if text_perplexity else None,
        "preference_accuracy": drift,
        "failed_verdicts": {name: len(rewarded.failures) for name, rewarded in outputs.rewarded.items()},
        **grading_failures(outputs.exam_answers),
        "kl_from_sft": outputs.kl,
        "verdict": "\n".join(sentences),
        **feedback,
    }


def write_report(
    report: dict[str, Any], rows: Sequence[Mapping[str, Any]], exam: Exam | None, root: Path, out: Path
) -> None:
    """Writes the report's files.

    Args:
        report: the content of report.json.
        rows: the content of answers.json.
        exam: if the recipe names one.
        root: the run folder, whose finished stages have the data of the page's charts.
        out: the folder to write to.
    """
    write_json(out / "report.json", report)
    write_json(out / "answers.json", rows)
    page = render(report, rows, learning_curves(root), corpus_histograms(root), exam)
    (out / "index.html").write_text(page, encoding="utf-8")


def exam_rows(answers: Mapping[str, Sequence[GradedAnswer]]) -> list[dict[str, Any]]:
    """Makes the rows of answers.json: for each question of the exam, every model's answer.

    Args:
        answers: the answers by the model's name, in the order of the questions.
    """
    by_question = zip(*(answers[name] for name in MODELS), strict=True) if answers else []
    return [
        {
            "kind": group[0].question.kind,
            "form": group[0].question.form,
            "question": group[0].question.shown,
            "answers": {
                name: {
                    "text": answer.text,
                    "right": answer.right,
                    "stopped": answer.stopped,
                    "failure": answer.failure,
                }
                for name, answer in zip(MODELS, group, strict=True)
            },
        }
        for group in by_question
    ]


def evaluation_prompts(recipe: Recipe, chat: Chat) -> tuple[RlhfPrompts, bool]:
    """Chooses prompts, and says whether RLHF did not train on them: where it trained on all, some of those are used."""
    held_out = held_out_prompts(recipe, chat, recipe.evaluate.prompts)
    if held_out.rendered:
        return held_out, True
    return training_prompts(recipe, chat, recipe.evaluate.prompts), False


def _feedback_figures(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Returns the figures of the reward model and of the annotators; None for both where RLHF uses no reward model."""
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
