"""The answers of a round of collection: its prompts, and the sampling of what the annotators rank."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sample, Sampling
from cluster import feedback
from cluster.feedback import Feedback, distinct_completions
from cluster.recipe.base import MAX_TEMPERATURE
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder, fingerprint
from cluster.run.metrics import MetricsWriter
from cluster.runtime.plan import make_plan
from pipelines.data.balance import balance, require_enough
from pipelines.data.live_prompts import LivePrompts, is_there, live_number
from pipelines.data.preferences import rankings
from pipelines.data.preferences.annotators import SyntheticAnnotator
from pipelines.data.prompts import all_prompts, prompt_losses, select_prompts, split_prompts

# Rankings, or prompts with their answers, that are stored at once: an interruption loses at most these.
STORE_BATCH = 32
QUEUE_BATCH = 2 * STORE_BATCH
# The factor on the temperature each time that a prompt is sampled again, and the number added to the seed.
REDRAW_HEAT = 1.5
REDRAW_SEED = 1_000_003


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


def stored_completions(database: Feedback, prompts: CollectedPrompts) -> dict[str, list[feedback.Completion]]:
    """Reads from the database the completions of every prompt of the round, by its name, in order of their index."""
    return {
        row.id: sorted(row.completions, key=lambda completion: completion.index)
        for row in database.prompts()
        if row.id in prompts.rows
    }


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


def progress_bar() -> Progress:
    """Makes a bar that shows the number of items done, and the time since its start."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
