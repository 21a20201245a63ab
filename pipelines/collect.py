"""The stage `collect`: the fine-tuned model answers each prompt several times, and annotators rank the answers.

Annotators are people, who rank on the label page, or a function that stands in for them. Rankings may also come from
files, without sampling.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sample, Sampling
from cluster import feedback
from cluster.feedback import Feedback, distinct_completions, is_person, open_feedback
from cluster.feedback.judged import PeoplesJudgements, Source, read_judgements, write_records
from cluster.recipe.base import MAX_TEMPERATURE, Call
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_text
from cluster.run.folder import RunFolder, fingerprint
from cluster.run.metrics import MetricsWriter, read_metrics
from cluster.run.stages import Result
from cluster.runtime.plan import make_plan
from pipelines.collect_rankings import (
    STORE_BATCH,
    CollectedPrompts,
    answer_variety,
    progress_bar,
    rank_synthetically,
    ranking_rows,
    stored_completions,
    wait_for_people,
)
from pipelines.data import rankings
from pipelines.data.annotators import SyntheticAnnotator, annotator_failures
from pipelines.data.balance import balance, require_enough
from pipelines.data.feedback.io import storable
from pipelines.data.live_prompts import LivePrompts, choose_live, is_there, keep_stored, live_number
from pipelines.data.people_rows import PeopleRows, people_rows, source_figures
from pipelines.data.prompts import all_prompts, prompt_losses, select_prompts, split_prompts
from pipelines.data.rankings import imported_rankings

QUEUE_BATCH = 2 * STORE_BATCH
SHOWN_FAILURES = 10
# The factor on the temperature each time that a prompt is sampled again, and the number added to the seed.
REDRAW_HEAT = 1.5
REDRAW_SEED = 1_000_003


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
        judged = read_judgements(database)
        rows = ranking_rows(synthetic, chat, database, prompts, failures, judged.rankings)
        if synthetic:
            # People's rankings count beside the function's.
            rows += ranking_rows(None, chat, database, prompts, failures, judged.rankings)
        others = people_rows(database, judged, set(prompts.rows), chat, recipe.model.context, settings.held_out_share)
        counts = stored_completions(database, prompts)
        if live:
            keep_stored(live, database, out)
        excluded = database.excluded()
    if failures.messages:
        console.print(f"{len(failures.messages)} prompts were left out, the last because {failures.messages[-1]}")
    sampled = read_metrics(out)
    seconds = sum(row["seconds"] for row in sampled)
    return Result(
        metrics={
            "prompts": len(prompts.rows),
            "prompts_asked_for": settings.prompts,
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
        judged = read_judgements(database)
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


def _record_judgements(judged: PeoplesJudgements, rows: Sequence[dict[str, Any]], others: PeopleRows, out: Path) -> str:
    """Writes judgements.jsonl: every judgement that was read, with the number of rows that it became. Returns its
    digest."""
    used: Counter[tuple[Source, int]] = Counter(
        ("rankings", row["ranking_id"]) for row in rows if is_person(row["annotator"])
    )
    return write_records(judged.records(used + others.used), out)


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


def round_mark(recipe: Recipe, weights: str) -> str:
    """Returns the beginning of the names of prompts that a model, by the checksum of its weights, answers."""
    settings = recipe.collect
    sampling = [settings.samples_per_prompt, settings.temperature, settings.max_tokens, recipe.seed]
    return fingerprint([weights, sampling])[:8]


def plan_round(recipe: Recipe, chat: Chat, weights: str, live: LivePrompts | None = None) -> CollectedPrompts:
    """Chooses, renders and splits the prompts of a round.

    Args:
        recipe: names the sources.
        chat: renders prompts.
        weights: checksum of the model that answers.
        live: the round's prompts of live traffic.

    Raises:
        UserError: fewer than two prompts fit.
    """
    settings = recipe.collect
    chosen = select_prompts(recipe, chat, all_prompts(recipe))
    others = live.chosen if live else []
    if len(chosen) + len(others) < 2:
        purpose = "one to train on and one to hold out"
        losses = prompt_losses(recipe, chat)
        require_enough("prompts of collect.sources", len(chosen) + len(others), losses, 2, purpose, "add prompts")
    split = split_prompts([text.id for text, _ in chosen], settings.held_out_share, recipe.seed) if chosen else {}
    split |= live.split if live else {}
    mark = round_mark(recipe, weights)
    numbered = [*enumerate(chosen), *((live_number(one[0].id), one) for one in others)]
    rows, token_ids = {}, {}
    for number, (text, rendered) in numbered:
        # Prompts are sampled and ranked in the order of their names or its reverse: the number interleaves the kinds.
        name = f"{mark} {number:05d} {text.id}"
        details = {**text.metadata, "prompt": text.id}
        rows[name] = feedback.FeedbackPrompt(id=name, messages=text.messages, details=details, split=split[text.id])
        token_ids[name] = rendered
    return CollectedPrompts(rows, token_ids)


def prompt_shortage(recipe: Recipe, chat: Chat, chosen: int) -> str:
    """Says how many prompts there were, and why, if fewer were chosen than `collect.prompts` asks for; else empty."""
    wanted = recipe.collect.prompts
    if chosen >= wanted:
        return ""
    needed = f"and collect.prompts asks for {wanted:,}"
    remedy = "add prompts, or lower collect.prompts"
    return balance("prompts of collect.sources", chosen, prompt_losses(recipe, chat), needed, remedy)


def sample_missing(
    recipe: Recipe, run: RunFolder, out: Path, database: Feedback, prompts: CollectedPrompts, weights: str
) -> None:
    """Samples the answers that the database lacks, and more to prompts whose answers all came out the same.

    These are sampled again up to `collect.redraws` times, each time at a higher temperature. An answer depends on the
    seed, its prompt and the time alone, so that a resumed round has the same answers as an uninterrupted one.
    """
    settings, plan = recipe.collect, make_plan(recipe)
    stored = sum(map(len, stored_completions(database, prompts).values())) // settings.samples_per_prompt
    metrics = MetricsWriter(out, resume_at=stored + 1)
    with ExitStack() as stack:
        fleet, progress = None, stack.enter_context(progress_bar())
        for times in range(settings.redraws + 1):
            names = prompts_to_sample(recipe, database, prompts, times)
            if not names:
                continue
            fleet = fleet or stack.enter_context(
                Fleet(
                    run.path("sft"),
                    recipe.rlhf.fleet.rollout_actors,
                    plan.rollout,
                    recipe.model.context,
                    recipe.seed,
                    recipe.cluster.deadline_seconds,
                )
            )
            sampling = sampling_of(recipe, times)
            task = progress.add_task("sampling again" if times else "sampling", total=len(names))
            for begin in range(0, len(names), QUEUE_BATCH):
                batch = names[begin : begin + QUEUE_BATCH]
                fleet.submit([Prompt(name, prompts.token_ids[name]) for name in batch], sampling)
            clock, done = time.monotonic(), 0
            while done < len(names):
                groups = fleet.collect(min(STORE_BATCH, len(names) - done))
                kept = [group for group in groups if is_there(database, prompts.rows[group[0].id.prompt])]
                database.add_completions(_completions(kept, sampling, weights, times * settings.samples_per_prompt))
                done += len(groups)
                stored += len(groups)
                seconds, clock = time.monotonic() - clock, time.monotonic()
                tokens = sum(len(sample.token_ids) for group in groups for sample in group)
                metrics.write(stored, seconds=seconds, tokens=tokens)
                progress.update(task, completed=done)


def prompts_to_sample(recipe: Recipe, database: Feedback, prompts: CollectedPrompts, times: int) -> list[str]:
    """Lists the prompts to sample after `times` earlier times: those not sampled again yet, and if `times` is not 0, of
    these only prompts whose answers so far are all identical.
    """
    wanted = recipe.collect.samples_per_prompt * (times + 1)
    return [
        name
        for name, completions in stored_completions(database, prompts).items()
        if len(completions) < wanted and (times == 0 or len(distinct_completions(completions)) == 1)
    ]


def sampling_of(recipe: Recipe, times: int) -> Sampling:
    """Returns the settings to sample with after `times` earlier times: another seed, and a higher temperature."""
    settings = recipe.collect
    temperature = min(MAX_TEMPERATURE, settings.temperature * REDRAW_HEAT**times)
    return Sampling(settings.samples_per_prompt, temperature, settings.max_tokens, recipe.seed + REDRAW_SEED * times)


def _completions(
    groups: Sequence[Sequence[Sample]], sampling: Sampling, weights: str, first_index: int
) -> list[feedback.Completion]:
    return [
        feedback.Completion(
            prompt_id=answer.id.prompt,
            index=first_index + answer.id.sample,
            text=answer.text,
            token_ids=answer.token_ids,
            model="sft",
            weights=weights,
            sampling=vars(sampling) | {"finish_reason": answer.finish_reason},
        )
        for group in groups
        for answer in group
    ]
