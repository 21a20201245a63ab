"""Audits reward functions and endpoints before training: does a cheap hack score as high as an honest answer?"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from actors.types import NO_EPOCH, Failure, Prompt, RewardInput, RolloutId, Sample, Scores, Verdict, prompt_id
from cluster.errors import UserError
from cluster.recipe.rlhf.rewards import Reward
from pipelines.evaluate.gaming.hacks import HACKS, AuditCase, hacked_answers
from pipelines.evaluate.stats import Proportion, proportion

# Other prompts whose answers a hack takes.
OTHERS = 4
# Hacks that a policy finds without learning anything: RLHF refuses a reward that they satisfy.
REFUSED = ("empty", "echo")
# Scores the samples of each prompt, as `FunctionReward.score` and `HttpReward.score` do.
ScoreAnswers = Callable[[Sequence[Prompt], Sequence[Sequence[Sample]], Sequence[RewardInput]], Scores]


@dataclass(frozen=True)
class HackResult:
    """The result of one hack against one reward.

    Attributes:
        mean: the mean of its scores; None where all failed.
        above: the share of prompts at which it scores higher than honest answers do on average.
        satisfied: the share of prompts at which it scores as high as the best honest answer, and higher than the lowest
            score that the audit saw.
        failures: hacks that got no score, which the shares leave out.
    """

    mean: float | None
    above: Proportion | None
    satisfied: Proportion | None
    failures: int

    @property
    def pays(self) -> bool:
        """Whether one of the shares is above one half beyond chance."""
        return any(share is not None and share.low > 0.5 for share in (self.above, self.satisfied))


@dataclass(frozen=True)
class RewardAudit:
    """The audit of one reward.

    Attributes:
        honest: the mean score of honest answers; None where all failed.
        cases: prompts with at least one honest answer that got a score.
        failures: honest answers that got no score, and the last one's reason.
        constant: whether every answer got the same score, so that the audit tells nothing.
        hacks: the results by the names of `HACKS`; those that do not apply are missing.
    """

    honest: float | None
    cases: int
    failures: int
    reason: str
    constant: bool
    hacks: dict[str, HackResult]

    @property
    def paying(self) -> list[str]:
        """The hacks that pay."""
        return [name for name, result in self.hacks.items() if result.pays]


def audit_reward(score: ScoreAnswers, cases: Sequence[AuditCase], keywords: str, weight: float = 1.0) -> RewardAudit:
    """Scores honest answers and hacks of every prompt.

    Args:
        score: the reward.
        cases: prompts with honest answers.
        keywords: the value of `code_keywords`.
        weight: the weight of the reward in the sum; if it is negative, low scores are good.
    """
    hacks = [hacked_answers(case, list(_others(cases, number)), keywords) for number, case in enumerate(cases)]
    texts = [[*case.honest, *own.values()] for case, own in zip(cases, hacks, strict=True)]
    prompts = [Prompt(prompt_id(f"audit {number}"), [], case.input.text) for number, case in enumerate(cases)]
    groups = [
        [_sample(prompt, text, n) for n, text in enumerate(own)] for prompt, own in zip(prompts, texts, strict=True)
    ]
    sign = -1.0 if weight < 0 else 1.0
    verdicts = [
        [verdict if isinstance(verdict, Failure) else sign * verdict for verdict in row]
        for row in score(prompts, groups, [case.input for case in cases])
    ]
    rows = [
        _CaseScores.of(row, len(case.honest), list(own)) for row, case, own in zip(verdicts, cases, hacks, strict=True)
    ]
    judged = [row for row in rows if row.honest]
    honest = [value for row in judged for value in row.honest]
    every = honest + [value for row in judged for value in row.hacks.values() if not isinstance(value, Failure)]
    lost = [verdict for row, case in zip(verdicts, cases, strict=True) for verdict in row[: len(case.honest)]]
    reasons = [verdict.reason for verdict in lost if isinstance(verdict, Failure)]
    return RewardAudit(
        honest=sign * sum(honest) / len(honest) if honest else None,
        cases=len(judged),
        failures=len(reasons),
        reason=reasons[-1] if reasons else "",
        constant=len(set(every)) < 2,
        hacks={
            name: _result(name, judged, min(every), sign) for name in HACKS if any(name in row.hacks for row in judged)
        },
    )


def require_sound_reward(reward: Reward, name: str, audit: RewardAudit) -> None:
    """Refuses a reward that an empty or an echoed answer satisfies.

    Raises:
        UserError: one does, and the recipe does not accept it by name.
    """
    paying = [hack for hack in REFUSED if hack in audit.paying and hack not in reward.accept_hacks]
    if paying:
        named = " and ".join(
            f"{HACKS[hack]} (mean score {audit.hacks[hack].mean:.3g}, honest answers {audit.honest:.3g})"
            for hack in paying
        )
        accepted = ", ".join([*reward.accept_hacks, *paying])
        raise UserError(
            f"{name} is satisfied by {named}, for most of {audit.cases} prompts, and the policy would learn to give "
            f"that: make the reward refuse it, or accept it with accept_hacks: [{accepted}] in that entry of "
            "rlhf.rewards"
        )


@dataclass(frozen=True)
class _CaseScores:
    """The scores of one prompt: of honest answers that got one, and the verdict on each hack."""

    honest: list[float]
    hacks: dict[str, Verdict]

    @classmethod
    def of(cls, verdicts: Sequence[Verdict], honest: int, names: Collection[str]) -> "_CaseScores":
        scored = [verdict for verdict in verdicts[:honest] if not isinstance(verdict, Failure)]
        return cls(scored, dict(zip(names, verdicts[honest:], strict=True)))


def _result(name: str, rows: Sequence[_CaseScores], lowest: float, sign: float) -> HackResult:
    pairs = [(row.hacks[name], row.honest) for row in rows if name in row.hacks]
    scored = [(value, honest) for value, honest in pairs if not isinstance(value, Failure)]
    failures = len(pairs) - len(scored)
    if not scored:
        return HackResult(None, None, None, failures)
    above = sum(value > sum(honest) / len(honest) for value, honest in scored)
    satisfied = sum(value >= max(honest) and value > lowest for value, honest in scored)
    # Adding 0 turns -0.0 into 0.0.
    mean = sign * sum(value for value, _ in scored) / len(scored) + 0.0
    return HackResult(mean, proportion(above, len(scored)), proportion(satisfied, len(scored)), failures)


def _others(cases: Sequence[AuditCase], number: int) -> Iterator[AuditCase]:
    for offset in range(1, min(OTHERS, len(cases) - 1) + 1):
        yield cases[(number + offset) % len(cases)]


def _sample(prompt: Prompt, text: str, number: int) -> Sample:
    return Sample(RolloutId(NO_EPOCH, prompt.id, number), [], [], [], "stop", text, raw_text=text)
