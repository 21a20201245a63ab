"""What people are asked next: prompts on whose answers the reward models of the last round disagree, or of whose better
answer they are unsure, come before others; a share of the prompts comes at random.

Which prompts come at random depends on the prompt and the seed alone, never on a score, so that these stay a random
sample of all prompts over every round.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from actors.model.chat import Chat
from actors.model.reward_head import member_folders
from actors.rewards.scorer import ScoreFunction
from cluster.feedback import AT_RANDOM, Feedback, FeedbackPrompt, distinct_completions
from cluster.feedback.order import Placed
from cluster.recipe.collect import Select
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_text
from cluster.run.folder import RunFolder, fingerprint

# The order of a round, in its `preferences`.
FILE = "asked.jsonl"


@dataclass(frozen=True)
class RewardModels:
    """The reward model that an order follows from: its folder, the checksum of its weights, and its round."""

    folder: Path
    weights: str
    round: int | None


def last_reward_model(run: RunFolder) -> RewardModels | None:
    """Finds the reward model of the run's last round; None if there is none."""
    manifest = run.manifest("reward")
    if manifest is None or manifest.weights is None:
        return None
    return RewardModels(run.path("reward"), manifest.weights, manifest.round)


def why_random(settings: Select, models: RewardModels | None, chat: Chat | None = None) -> str:
    """Says why no reward model can choose what people are asked; empty if one can.

    Args:
        settings: names the criterion.
        models: the reward model; None if there is none.
        chat: the template of the model whose answers are scored; None does not compare its tokens.
    """
    if models is None:
        return "no earlier round has a reward model"
    if settings.by == "disagreement" and len(member_folders(models.folder)) < 2:
        return "the last round's reward model has one member, which cannot disagree"
    if chat and Chat.of(models.folder).tokenizer.get_vocab() != chat.tokenizer.get_vocab():
        return "the last round's reward model has another tokenizer"
    return ""


def order_sentence(settings: Select, models: RewardModels | None, random_because: str) -> str:
    """Says in one line in which order people are asked; `random_because` is that of `why_random`."""
    if random_because or models is None:
        return f"people are asked in random order, whatever collect.select says: {random_because}"
    which = f"of round {models.round}" if models.round else "of this round"
    criterion = {
        "disagreement": f"the {len(member_folders(models.folder))} reward models {which} disagree",
        "uncertainty": f"the reward model {which} is least sure which is better",
    }[settings.by]
    return (
        f"people are asked first for the answers on which {criterion}; {settings.random_share:.0%} of the training "
        "prompts and all held-out ones come at random"
    )


def order_prompts(
    recipe: Recipe,
    database: Feedback,
    chat: Chat,
    mark: str,
    models: RewardModels | None,
    scorer: Callable[[], AbstractContextManager[ScoreFunction]],
) -> str:
    """Gives the prompts of a round that nobody has judged yet their places, and returns a sentence on the order.

    An order that follows from the same reward model and settings is kept: a resumed stage changes nothing. Without
    `collect.select` no prompt has a place.

    Args:
        recipe: has `collect.select`.
        database: the prompts with their answers.
        chat: renders the prompts.
        mark: the beginning of the names of the round's prompts.
        models: the reward model; None if there is none.
        scorer: opens what scores answers.
    """
    settings = recipe.collect.select
    if settings is None:
        database.set_order([], "")
        return ""
    judged = database.judged_prompts()
    rows = database.prompts(prefix=f"{mark} ")
    waiting = [row for row in rows if row.id not in judged and len(distinct_completions(row.completions)) > 1]
    reason = why_random(settings, models, chat)
    weights = models.weights if models and not reason else ""
    made_from = fingerprint([weights, settings.model_dump(), recipe.seed])
    if any(row.chosen_from != made_from for row in waiting):
        scores: dict[str, float] = {}
        if models and not reason and waiting:
            with scorer() as scores_by:
                scores = _scores(waiting, chat, models.folder, scores_by, settings)
        database.set_order(placed(waiting, scores, settings, recipe.seed), made_from)
    return order_sentence(settings, models, reason)


