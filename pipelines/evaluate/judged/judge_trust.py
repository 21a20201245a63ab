"""Whether a judge may stand in for people: its agreement with them on pairs that both judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import UserError
from pipelines.evaluate.stats import Proportion, proportion

# A coin agrees with people in half of the pairs that neither ties; people with each other in about two thirds (Zheng et
# al. 2023, https://arxiv.org/abs/2306.05685, table 5).
LEAST_AGREEMENT = 0.6


@dataclass(frozen=True)
class Agreement:
    """A judge's agreement with people.

    Attributes:
        judge: the share of pairs in which the judge prefers the answer that people prefer. Pairs that people tie are
            left out, and a judge's tie counts as no agreement.
        people: the share in which a person prefers what the others prefer; None where nobody judged a pair twice.
        people_ties: pairs left out because people tie.
    """

    judge: Proportion
    people: Proportion | None
    people_ties: int


def judge_agreement(judge: Sequence[float], people: Sequence[Sequence[float]]) -> Agreement:
    """Compares a judge with people.

    Args:
        judge: [n], the judge's score of each pair's first answer over both orders: above 0.5 it prefers that one.
        people: [n], each person's verdict on the pair: 1 for its first answer, 0 for the other, 0.5 for a tie.

    Raises:
        UserError: people prefer neither answer in every pair.
    """
    hits = pairs = ties = same = shared = 0
    for score, votes in zip(judge, people, strict=True):
        wanted = _preferred(sum(votes) / len(votes)) if votes else 0
        if not wanted:
            ties += 1
            continue
        pairs += 1
        hits += _preferred(score) == wanted
        for index, vote in enumerate(votes):
            others = [other for number, other in enumerate(votes) if number != index]
            if others and _preferred(vote) and (majority := _preferred(sum(others) / len(others))):
                shared += 1
                same += _preferred(vote) == majority
    if not pairs:
        raise UserError("people tie every pair: there is nothing to compare a judge with")
    return Agreement(proportion(hits, pairs), proportion(same, shared) if shared else None, ties)


def require_trusted_judge(name: str, agreement: Agreement, accepted: Sequence[str]) -> None:
    """Refuses a judge whose agreement with people may be below `LEAST_AGREEMENT`.

    Args:
        name: the judge's.
        agreement: its value of `judge_agreement`.
        accepted: the judges that are used whatever they agree with.

    Raises:
        UserError: the lower end of the interval is below the bound, and the judge is not accepted by name.
    """
    found = agreement.judge
    if name not in accepted and found.low < LEAST_AGREEMENT:
        people = f", where people agree in {agreement.people.value:.0%}" if agreement.people else ""
        raise UserError(
            f"the judge {name} agrees with people in {found.value:.0%} of {found.n} pairs (95% interval "
            f"{found.low:.0%} to {found.high:.0%}){people}; at least {LEAST_AGREEMENT:.0%} must be sure. Take another "
            "judge, judge more pairs, or accept it by name"
        )


def _preferred(score: float) -> int:
    return (score > 0.5) - (score < 0.5)
