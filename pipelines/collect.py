"""The stage `collect`: the fine-tuned model answers each prompt several times, and annotators rank the answers.

Annotators are people, who rank on the label page, or a function that stands in for them. Rankings may also come from
files, without sampling. `collect_answers` chooses the prompts and samples the answers; what is done with rankings is
here.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.model.chat import Chat
from cluster import feedback
from cluster.errors import StageError
from cluster.feedback import Feedback, PeoplesJudgements, Ranking, is_person, open_feedback
from cluster.feedback.judged import Source, records_of, write_records
from cluster.recipe.base import Call
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_text
from cluster.run.folder import RunFolder
from cluster.run.metrics import read_metrics
from cluster.run.stages import Result
from cluster.runtime.plan import make_plan
from pipelines.collect_answers import (
    STORE_BATCH,
    CollectedPrompts,
    answer_variety,
    plan_round,
    progress_bar,
    prompt_shortage,
    round_mark,
    sample_missing,
    stored_completions,
)
from pipelines.data.call_failures import CallFailedError, CallFailures
from pipelines.data.feedback.io import storable
from pipelines.data.live_prompts import choose_live, keep_stored
from pipelines.data.preferences import rankings
from pipelines.data.preferences.annotators import SyntheticAnnotator, annotator_failures
from pipelines.data.preferences.ask_order import last_reward_model, order_prompts, write_order
from pipelines.data.preferences.people_rows import PeopleRows, people_rows, source_figures
from pipelines.data.preferences.rankings import imported_rankings
from pipelines.reward_model import reward_scorer

# Seconds between two looks for people's rankings.
POLL_SECONDS = 2.0
SHOWN_FAILURES = 10


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Runs the stage: samples answers, waits for rankings and writes `rankings.parquet`.

    Answers and rankings are kept in the run's feedback database.

    Raises:
        UserError: there are too few prompts, or the synthetic annotator cannot judge one.
        StageError: people had not ranked enough by the deadline, or the synthetic annotator failed.
    """
    settings, console = recipe.collect, Console()
    chat = Chat.of(run.path("sft"))
    if settings.annotator == "imported":
        return _import_rankings(recipe, run, out, chat)
    weights = run.require("sft").weights or ""
    own, limits = settings.annotator, (settings.timeout_seconds, settings.at_once)
    synthetic = SyntheticAnnotator.of(own, *limits) if isinstance(own, Call) else None
    with open_feedback(run.feedback_url) as database:
        live = choose_live(recipe, chat, database, round_mark(recipe, weights), out)
    prompts = plan_round(recipe, chat, weights, live)
    if shortage := prompt_shortage(recipe, chat, len(prompts.rows) - (len(live.chosen) if live else 0)):
        console.print(shortage, markup=False, highlight=False, soft_wrap=True)
    if synthetic:
        details = {name: row.details for name, row in prompts.rows.items()}
        synthetic.check(details, settings.max_failed_rankings)
    with open_feedback(run.feedback_url) as database:
        database.add_prompts(list(prompts.rows.values()))
        sample_missing(recipe, run, out, database, prompts, weights)
        variety = answer_variety(database, prompts, synthetic, chat.end_ids)
        console.print(variety.sentence())
        mark, models = round_mark(recipe, weights), last_reward_model(run)
        order = order_prompts(recipe, database, chat, mark, models, lambda: reward_scorer(recipe, make_plan(recipe)))
        if order:
            console.print(order, markup=False, highlight=False, soft_wrap=True)
        failures = annotator_failures(len(prompts.rows), settings.max_failed_rankings)
        if synthetic:
            console.print(
                "[bold]A synthetic annotator ranks the answers, in place of people[/bold]: "
                f"{synthetic.name.removeprefix(feedback.CODE).removesuffix(')')}"
            )
            rank_synthetically(synthetic, recipe.seed, chat, database, prompts, failures)
        else:
            wait_for_people(database, prompts, settings.min_rankings, recipe.cluster.deadline_seconds)
        # Read once: judgements that arrive from now on are those of the next round.
        judged = database.peoples_judgements()
        rows = ranking_rows(synthetic, chat, database, prompts, failures, judged.rankings)
        if synthetic:
            # People's rankings count beside the function's.
            rows += ranking_rows(None, chat, database, prompts, failures, judged.rankings)
        others = people_rows(database, judged, set(prompts.rows), chat, recipe.model.context, settings.held_out_share)
        counts = stored_completions(database, prompts)
        if live:
            keep_stored(live, database, out)
        excluded = database.excluded()
        asked = [row for row in database.prompts() if row.id in prompts.rows and row.place is not None]
        choice = {**write_order(asked, database.judged_prompts(), out), "order": order} if order else {}
    if failures.messages:
        console.print(f"{len(failures.messages)} prompts were left out, the last because {failures.messages[-1]}")
    sampled = read_metrics(out)
    seconds = sum(row["seconds"] for row in sampled)
    return Result(
        metrics={
            "prompts": len(prompts.rows),
            "prompts_asked_for": settings.prompts,
            **choice,
            "advice": shortage,
            **({"live_prompts": live.counts} if live else {}),
            "completions": sum(map(len, counts.values())),
            "prompts_by_distinct_answers": {str(number): count for number, count in sorted(variety.prompts.items())},
            **_write_rankings(rows, others, out),
            "failed_rankings": len(failures.messages),
            "failures": failures.messages[:SHOWN_FAILURES],
            "excluded": excluded,
            "annotator": settings.annotator.function if isinstance(settings.annotator, Call) else settings.annotator,
            "annotator_arguments": settings.annotator.arguments if isinstance(settings.annotator, Call) else {},
            "stands_in_for_people": synthetic is not None,
            "sampling_seconds": seconds,
            "tokens_per_second": sum(row["tokens"] for row in sampled) / seconds if seconds else 0.0,
        },
        judgements=_record_judgements(judged, rows, others, out),
    )


