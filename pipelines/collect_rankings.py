"""The rankings of a round of collection: the prompts worth ranking, the rankings by a function or by people, and the
rows to learn from."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actors.model.chat import Chat
from cluster import feedback
from cluster.errors import StageError
from cluster.feedback import Feedback, Ranking
from pipelines.data import rankings
from pipelines.data.annotators import SyntheticAnnotator
from pipelines.data.call_failures import CallFailedError, CallFailures

POLL_SECONDS = 2.0
# Rankings, or prompts with their answers, that are stored at once: an interruption loses at most these.
STORE_BATCH = 32


@dataclass(frozen=True)
class CollectedPrompts:
    """The prompts of one round of collection, by name.

    Names depend on the weights and the sampling, so that no ranking mixes answers of different ones.

    Attributes:
        rows: the rows for the database, by id.
        token_ids: rendered, for the engines.
    """

    rows: dict[str, feedback.FeedbackPrompt]
    token_ids: dict[str, list[int]]


def stored_completions(database: Feedback, prompts: CollectedPrompts) -> dict[str, list[feedback.Completion]]:
    """Reads from the database the completions of every prompt of the round, by its name, in order of their index."""
    return {
        row.id: sorted(row.completions, key=lambda completion: completion.index)
        for row in database.prompts()
        if row.id in prompts.rows
    }


@dataclass(frozen=True)
class AnswerVariety:
    """Numbers of different answers to the prompts of a round, as the annotators see them.

    Attributes:
        prompts: the number of prompts with each number of different answers.
        informative: the names of the prompts with two or more different answers; no other can show which answer is
            better.
    """

    prompts: Mapping[int, int]
    informative: frozenset[str]

    def sentence(self) -> str:
        """Says how many prompts are not ranked, and how many have but two answers to choose from."""
        return (
            f"{self.prompts.get(1, 0):,} of {sum(self.prompts.values()):,} prompts have identical answers and are not "
            f"ranked; {self.prompts.get(2, 0):,} have two different ones, {len(self.informative):,} two or more"
        )


def answer_variety(
    database: Feedback, prompts: CollectedPrompts, annotator: SyntheticAnnotator | None, ends: Collection[int]
) -> AnswerVariety:
    """Counts the different answers to each prompt of a round.

    Args:
        database: the database that holds the answers.
        prompts: the prompts of the round.
        annotator: the annotator who ranks them; None for people, who cannot tell answers with the same text apart.
        ends: the tokens that end a finished answer.
    """
    person = annotator is None
    different = {
        name: len(rankings.distinct_answers(completions, ends, person))
        for name, completions in stored_completions(database, prompts).items()
    }
    return AnswerVariety(
        Counter(different.values()), frozenset(name for name, number in different.items() if number > 1)
    )


def rank_synthetically(
    annotator: SyntheticAnnotator,
    seed: int,
    chat: Chat,
    database: Feedback,
    prompts: CollectedPrompts,
    failures: CallFailures,
) -> None:
    """Adds a synthetic annotator's rankings to the database, which ignores those that it has. Prompts whose answers are
    identical, and those that the annotator fails on, are left out.

    Raises:
        StageError: the annotator failed on too many prompts; the rankings so far are kept.
    """
    informative = answer_variety(database, prompts, annotator, chat.end_ids).informative
    known = {ranking.prompt_id for ranking in database.rankings() if ranking.annotator == annotator.name}
    completions = stored_completions(database, prompts)
    names = [name for name in completions if name in informative - known]
    found = list[Ranking]()

    def ranked(name: str) -> Ranking:
        return rankings.rank_completions(prompts.rows[name], completions[name], chat.end_ids, annotator, seed)

    try:
        for ranking in annotator.each(ranked, names):
            if isinstance(ranking, CallFailedError):
                failures.add(ranking)
                continue
            found.append(ranking)
            failures.passed()
            if len(found) >= STORE_BATCH:
                # A function may take seconds for each, all of which a kill would lose.
                database.add_rankings(found)
                found.clear()
    finally:
        database.add_rankings(found)


def wait_for_people(database: Feedback, prompts: CollectedPrompts, minimum: int, seconds: float) -> None:
    """Waits until people have made enough rankings of prompts whose answers differ.

    Args:
        database: the database that gets their rankings.
        prompts: the prompts of the round.
        minimum: rankings to wait for.
        seconds: the longest wait.

    Raises:
        StageError: there were fewer at the deadline; the same command continues the wait.
    """
    end, completions = time.monotonic() + seconds, stored_completions(database, prompts)
    texts = {str(one.id): one.text for group in completions.values() for one in group}
    with progress_bar() as progress:
        task = progress.add_task("rankings by people", total=minimum)
        while (count := sum(_tells_apart(row, texts) for row in _rankings(database, prompts, None))) < minimum:
            progress.update(task, completed=count)
            if time.monotonic() >= end:
                raise StageError(
                    f"after {seconds / 60:.0f} minutes (cluster.deadline_minutes) people have made {count} of "
                    f"{minimum} rankings; these are kept, and the same command continues the wait"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        progress.update(task, completed=count)


def ranking_rows(
    annotator: SyntheticAnnotator | None,
    chat: Chat,
    database: Feedback,
    prompts: CollectedPrompts,
    failures: CallFailures,
    peoples: Sequence[Ranking],
) -> list[dict[str, Any]]:
    """Makes the rows of rankings.parquet, in the order of the prompts: a synthetic annotator's, or people's without
    one. Rankings of identical answers, of earlier versions, are left out.

    Args:
        annotator: the synthetic one, or None.
        chat: the model's template.
        database: the database with the answers, and the synthetic annotator's rankings.
        prompts: the prompts of the round.
        failures: counts the prompts that the annotator failed on.
        peoples: the judgements of people.

    Raises:
        StageError: the annotator failed on too many prompts.
    """
    completions, rows = stored_completions(database, prompts), []
    given = (
        _rankings(database, prompts, annotator)
        if annotator
        else [one for one in peoples if one.ranks and one.prompt_id in prompts.rows and one.prompt_id in completions]
    )

    def made(ranking: Ranking) -> dict[str, Any]:
        name = ranking.prompt_id
        prompt, ids = prompts.rows[name], prompts.token_ids[name]
        return rankings.ranking_row(prompt, completions[name], ranking, ids, chat.end_ids, annotator)

    in_turn = sorted(given, key=lambda one: (one.prompt_id, one.annotator))
    for row in annotator.each(made, in_turn) if annotator else map(made, in_turn):
        if isinstance(row, CallFailedError):
            failures.add(row)
            continue
        failures.passed()
        if len(row["answers"]) > 1:
            rows.append(row)
    return rows


def _tells_apart(ranking: Ranking, texts: Mapping[str, str]) -> bool:
    """Tells whether a ranking is of two different texts or more; one that an older version stored may not be."""
    return len({texts[completion] for completion in ranking.ranks}) > 1


def _rankings(database: Feedback, prompts: CollectedPrompts, annotator: SyntheticAnnotator | None) -> list[Ranking]:
    rankings_of_round = [ranking for ranking in database.rankings() if ranking.prompt_id in prompts.rows]
    if annotator:
        return [ranking for ranking in rankings_of_round if ranking.annotator == annotator.name]
    return [ranking for ranking in rankings_of_round if feedback.is_person(ranking.annotator)]


def progress_bar() -> Progress:
    """Makes a bar that shows the number of items done, and the time since its start."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
