"""Scores a file of answers with the run's reward model, and selects training data by the rewards.

The best answer of each prompt is data for fine-tuning (best of n, rejection sampling: Touvron et al. 2023); best and
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
from actors.types import NO_EPOCH, Failure, Prompt, RolloutId, Sample, Verdict
from cluster.errors import StageError, UserError
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import RunFolder
from cluster.runtime.plan import make_plan
from pipelines.data.prompts import prompt_of
from pipelines.data.source_rows import read_rows
from pipelines.data.turns import Messages

OutputKind = Literal["rewards", "best", "pairs"]
BATCH_ROWS = 16
MAX_FAILED = 0.01


@dataclass(frozen=True)
class AnswersToScore:
    """A row of the file: its conversation, the answers to score, the row itself, and its file and line."""

    messages: Messages
    texts: list[str]
    row: Mapping[str, Any]
    place: str = ""


@dataclass(frozen=True)
class ScoreSummary:
    """Figures of a scored file.

    Attributes:
        prompts: rows read.
        answers: answers scored.
        too_long: answers not scored, because with their prompt they exceed the model's context.
        failures: why each answer that has no finite score has none, with the row's file and line.
        written: rows written.
        mean: mean reward of all answers.
        best: mean reward of each prompt's best answer.
    """

    prompts: int
    answers: int
    too_long: int
    failures: list[str]
    written: int
    mean: float
    best: float


class BatchScorer:
    """Scores batches of the file in an actor of a Ray Data pool.

    Args:
        model: the folder of the reward model.
        context: the most tokens of a prompt with its answer.
        threads: the number of threads for PyTorch.
    """

    def __init__(self, model: Path, context: int, threads: int) -> None:
        self.chat, self.reward, self.context = Chat.of(model), ModelReward(model, threads), context

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Scores a batch.

        Args:
            batch: a column `conversation`, each the JSON of messages, answers, and the row's file and line.

        Returns:
            A column `rewards`, each the JSON of a list, with null for an answer that is too long, and the reason in
            words for one without a finite score.
        """
        column: list[str] = []
        for conversation in batch["conversation"]:
            messages, texts, place = json.loads(conversation)
            prompt, answers = self.chat.prompt(messages), [self.chat.answer(text) for text in texts]
            fits = [len(prompt) + len(answer) <= self.context for answer in answers]
            nameless = RolloutId(NO_EPOCH, "", 0)
            group = [
                Sample(nameless, ids, [], [], "stop", "") for ids, short in zip(answers, fits, strict=True) if short
            ]
            verdicts = iter(self.reward.score([Prompt("", prompt, place)], [group])[0])
            column.append(json.dumps([_found(next(verdicts)) if short else None for short in fits]))
        return {"rewards": column}


