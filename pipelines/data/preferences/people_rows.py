"""Rows to learn from, of the judgements of people that are no rankings: votes, better answers, thumbs, and "all bad".

Votes of the compare page and better answers are rankings. Thumbs, and the answers to a prompt of which all are bad, are
unpaired: a row of one answer that is good or not.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.feedback import Completion, Feedback, FeedbackPrompt, PeoplesJudgements, Ranking, Thumb
from cluster.feedback.judged import Source
from cluster.run.folder import fingerprint
from pipelines.data.feedback.item import split_of
from pipelines.data.preferences.rankings import merge_identical

Row = dict[str, Any]


@dataclass
class PeopleRows:
    """Rows of rankings.parquet, and how many each judgement became, by its table and number there."""

    rows: list[Row] = field(default_factory=list)
    used: Counter[tuple[Source, int]] = field(default_factory=Counter)
    better: list[Row] = field(default_factory=list)

    def add(self, source: Source, number: int, rows: Sequence[Row]) -> None:
        """Adds the rows of one judgement."""
        self.rows += rows
        self.used[source, number] += len(rows)


@dataclass(frozen=True)
class RowMaker:
    """Makes rows from texts.

    Attributes:
        chat: renders prompts and answers.
        context: the most tokens of a prompt with an answer; longer rows are left out.
        split_of: returns the split of a prompt's messages.
    """

    chat: Chat
    context: int
    split_of: Callable[[list[dict[str, str]]], str]

    def row(self, source: str, judgement: Any, who: str, messages: list[dict[str, str]], texts: Sequence[str]) -> Row:
        """Makes a row without ranks.

        Raises:
            UserError: the template cannot render the messages, or the answers are too long.
        """
        prompt, answers = self.chat.prompt(messages), [self.chat.answer(text) for text in texts]
        if len(prompt) + max(map(len, answers)) > self.context:
            raise UserError("too long")
        return {
            "prompt_id": f"people {fingerprint(messages)[:16]}",
            "kind": None,
            "prompt_token_ids": prompt,
            "answers": answers,
            "texts": list(texts),
            # These answers do not count as samples of the fine-tuned model, which set the scale of rewards.
            "samples": [0] * len(texts),
            "ranks": [1] * len(texts),
            "grades": None,
            "annotator": who,
            "split": self.split_of(messages),
            "ranking_id": judgement,
            "source": source,
            "good": None,
            "share": 1.0,
        }

    def ranked(self, row: Row, ranks: Sequence[int]) -> list[Row]:
        """Gives a row its ranks; returns no row where its answers are identical."""
        merged = merge_identical({**row, "ranks": list(ranks)})
        return [merged] if len(merged["answers"]) > 1 else []


def people_rows(
    database: Feedback, judged: PeoplesJudgements, names: set[str], chat: Chat, context: int, held_out_share: float
) -> PeopleRows:
    """Makes the rows of all judgements but rankings.

    Args:
        database: the database with the prompts and answers.
        judged: the judgements, as of one moment.
        names: the prompts of the round, whose "all bad" and better answers count.
        chat: the model's template.
        context: the most tokens of a prompt with an answer.
        held_out_share: the share to hold out of the prompts that are of no round; a hash of a prompt decides.
    """
    prompts = {prompt.id: prompt for prompt in database.prompts()}
    # The same words are one prompt, on one side of the split, wherever they were asked.
    splits = {json.dumps(prompts[name].messages): prompts[name].split for name in names if name in prompts}

    def split_of_prompt(messages: list[dict[str, str]]) -> str:
        return splits.get(json.dumps(messages)) or split_of(messages, held_out_share)

    made, maker = PeopleRows(), RowMaker(chat, context, split_of_prompt)
    for vote in judged.votes:
        if vote.prompt_id in prompts:
            _add(made, "votes", vote.id, partial(_vote, maker, prompts[vote.prompt_id], vote))
    for thumb in judged.thumbs:
        _add(made, "thumbs", thumb.id, partial(_thumb, maker, thumb))
    for ranking in judged.rankings:
        if ranking.prompt_id in names and (ranking.all_bad or ranking.better):
            prompt = prompts[ranking.prompt_id]
            _add(made, "rankings", ranking.id, partial(_all_bad, maker, prompt, ranking))
            _add(made, "rankings", ranking.id, partial(_better, maker, prompt, ranking))
            if ranking.better:
                made.better.append({"messages": [*prompt.messages, {"role": "assistant", "content": ranking.better}]})
    return made


def source_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Counts the rows of each source, and how often its pairs are ordered as rankings order the same two answers.

    Returns:
        By source: `rows`, and `agreement` with the rankings of the same answers to the same prompt as the fields of
        `stats.Proportion`; None where no pair was also ranked.
    """
    from pipelines.evaluate.stats import proportion

    orders: dict[str, Counter[Any]] = defaultdict(Counter)
    for source, pair in _ordered_pairs(rows):
        orders[source][pair] += 1
    ranked = orders["rankings"] + orders["function"]
    found = {}
    for source, count in sorted(Counter(row["source"] for row in rows).items()):
        same = other = 0
        if source not in ("rankings", "function"):
            for (prompt, better, worse), times in orders[source].items():
                # Above 0 if most rankings order the two in the same way.
                balance = ranked[prompt, better, worse] - ranked[prompt, worse, better]
                same, other = same + times * (balance > 0), other + times * (balance < 0)
        figure = asdict(proportion(same, same + other)) if same + other else None
        found[source] = {"rows": count, "agreement": figure}
    return found


