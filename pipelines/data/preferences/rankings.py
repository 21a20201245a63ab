"""Makes the table of rankings that the reward model learns from."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from actors.model.chat import Chat
from cluster.feedback import Completion, Feedback, FeedbackPrompt, Ranking, is_person
from cluster.recipe.training import Dpo, RewardModel
from cluster.run.atomic import atomic_write
from cluster.run.folder import fingerprint
from pipelines.data.balance import Loss, require_enough
from pipelines.data.preferences.annotators import JudgedAnswer, SyntheticAnnotator

SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "kind": pa.string(),
        "prompt_token_ids": pa.list_(pa.int32()),
        "answers": pa.list_(pa.list_(pa.int32())),
        "texts": pa.list_(pa.string()),
        "samples": pa.list_(pa.int32()),
        "ranks": pa.list_(pa.int32()),
        "grades": pa.list_(pa.int32()),
        "annotator": pa.string(),
        "split": pa.string(),
        "ranking_id": pa.int64(),
        "source": pa.string(),
        "good": pa.bool_(),
        "share": pa.float32(),
    }
)


def judged_answers(completions: Sequence[Completion], ends: Collection[int]) -> list[JudgedAnswer]:
    """Converts completions for a synthetic annotator; a finished one ends with an end token."""
    return [JudgedAnswer(one.text, one.token_ids[-1] in ends if one.token_ids else False) for one in completions]


def distinct_answers(completions: Sequence[Completion], ends: Collection[int], person: bool) -> list[Completion]:
    """Lists the first of the completions that an annotator cannot tell apart.

    People see texts; a synthetic annotator also sees whether the model ended the answer itself.
    """
    seen = judged_answers(completions, ends)
    first: dict[object, Completion] = {}
    for completion, answer in zip(completions, seen, strict=True):
        first.setdefault(answer.text if person else answer, completion)
    return list(first.values())


def rank_completions(
    prompt: FeedbackPrompt,
    completions: Sequence[Completion],
    ends: Collection[int],
    annotator: SyntheticAnnotator,
    seed: int,
) -> Ranking:
    """Ranks a prompt's different completions by a synthetic annotator.

    Its noise, and the order that counts as presented, depend on the seed and the prompt alone.

    Raises:
        CallFailedError: the annotator failed.
    """
    own_seed = f"labeller {seed} {prompt.id}"
    shown = distinct_answers(completions, ends, person=False)
    presented = [completion.id for completion in shown if completion.id is not None]
    ranking = annotator.judge(prompt.id, prompt.details, judged_answers(shown, ends), own_seed)
    chance = random.Random(f"presented {own_seed}")
    return Ranking(
        prompt_id=prompt.id,
        annotator=annotator.name,
        ranks={str(completion.id): value for completion, value in zip(shown, ranking.ranks, strict=True)},
        presented=chance.sample(presented, len(presented)),
    )


def ranking_row(
    prompt: FeedbackPrompt,
    completions: Sequence[Completion],
    ranking: Ranking,
    prompt_token_ids: list[int],
    ends: Collection[int],
    annotator: SyntheticAnnotator | None,
) -> dict[str, Any]:
    """Makes a row of rankings.parquet: one annotator's ranking of one prompt, with equal answers as one.

    Args:
        prompt: the prompt as stored.
        completions: the completions of the prompt; those that the annotator did not rank are left out, but for those
            that equal one that they did: these count as `samples` of it.
        ranking: the annotator's.
        prompt_token_ids: the rendered prompt.
        ends: the tokens that end a finished answer.
        annotator: the synthetic annotator, whose grades are added; None for people.

    Raises:
        CallFailedError: the annotator failed.
    """
    ranked = [completion for completion in completions if str(completion.id) in ranking.ranks]
    row = {
        "prompt_id": prompt.details.get("prompt", prompt.id),
        "kind": prompt.details.get("kind"),
        "prompt_token_ids": prompt_token_ids,
        "answers": [completion.token_ids for completion in ranked],
        "texts": [completion.text for completion in ranked],
        "ranks": [ranking.ranks[str(completion.id)] for completion in ranked],
        "grades": None,
        "annotator": ranking.annotator,
        "split": prompt.split,
        "ranking_id": ranking.id,
        "source": "function" if annotator else "rankings",
        "good": None,
        "share": 1.0,
    }
    if annotator:
        answers = judged_answers(ranked, ends)
        row["grades"] = annotator.judge(prompt.id, prompt.details, answers, "grades").grades
    merged, person = merge_identical(row), is_person(ranking.annotator)
    kinds = [_identity(text, answer, person) for text, answer in zip(merged["texts"], merged["answers"], strict=True)]
    given = Counter(_identity(completion.text, completion.token_ids, person) for completion in completions)
    return {**merged, "samples": [given[kind] for kind in kinds]}


def merge_identical(row: Mapping[str, Any]) -> dict[str, Any]:
    """Makes one answer of those in a row of rankings.parquet that its annotator could not tell apart.

    The others carry no pair, and where they were ranked apart all the same, their mean rank counts. `samples` says how
    many each answer stands for. Rows that an older version wrote, with identical answers apart, take the same form.
    """
    person, answers = is_person(row["annotator"]), list(zip(row["texts"], row["answers"], strict=True))
    groups: dict[object, list[int]] = defaultdict(list)
    for place, (text, answer) in enumerate(answers):
        groups[_identity(text, answer, person)].append(place)
    means = [mean(row["ranks"][place] for place in places) for places in groups.values()]
    levels, samples = sorted(set(means)), row.get("samples") or [1] * len(answers)
    merged = {name: [row[name][places[0]] for places in groups.values()] for name in ("texts", "answers")}
    return {
        **row,
        **merged,
        "ranks": [1 + levels.index(value) for value in means],
        "grades": row["grades"] and [row["grades"][places[0]] for places in groups.values()],
        "samples": [sum(samples[place] for place in places) for places in groups.values()],
    }


def _identity(text: str, answer: Sequence[int], person: bool) -> object:
    """Returns an answer as its annotator sees it. Its last token tells whether the model ended it."""
    return text if person else (text, *answer[-1:])


def read_rankings(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Reads the rows of rankings.parquet that rank two different answers or more, of one split if given."""
    filters = None if split is None else [("split", "==", split)]
    rows = (merge_identical(row) for row in parquet.read_table(path, filters=filters).to_pylist())
    return [row for row in rows if len(row["answers"]) > 1]


