"""Compares two models by a judge, whose agreement with people comes first, or by people themselves."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from cluster.errors import StageError, UserError
from cluster.run.atomic import write_json
from pipelines.evaluate.judge.asking import Answering, JudgedPair, judged_pairs
from pipelines.evaluate.judge.pairs import Pair
from pipelines.evaluate.judge.statistics import JudgeAgreement, WinRate, agreement, position_bias, win_rate
from pipelines.evaluate.stats import interval_text
from pipelines.evaluate.tasks.statistics import Estimate

# The largest share of pairs on which a judge may give no verdict.
MAX_WITHOUT_VERDICT = 0.1


def compare_by_judge(
    judge: Answering,
    name: str,
    pairs: Sequence[Pair],
    people: Sequence[Pair],
    least: float,
    accepted: str | None,
    out: Path,
    console: Console,
) -> WinRate:
    """Checks a judge against people, then lets it compare two models' answers; writes and prints both.

    Args:
        judge: a model that answers in a chat.
        name: the judge's.
        pairs: the first model's answers with the second's.
        people: pairs on which people have decided; perhaps none.
        least: the least agreement with people, at the lower end of its interval.
        accepted: the name of a judge that is used in spite of it.
        out: the file to write, JSON.
        console: the console to print on.

    Raises:
        UserError: the judge agrees less with people, or there is no pair of theirs, and it is not `accepted`.
        StageError: it gives no verdict on more than `MAX_WITHOUT_VERDICT` of the pairs.
    """
    found = agreement(_judged(judge, people)) if people else None
    console.print(_agreement_text(name, found), markup=False, soft_wrap=True)
    low = None if found is None else found.agreement.low
    if (low is None or low < least) and accepted != name:
        reason = (
            "there are no pairs on which people decided to compare it with"
            if found is None
            else f"its agreement may be as low as {low or 0:.2f}, and --least is {least:g}"
        )
        raise UserError(f"{name} is not taken as a judge: {reason}. To use it nevertheless: --accept-judge {name}")
    judged = _judged(judge, pairs)
    rows = [(one, one.outcome) for one in judged]
    rate = win_rate(
        [outcome for _, outcome in rows if outcome is not None],
        [(len(one.pair.first), len(one.pair.second)) for one, outcome in rows if outcome is not None],
    )
    models = pairs[0].models
    console.print(_win_text(models, rate, f"by {name}"), markup=False, soft_wrap=True)
    bias = position_bias(judged)
    write_json(
        out,
        {
            "judge": name,
            "models": models,
            "agreement": found and asdict(found),
            "win_rate": asdict(rate),
            "first_shown": bias and asdict(bias),
            "without_verdict": sum(outcome is None for _, outcome in rows),
            "pairs": [{**asdict(one), "outcome": outcome} for one, outcome in rows],
        },
    )
    return rate


def compare_by_votes(pairs: Sequence[Pair], out: Path, console: Console) -> WinRate:
    """Computes the win rate of the first model by people's votes; writes and prints it.

    Raises:
        UserError: nobody compared the two.
    """
    voted = [(one, one.outcome) for one in pairs if one.outcome is not None]
    if not voted:
        raise UserError("nobody has compared these two models on the page /compare")
    rate = win_rate([outcome for _, outcome in voted], [(len(one.first), len(one.second)) for one, _ in voted])
    console.print(_win_text(voted[0][0].models, rate, "by people's votes"), markup=False, soft_wrap=True)
    write_json(out, {"judge": "people", "models": voted[0][0].models, "win_rate": asdict(rate)})
    return rate


def _judged(judge: Answering, pairs: Sequence[Pair]) -> list[JudgedPair]:
    judged = judged_pairs(judge, pairs)
    without = sum(one.outcome is None for one in judged)
    if without > MAX_WITHOUT_VERDICT * len(judged):
        raise StageError(
            f"the judge gave no verdict on {without} of {len(judged)} pairs: it must end its answer with [[A]], [[B]] "
            "or [[C]]"
        )
    return judged


def _agreement_text(name: str, found: JudgeAgreement | None) -> str:
    if found is None:
        return f"{name}: no pair on which people decided was judged."
    lines = [f"{name} agrees with people in {_with_interval(found.agreement)} of {found.agreement.n} pairs"]
    for words, part in (("longer", found.longer_preferred), ("shorter", found.shorter_preferred)):
        if part:
            lines.append(f"where people prefer the {words} answer in {_with_interval(part)} of {part.n}")
    text = "; ".join(lines) + ". "
    if found.longer_by_judge is not None and found.longer_by_people is not None:
        text += f"It prefers the longer answer in {found.longer_by_judge:.0%}, people in {found.longer_by_people:.0%}. "
    text += f"Two orders gave two verdicts in {found.inconsistent:.0%} of pairs"
    if bias := found.first_shown:
        biased = bias.low > 0.5 or bias.high < 0.5
        text += f", and {bias.value:.0%} of its verdicts ({bias.low:.0%} to {bias.high:.0%}) are for the answer shown "
        text += "first" + (": it goes by the position" if biased else "")
    without = f" {found.without_verdict} pairs got no verdict." if found.without_verdict else ""
    return f"{text}.{without}"


def _win_text(models: tuple[str, str], rate: WinRate, by: str) -> str:
    value, low, high = rate.at_equal_length
    return (
        f"{models[0]} against {models[1]} {by}: wins {_with_interval(rate.raw)} of {rate.raw.n} pairs, ties counting "
        f"half ({rate.ties:.0%} are ties); at equal length {value:.0%} ({interval_text(low, high)})."
    )


def _with_interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.0%}"
    return f"{found.value:.0%} ({interval_text(max(0.0, found.low), min(1.0, found.high))})"