def _ordered_pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[Any, str, str]]]:
    """Lists the source, prompt, better and worse text of each pair; of unpaired rows, a good and a bad answer."""
    pairs: list[tuple[str, tuple[Any, str, str]]] = []
    unpaired: dict[tuple[str, Any], tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for row in rows:
        prompt = tuple(row["prompt_token_ids"])
        if row["good"] is not None:
            unpaired[row["source"], prompt][not row["good"]].add(row["texts"][0])
            continue
        for (one, text), (two, other) in combinations(zip(row["ranks"], row["texts"], strict=True), 2):
            if one != two:
                better, worse = (text, other) if one < two else (other, text)
                pairs.append((row["source"], (prompt, better, worse)))
    for (source, prompt), (good, bad) in unpaired.items():
        pairs += [(source, (prompt, one, other)) for one in sorted(good) for other in sorted(bad) if one != other]
    return pairs


def _add(made: PeopleRows, source: Source, number: int | None, make: Callable[[], list[Row]]) -> None:
    assert number is not None, "stored rows have an id"
    try:
        made.add(source, number, make())
    except UserError:
        # Too long for the model, or of roles that its template lacks: the judgement is recorded with 0 rows.
        made.used[source, number] += 0


def _sides(prompt: FeedbackPrompt, ranking: Ranking) -> list[Completion]:
    shown = set(ranking.presented)
    return [row for row in sorted(prompt.completions, key=lambda row: row.index) if row.id in shown or not shown]


def _vote(maker: RowMaker, prompt: FeedbackPrompt, vote: Ranking) -> list[Row]:
    sides = _sides(prompt, vote)
    if vote.all_bad:
        return _unpaired(maker, "votes", prompt, vote, [side.text for side in sides])
    row = maker.row("votes", vote.id, vote.annotator, prompt.messages, [side.text for side in sides])
    return maker.ranked(row, [vote.ranks[str(side.id)] for side in sides])


def _thumb(maker: RowMaker, thumb: Thumb) -> list[Row]:
    row = maker.row("thumbs", thumb.id, thumb.caller, thumb.messages, [thumb.answer])
    return [{**row, "good": thumb.good}]


def _all_bad(maker: RowMaker, prompt: FeedbackPrompt, ranking: Ranking) -> list[Row]:
    if not ranking.all_bad:
        return []
    return _unpaired(maker, "all_bad", prompt, ranking, [side.text for side in _sides(prompt, ranking)])


def _unpaired(maker: RowMaker, source: str, prompt: FeedbackPrompt, ranking: Ranking, texts: list[str]) -> list[Row]:
    """Makes a row of each answer, none of them good, which together weigh as much as one judgement."""
    different = list(dict.fromkeys(texts))
    return [
        {
            **maker.row(source, ranking.id, ranking.annotator, prompt.messages, [text]),
            "good": False,
            "share": 1 / len(different),
        }
        for text in different
    ]


def _better(maker: RowMaker, prompt: FeedbackPrompt, ranking: Ranking) -> list[Row]:
    """Pairs the answer that a person wrote with the best of those shown, or with each of them if all are bad."""
    if not ranking.better:
        return []
    sides = _sides(prompt, ranking)
    if ranking.ranks:
        sides = [side for side in sides if ranking.ranks.get(str(side.id)) == min(ranking.ranks.values())]
    texts = [text for text in dict.fromkeys(side.text for side in sides) if text != ranking.better]
    rows = [
        maker.row("better", ranking.id, ranking.annotator, prompt.messages, [ranking.better, text]) for text in texts
    ]
    return [{**pair, "share": 1 / len(texts)} for row in rows for pair in maker.ranked(row, [1, 2])]
