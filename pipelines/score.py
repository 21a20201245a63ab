"""The reward model at scale: rewards for a file of answers, and what can be learned from them.

The best answer of each prompt is data to fine-tune on (best of n, rejection sampling: Touvron et al. 2023); best and
worst are a pair for DPO. Actors with a copy of the reward model each take batches of the file in turn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from actors.model.chat import Chat
from actors.rewards.model import ModelReward
from actors.types import NO_EPOCH, Prompt, RolloutId, Sample
from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import RunFolder
from cluster.runtime.plan import make_plan
from pipelines.data.chat_formats import Messages, prompt_of, rows

Kind = Literal["rewards", "best", "pairs"]
ROWS_TOGETHER = 16


@dataclass(frozen=True)
class ScoreRequestRow:
    """A row of the file: its conversation, the answers to score, and the row itself."""

    messages: Messages
    texts: list[str]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class ScoredAnswers:
    """What came of a file.

    Attributes:
        prompts: rows read.
        answers: answers scored.
        too_long: answers left out, because with their prompt they have more tokens than the model reads.
        written: rows written.
        mean: mean reward of all answers.
        best: mean reward of each prompt's best answer.
    """

    prompts: int
    answers: int
    too_long: int
    written: int
    mean: float
    best: float


class RewardRows:
    """What an actor of the pool does with a batch: rewards as JSON, null for an answer that is too long."""

    def __init__(self, model: Path, context: int, threads: int) -> None:
        self.chat, self.reward, self.context = Chat.of(model), ModelReward(model, threads), context

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Takes a column `asked`, each the JSON of messages and texts; gives a column `rewards`."""
        found: list[str] = []
        for asked in batch["asked"]:
            messages, texts = json.loads(asked)
            prompt, answers = self.chat.prompt(messages), [self.chat.answer(text) for text in texts]
            fits = [len(prompt) + len(answer) <= self.context for answer in answers]
            nameless = RolloutId(NO_EPOCH, "", 0)
            group = [
                Sample(nameless, ids, [], [], "stop", "") for ids, short in zip(answers, fits, strict=True) if short
            ]
            rewards = iter(self.reward.score([Prompt("", prompt)], [group])[0])
            found.append(json.dumps([next(rewards) if short else None for short in fits]))
        return {"rewards": found}


def score_file(
    recipe: Recipe, run: RunFolder, source: Path, out: Path, kind: Kind, at_least: float | None, actors: int
) -> ScoredAnswers:
    """Scores every answer of a file; Ray must be connected. The result is written to the side, then renamed.

    Args:
        source: JSONL, JSON or Parquet; a prompt in any layout that prompts are read in, and its answers as a list
            `completions`, or as the last turn of its messages.
        out: JSONL to write: for `rewards` the rows with a list of that name; for `best` conversations that end with the
            best answer, and its `reward`; for `pairs` TRL's messages, the best answer chosen and the worst rejected.
        at_least: for `best`, the lowest reward to keep (rejection sampling).
        actors: how many score at once.

    Raises:
        UserError: there is no reward model, or a row cannot be read; the message names it.
    """
    run.require("reward")
    asked = [ScoreRequestRow(prompt_of(row, where), _texts(row, where), row) for row, where in rows(str(source))]
    if not asked:
        raise UserError(f"{source} holds no rows")
    plan = make_plan(recipe)
    items = [{"asked": json.dumps([one.messages, one.texts])} for one in asked]
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = recipe.cluster.deadline_seconds
    scored = ray.data.from_items(items).map_batches(
        RewardRows,
        fn_constructor_args=(run.path("reward").absolute(), recipe.model.context, plan.reward.threads),
        batch_size=ROWS_TOGETHER,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=plan.reward.cpus,
        num_gpus=plan.reward.gpus,
    )
    rewards: list[list[float | None]] = []
    written = 0
    with atomic_write(out) as side, side.open("w", encoding="utf-8") as file:
        for one, row in zip(asked, scored.iter_rows(), strict=True):
            rewards.append(json.loads(row["rewards"]))
            for made in _made(one, rewards[-1], kind, at_least):
                file.write(json.dumps(made, ensure_ascii=False) + "\n")
                written += 1
    known = [[reward for reward in group if reward is not None] for group in rewards]
    flat, best = [reward for group in known for reward in group], [max(group) for group in known if group]
    return ScoredAnswers(
        prompts=len(asked),
        answers=len(flat),
        too_long=sum(map(len, rewards)) - len(flat),
        written=written,
        mean=float(np.mean(flat)) if flat else float("nan"),
        best=float(np.mean(best)) if best else float("nan"),
    )


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    texts = row.get("completions")
    last = (row.get("messages") or [{}])[-1]
    if texts is None and last.get("role") == "assistant":
        texts = [last["content"]]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: completions should be a list of texts, or messages end with the assistant's answer")
    return texts


def _made(
    asked: ScoreRequestRow, rewards: Sequence[float | None], kind: Kind, at_least: float | None
) -> Iterator[Mapping[str, Any]]:
    """The rows to write for one that was read: one or none."""
    if kind == "rewards":
        yield {**asked.row, "rewards": list(rewards)}
        return
    ranked = sorted(((reward, -index) for index, reward in enumerate(rewards) if reward is not None), reverse=True)
    answers = [(reward, [{"role": "assistant", "content": asked.texts[-index]}]) for reward, index in ranked]
    if not answers:
        return
    (high, best), (low, worst) = answers[0], answers[-1]
    if kind == "best" and (at_least is None or high >= at_least):
        yield {"messages": [*asked.messages, *best], "reward": high}
    if kind == "pairs" and high > low:
        yield {"prompt": asked.messages, "chosen": best, "rejected": worst, "margin": high - low}