def score_file(
    recipe: Recipe,
    run: RunFolder,
    source: Path,
    out: Path,
    kind: OutputKind,
    at_least: float | None,
    actors: int,
    max_failed: float = MAX_FAILED,
) -> ScoreSummary:
    """Scores every answer of a file; Ray must be connected. The output appears whole or not at all.

    Args:
        recipe: the run's.
        run: the run with the reward model.
        source: JSONL, JSON or Parquet. A row has a prompt in any layout that prompts are read in, and its answers as a
            list `completions`, or one answer as the last turn of its messages.
        out: JSONL to write: for `rewards` the rows, each with a list `rewards`; for `best` conversations that end with
            the best answer, each with its `reward`; for `pairs` TRL's messages, the best answer chosen and the worst
            rejected.
        kind: what to write.
        at_least: for `best`, the lowest reward to keep (rejection sampling).
        actors: how many actors score at once.
        max_failed: the largest share of answers that may have no finite score; these get the reward null.

    Raises:
        UserError: there is no reward model, or a row cannot be read; the message names the row.
        StageError: more answers than `max_failed` have no finite score.
    """
    run.require("reward")
    rows = [
        AnswersToScore(prompt_of(row, where), _answers_of(row, where), row, where)
        for row, where in read_rows(str(source))
    ]
    if not rows:
        raise UserError(f"{source} holds no rows")
    plan = make_plan(recipe)
    items = [{"conversation": json.dumps([row.messages, row.texts, row.place])} for row in rows]
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = recipe.cluster.deadline_seconds
    scored = ray.data.from_items(items).map_batches(
        BatchScorer,
        fn_constructor_args=(run.path("reward").absolute(), recipe.model.context, plan.reward.threads),
        batch_size=BATCH_ROWS,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=plan.reward.cpus,
        num_gpus=plan.reward.gpus,
    )
    failures = ScoreFailures(sum(len(row.texts) for row in rows), max_failed)
    rewards: list[list[float | None]] = []
    written = 0
    with atomic_write(out) as side, side.open("w", encoding="utf-8") as file:
        for row, result in zip(rows, scored.iter_rows(), strict=True):
            rewards.append(failures.left_out(json.loads(result["rewards"])))
            for output in _output_rows(row, rewards[-1], kind, at_least):
                file.write(json.dumps(output, ensure_ascii=False) + "\n")
                written += 1
    groups = [[reward for reward in group if reward is not None] for group in rewards]
    flat, best = [reward for group in groups for reward in group], [max(group) for group in groups if group]
    return ScoreSummary(
        prompts=len(rows),
        answers=len(flat),
        too_long=sum(map(len, rewards)) - len(flat) - len(failures.reasons),
        failures=failures.reasons,
        written=written,
        mean=float(np.mean(flat)) if flat else float("nan"),
        best=float(np.mean(best)) if best else float("nan"),
    )


class ScoreFailures:
    """Collects the reasons of answers that have no finite score.

    Args:
        total: the number of answers.
        limit: the largest share that may fail.
    """

    def __init__(self, total: int, limit: float) -> None:
        self.reasons: list[str] = []
        self._total, self._limit = total, limit

    def left_out(self, found: Sequence[float | str | None]) -> list[float | None]:
        """Replaces the reasons in the answers' results by None.

        Raises:
            StageError: there are too many.
        """
        self.reasons += [one for one in found if isinstance(one, str)]
        if len(self.reasons) > self._limit * self._total:
            raise StageError(
                f"{self.reasons[-1]}; {len(self.reasons)} of {self._total} answers have no finite score so far, and "
                f"--max-failed allows {self._limit:.0%}"
            )
        return [None if isinstance(one, str) else one for one in found]


def _found(verdict: Verdict) -> float | str:
    return verdict.reason if isinstance(verdict, Failure) else verdict


def _answers_of(row: Mapping[str, Any], where: str) -> list[str]:
    texts = row.get("completions")
    last = (row.get("messages") or [{}])[-1]
    if texts is None and last.get("role") == "assistant":
        texts = [last["content"]]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: completions must be a list of texts, or messages end with the assistant's answer")
    return texts


def _output_rows(
    row: AnswersToScore, rewards: Sequence[float | None], kind: OutputKind, at_least: float | None
) -> Iterator[Mapping[str, Any]]:
    """Yields the rows to write for a row that was read: one or none."""
    if kind == "rewards":
        yield {**row.row, "rewards": list(rewards)}
        return
    ranked = sorted(((reward, -index) for index, reward in enumerate(rewards) if reward is not None), reverse=True)
    answers = [(reward, [{"role": "assistant", "content": row.texts[-index]}]) for reward, index in ranked]
    if not answers:
        return
    (high, best), (low, worst) = answers[0], answers[-1]
    if kind == "best" and (at_least is None or high >= at_least):
        yield {"messages": [*row.messages, *best], "reward": high}
    if kind == "pairs" and high > low:
        yield {"prompt": row.messages, "chosen": best, "rejected": worst, "margin": high - low}
