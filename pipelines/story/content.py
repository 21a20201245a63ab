"""The content of the story page: the part that does not change while a run is served, and a training's progress."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from actors.model.chat import Chat
from cluster.feedback import Feedback, distinct_completions, open_feedback
from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import Story
from cluster.run.folder import RunFolder
from cluster.run.metrics import read_metrics
from pipelines.data.chat_formats import first_conversations
from pipelines.story.training import MIN_RANKINGS, story_of
from serve.pages.label import MAX_ANSWERS
from serve.pages.markdown import with_markdown
from serve.pages.story import TrainingRequest

# Conversations that the page shows with their trained tokens, and held-out questions that it offers.
SHOWN_CONVERSATIONS, SHOWN_QUESTIONS = 8, 8
# Seconds of the reward model's stage, until the first step of RLHF, and of a step, measured on two cores: for the
# estimate of a training that has just begun.
REWARD_SECONDS, START_SECONDS, STEP_SECONDS = 20.0, 35.0, 2.0

TrainingOutcome = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class TrainingStatus:
    """A visitor's training: the request, its outcome so far, and the reason of a failure in one line."""

    request: TrainingRequest
    outcome: TrainingOutcome = "running"
    error: str = ""


def story_data(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Returns the content of the page: sentences, questions, prompts to rank, and conversations of fine-tuning."""
    story = story_of(recipe)
    chat = Chat.of(run.path("sft"))
    with open_feedback(run.feedback_url) as database:
        tasks = tasks_to_rank(database, story.rankings)
    return {
        "sentences": story.sentences,
        "questions": story.questions,
        "gameable": story.gameable is not None,
        "steps": story.steps,
        "least": MIN_RANKINGS,
        "tasks": tasks,
        "conversations": trained_conversations(recipe, chat),
        "held_out": held_out_questions(run),
    }


def tasks_to_rank(database: Feedback, count: int) -> list[dict[str, Any]]:
    """Chooses prompts of the run whose sampled answers differ, of all kinds in turn, each answer text once."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for prompt in database.prompts():
        distinct = distinct_completions(sorted(prompt.completions, key=lambda one: one.index))[:MAX_ANSWERS]
        if "import" not in prompt.details and len(distinct) >= 2:
            answers = [with_markdown({"id": one.id, "text": one.text}, "text") for one in distinct]
            messages = [with_markdown(message, "content") for message in prompt.messages]
            task = {"prompt": prompt.id, "messages": messages, "answers": answers}
            kinds.setdefault(str(prompt.details.get("kind", "")), []).append(task)
    # Kinds that differ more often come first: their answers leave more to choose between.
    turns = sorted(kinds.values(), key=len, reverse=True)
    rounds = [tasks[number] for number in range(count) for tasks in turns if number < len(tasks)]
    return rounds[:count]


def trained_conversations(recipe: Recipe, chat: Chat) -> list[list[tuple[str, bool]]]:
    """Renders conversations of fine-tuning: each token's text, and whether the loss counts it."""
    shown = []
    for conversation in first_conversations(recipe.sft.sources, recipe.seed, SHOWN_CONVERSATIONS):
        rendered = chat.conversation(conversation)
        texts = [str(chat.tokenizer.decode([token])) for token in rendered.token_ids]
        shown.append(list(zip(texts, rendered.loss_mask, strict=True)))
    return shown


def held_out_questions(run: RunFolder) -> list[str]:
    """Reads questions of the exam that no model was trained on; empty before the evaluation."""
    path = run.path("report") / "answers.json"
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    first = rows[0]["kind"] if rows else ""
    questions = list(dict.fromkeys(row["question"] for row in rows if row["kind"] == first))
    return questions[:: -(-len(questions) // SHOWN_QUESTIONS)] if questions else []


def describe(recipe: Recipe, branch: RunFolder, training: TrainingStatus) -> dict[str, Any]:
    """Returns the progress of a training for the page.

    Returns:
        outcome, error, gameable and rankings of the request; `reward`: the losses and the agreement; `policy`: reward,
        KL divergence and length by step; `left`: the estimated seconds until it ends; `version`: that of the served
        policy.
    """
    story, request = story_of(recipe), training.request
    running = training.outcome == "running"
    policy = _rows(branch, "policy", running)
    reward = [] if request.gameable else _rows(branch, "reward", running)
    manifest = None if request.gameable else branch.manifest("reward")
    trained = branch.manifest("policy") if training.outcome == "done" else None
    return {
        "outcome": training.outcome,
        "error": training.error,
        "gameable": request.gameable,
        "rankings": len(request.rankings),
        "reward": {
            "losses": [[row["step"], row["loss"]] for row in reward if "loss" in row],
            "agreement": manifest.metrics["pair_accuracy"] if manifest and policy else None,
            "trained_agreement": manifest.metrics["train_pair_accuracy"] if manifest and policy else None,
        },
        "policy": [
            {
                "step": row["step"] + 1,
                "reward": row["reward"],
                # None where the recipe has no use for the divergence, so that no step measures it.
                "kl": row.get("kl_sequence"),
                "length": row["response_length"],
            }
            for row in policy
        ],
        "steps": story.steps,
        "stopped": (trained.metrics.get("stopped") or "") if trained else "",
        "left": _seconds_left(story, reward, policy, request.gameable) if running else 0.0,
        "version": _served_version(branch),
    }


def _rows(branch: RunFolder, folder: str, running: bool) -> list[dict[str, Any]]:
    partial = branch.partial(folder)
    return read_metrics(partial if running and partial.exists() else branch.path(folder))


def _seconds_left(story: Story, reward: list[dict[str, Any]], policy: list[dict[str, Any]], gameable: bool) -> float:
    if policy:
        step = sum(row["step_seconds"] for row in policy) / len(policy)
        return (story.steps - len(policy)) * step
    return (0.0 if gameable or reward else REWARD_SECONDS) + START_SECONDS + story.steps * STEP_SECONDS


def _served_version(branch: RunFolder) -> str:
    path = branch.root / "served" / "policy" / "versions.json"
    live: str = json.loads(path.read_text(encoding="utf-8"))["live"] if path.exists() else ""
    return live