def _import_rankings(recipe: Recipe, run: RunFolder, out: Path, chat: Chat) -> Result:
    """Runs the stage with rankings imported from files, without sampling."""
    with open_feedback(run.feedback_url) as database:
        judged = database.peoples_judgements()
        imported = imported_rankings(database, chat, recipe.model.context, judged.rankings)
        names = {prompt.id for prompt in database.prompts() if "import" in prompt.details}
        others = people_rows(database, judged, names, chat, recipe.model.context, recipe.collect.held_out_share)
        excluded = database.excluded()
    return Result(
        metrics={
            "prompts": len({row["prompt_id"] for row in imported.rows}),
            **_write_rankings(imported.rows, others, out),
            "too_long": imported.too_long,
            "identical": imported.identical,
            "excluded": excluded,
            "annotator": recipe.collect.annotator,
            "stands_in_for_people": False,
        },
        judgements=_record_judgements(judged, imported.rows, others, out),
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


def _write_rankings(rows: Sequence[dict[str, Any]], others: PeopleRows, out: Path) -> dict[str, Any]:
    """Writes rankings.parquet and better.jsonl, answers that people wrote, and returns the figures for the manifest."""
    everything = [*rows, *others.rows]
    rankings.write_rankings(everything, out / "rankings.parquet")
    if others.better:
        lines = (json.dumps(storable(row), ensure_ascii=False) + "\n" for row in others.better)
        write_text(out / "better.jsonl", "".join(lines))
    return {
        "rankings": len(rows),
        "sources": source_figures(everything),
        "better_answers": len(others.better),
        "rankings_digest": rankings.rankings_digest(everything),
        "rankings_by": dict(sorted(Counter(row["annotator"] for row in rows).items())),
        "tie_share": rankings.tie_share(rows),
    }


def _record_judgements(judged: PeoplesJudgements, rows: Sequence[dict[str, Any]], others: PeopleRows, out: Path) -> str:
    """Writes judgements.jsonl: every judgement that was read, with the number of rows that it became. Returns its
    digest."""
    used: Counter[tuple[Source, int]] = Counter(
        ("rankings", row["ranking_id"]) for row in rows if is_person(row["annotator"])
    )
    return write_records(records_of(judged, used + others.used), out)