def read_unpaired(path: Path, split: str) -> list[dict[str, Any]]:
    """Reads the rows of rankings.parquet of one answer that is good or not; tables of earlier versions have none."""
    rows = parquet.read_table(path, filters=[("split", "==", split)]).to_pylist()
    return [row for row in rows if row.get("good") is not None]


def require_judgements(rankings: Path, split: str, settings: RewardModel | Dpo) -> None:
    """Requires a judgement of a split to learn from, and for KTO, which compares prompts, judgements of two prompts.

    Args:
        rankings: the file rankings.parquet.
        settings: the settings of the loss.

    Raises:
        UserError: there are fewer; the message says why each judgement of the file is none.
    """
    kto = isinstance(settings, Dpo) and settings.loss == "kto"
    section, needed = "dpo" if isinstance(settings, Dpo) else "reward", 2 if kto else 1
    found, prompts, others = Counter[str](), set[str](), 0
    for row in parquet.read_table(rankings).to_pylist():
        if row["split"] != split:
            others += 1
            continue
        why = _of_no_use(row, settings, kto)
        if not why and kto and row["prompt_id"] in prompts:
            why = "of the same prompt"
        if why:
            found[why] += 1
        else:
            prompts.add(row["prompt_id"])
        if len(prompts) >= needed or (not kto and not why):
            return
    remedies = {
        "one answer without a pair": "train on single answers by dpo.loss=kto",
        "weight 0": f"raise {section}.source_weights",
        "all answers tied": "raise collect.temperature",
        "identical answers": "raise collect.temperature",
    }
    losses = [Loss(why, count, remedies.get(why, "")) for why, count in found.items()]
    purpose = "that say which answer is better" + ", of two prompts for loss kto" * kto
    besides = [f"{others:,} of the other split"] if others else []
    what = f"judgements of the {split} prompts"
    require_enough(what, len(prompts), losses, needed, purpose, "collect more rankings", besides)