def placed(prompts: Iterable[FeedbackPrompt], scores: Mapping[str, float], settings: Select, seed: int) -> list[Placed]:
    """Returns the places of prompts: those with the largest score first, with prompts at random in between.

    All prompts are shuffled. Held-out prompts, a share of the others, and those without a score keep their places; the
    other places go to the other prompts by score.

    Args:
        prompts: the prompts.
        scores: the value of the criterion for some of them, by id.
        settings: names the criterion and the share.
        seed: of the shuffle and the share.
    """
    shuffled = sorted(prompts, key=lambda row: (_draw("place", row, seed), row.id))
    is_chosen = {
        row.id: row.split == "train" and row.id in scores and _draw("share", row, seed) >= settings.random_share
        for row in shuffled
    }
    best = iter(sorted((name for name, chosen in is_chosen.items() if chosen), key=lambda name: (-scores[name], name)))
    names = [next(best) if is_chosen[row.id] else row.id for row in shuffled]
    return [
        Placed(name, place, settings.by if is_chosen[name] else AT_RANDOM, scores.get(name))
        for place, name in enumerate(names)
    ]


def pair_scores(rewards: np.ndarray, by: str) -> float:
    """Computes the criterion for the answers to one prompt, the mean over their pairs.

    Args:
        rewards: [M, K], of K answers by M reward models, not normalized.
        by: disagreement: the variance over M of the probability that one answer of the pair is preferred (Bradley and
            Terry 1952); uncertainty: p (1 - p) for the mean p of the M probabilities.
    """
    first, second = np.array(list(combinations(range(rewards.shape[1]), 2))).T
    # The logistic function, which does not overflow in this form.
    probability = (1 + np.tanh((rewards[:, first] - rewards[:, second]) / 2)) / 2
    mean = probability.mean(0)
    return float((probability.var(0) if by == "disagreement" else mean * (1 - mean)).mean())


def write_order(rows: Sequence[FeedbackPrompt], judged: set[str], out: Path) -> dict[str, Any]:
    """Writes asked.jsonl, why each prompt of a round has its place, and returns the figures for the manifest.

    Args:
        rows: the prompts of the round that have a place.
        judged: the ids of those that people have judged.
        out: the folder to write to.
    """
    lines = (
        json.dumps(
            {
                "prompt": row.id,
                "place": row.place,
                "chosen_by": row.chosen_by,
                "score": row.chosen_score,
                "judged": row.id in judged,
            },
            ensure_ascii=True,
        )
        for row in sorted(rows, key=lambda row: (row.place or 0, row.id))
    )
    write_text(out / FILE, "".join(f"{line}\n" for line in lines))
    at_random = [row for row in rows if row.chosen_by == AT_RANDOM]
    judged_by = Counter(str(row.chosen_by) for row in rows if row.id in judged)
    return {
        "chosen": len(rows) - len(at_random),
        "at_random": len(at_random),
        "judged_by_choice": dict(sorted(judged_by.items())),
    }


def _draw(purpose: str, row: FeedbackPrompt, seed: int) -> float:
    return random.Random(f"{purpose} {seed} {row.details.get('prompt', row.id)}").random()


def _scores(
    prompts: Sequence[FeedbackPrompt], chat: Chat, folder: Path, scores_by: ScoreFunction, settings: Select
) -> dict[str, float]:
    """Scores prompts with two different answers or more, by id; those without a finite score are left out."""
    answers = {row.id: distinct_completions(sorted(row.completions, key=lambda one: one.index)) for row in prompts}
    rendered = {row.id: chat.prompt(row.messages) for row in prompts}
    sequences = [rendered[row.id] + answer.token_ids for row in prompts for answer in answers[row.id]]
    # Only one member is in memory at a time.
    rewards = np.array([scores_by([member], sequences) for member in member_folders(folder)])
    found, begin = dict[str, float](), 0
    for row in prompts:
        end = begin + len(answers[row.id])
        value = pair_scores(rewards[:, begin:end], settings.by)
        if np.isfinite(value):
            found[row.id] = value
        begin = end
    return found
