"""The report's verdict: sentences on whether RLHF improved the model. Changes within chance are not called changes."""

from collections.abc import Mapping

from pipelines.evaluate.exam import Exam
from pipelines.evaluate.perplexity import Perplexity
from pipelines.evaluate.stats import Change, Proportion, difference


def reward_verdict(changes: Mapping[str, Change], held_out: bool, alone: bool) -> str:
    """Describes the change of rewards, and of the length of answers, which rewards are most often gained by.

    Args:
        changes: by the names of `held_out.MEASURES`.
        held_out: whether RLHF did not train on the prompts.
        alone: whether nothing else in the report compares the models, so that rewards decide which one is better.
    """
    reward, length = changes["reward"], changes["response_length"]
    prompts = f"{reward.n} prompts that RLHF {'did not train on' if held_out else 'trained on too'}"
    if reward.low <= 0 <= reward.high:
        judgment, went = "no better and no worse than", "did not change beyond chance: from"
    else:
        judgment, went = ("better than", "rose from") if reward.low > 0 else ("worse than", "fell from")
    begin = f"By its rewards the policy is {judgment} the fine-tuned model: on" if alone else "Its rewards on"
    sentence = (
        f"{begin} {prompts}{' they' if alone else ''} {went} {reward.before:.2f} to {reward.after:.2f} "
        f"(95% interval of the change {reward.low:+.2f} to {reward.high:+.2f})."
    )
    if length.low <= 0 <= length.high:
        return sentence
    word = "longer" if length.low > 0 else "shorter"
    return f"{sentence} Answers became {word}: {length.before:.0f} tokens before, {length.after:.0f} after."


def preference_verdict(drift: Mapping[str, float]) -> str:
    """Describes whether the policy agrees with the held-out rankings.

    Args:
        drift: the value of `PreferenceProbe.measure`.
    """
    direction = "with" if drift["low"] > 0.5 else "against" if drift["high"] < 0.5 else "as often with as against"
    return (
        f"It shifted probability {direction} the held-out rankings: towards the better answer in {drift['value']:.0%} "
        f"of {drift['n']:.0f} pairs (95% interval {drift['low']:.0%} to {drift['high']:.0%})."
    )


def perplexity_verdict(perplexity: Perplexity) -> str:
    """Describes the change of the perplexity of held-out text."""
    return (
        f"Perplexity of held-out text went from {perplexity.sft:.2f} to {perplexity.policy:.2f} "
        f"({perplexity.change:+.1%}; 95% interval {perplexity.low:+.1%} to {perplexity.high:+.1%})."
    )


def exam_verdict(exam: Exam, sft: Mapping[str, Proportion], policy: Mapping[str, Proportion]) -> str:
    """Says by an exam's figures whether the policy is better than the fine-tuned model, and the alignment tax.

    Args:
        exam: whose figures to compare.
        sft: the fine-tuned model's figures, by name.
        policy: the policy's.
    """
    better: list[str] = []
    worse: list[str] = []
    for figure in exam.figures:
        low, high = difference(sft[figure.name], policy[figure.name])
        if low <= 0 <= high:
            continue
        before, after = sft[figure.name].value, policy[figure.name].value
        clause = f"it {figure.clause} in {after:.0%} of cases instead of {before:.0%}"
        (better if (low > 0) == figure.higher_is_better else worse).append(clause)
    judgment = _judgment(better, worse)
    if exam.tax is None:
        return judgment
    return f"{judgment} {_alignment_tax(exam.tax, sft[exam.tax], policy[exam.tax])}"


def _judgment(better: list[str], worse: list[str]) -> str:
    if better and worse:
        return (
            "The policy is better than the fine-tuned model in some ways and worse in others. "
            f"Better, because {_listed(better)}. Worse, because {_listed(worse)}."
        )
    if better:
        return f"The policy is better than the fine-tuned model, because {_listed(better)}; nothing else got worse."
    if worse:
        return f"The policy is worse than the fine-tuned model, because {_listed(worse)}; nothing else got better."
    return "The policy is no better and no worse than the fine-tuned model: chance explains every difference."


def _alignment_tax(name: str, sft: Proportion, policy: Proportion) -> str:
    tax = sft.value - policy.value
    low, high = difference(policy, sft)
    return (
        f"The alignment tax, the loss of {name.replace('_', ' ')}, is {tax:.2f} "
        f"(from {sft.value:.2f} to {policy.value:.2f}; 95% interval {low:.2f} to {high:.2f})."
    )


def _listed(clauses: list[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