def _of_no_use(row: Mapping[str, Any], settings: RewardModel | Dpo, single: bool) -> str | None:
    """Says why nothing is learned from a judgement; None if something is."""
    if row.get("good") is not None and not single:
        return "one answer without a pair"
    if row.get("good") is None and len(set(ranks := merge_identical(row)["ranks"])) < 2:
        return "identical answers" if len(ranks) < 2 else "all answers tied"
    return None if judgement_weight(row, settings) > 0 else "weight 0"


def judgement_weight(row: Mapping[str, Any], settings: RewardModel | Dpo) -> float:
    """Returns the weight of a row of rankings.parquet in a loss: its annotator's times its source's, or its share of
    these where a judgement is several rows."""
    source = row.get("source") or ("rankings" if is_person(row["annotator"]) else "function")
    own = settings.annotator_weights.get(row["annotator"], 1.0) * float(getattr(settings.source_weights, source))
    share = row.get("share")
    return own if share is None else own * share


def sign_of(row: Mapping[str, Any]) -> int:
    """Returns 1 for the row of a single good answer, -1 for that of a bad one, and 0 for a ranking."""
    good = row.get("good")
    return 0 if good is None else 1 if good else -1


def write_rankings(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the table of rankings, atomically."""
    with atomic_write(path) as side:
        parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA), side)


def rankings_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hashes the ranks of all rows with their ids, annotators and prompts."""
    names = ("ranking_id", "prompt_id", "annotator", "ranks", "good")
    return fingerprint([[row.get(name) for name in names] for row in rows])


def tie_share(rows: Sequence[Mapping[str, Any]]) -> float:
    """Computes the share of pairs of answers to one prompt that are tied."""
    pairs = [first == second for row in rows for first, second in combinations(row["ranks"], 2)]
    return sum(pairs) / max(1, len(pairs))


@dataclass(frozen=True)
class ImportedRankings:
    """Rows of rankings.parquet, and the numbers of rankings left out: those that exceed the model's context, and those
    whose answers are all identical.
    """

    rows: list[dict[str, Any]]
    too_long: int
    identical: int


def imported_rankings(database: Feedback, chat: Chat, context: int, peoples: Sequence[Ranking]) -> ImportedRankings:
    """Reads the rankings by people of all prompts that `triptych feedback import` added.

    Args:
        database: the run's.
        chat: renders prompts and answers.
        context: the most tokens of a prompt with any of its answers.
        peoples: the judgements of people.

    Raises:
        UserError: there is none that fits.
    """
    prompts = {prompt.id: prompt for prompt in database.prompts() if "import" in prompt.details}
    rows, too_long, identical, unranked = [], 0, 0, 0
    for ranking in sorted(peoples, key=lambda row: (row.prompt_id, row.annotator)):
        prompt = prompts.get(ranking.prompt_id)
        if prompt is None:
            continue
        if not ranking.ranks:
            unranked += 1
            continue
        completions = sorted(prompt.completions, key=lambda row: row.index)
        for completion in completions:
            completion.token_ids = chat.answer(completion.text)
        row = ranking_row(prompt, completions, ranking, chat.prompt(prompt.messages), chat.end_ids, None)
        if len(row["answers"]) < 2:
            identical += 1
        elif len(row["prompt_token_ids"]) + max(map(len, row["answers"])) <= context:
            rows.append(row)
        else:
            too_long += 1
    losses = [
        Loss("without ranks", unranked),
        Loss("identical answers", identical),
        Loss("too long", too_long, f"raise model.context (now {context} tokens)"),
    ]
    add = "import a file with `triptych feedback import FORMAT FILE --run RUN`"
    require_enough("imported rankings", len(rows), losses, 1, "to learn from", add)
    return ImportedRankings(rows, too_long, identical)
