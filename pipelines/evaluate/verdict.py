"""Whether reinforcement learning made the model better, in words. Only what chance does not explain counts."""

from collections.abc import Mapping

from pipelines.evaluate.exam import Exam
from pipelines.evaluate.perplexity import Perplexity
from pipelines.evaluate.stats import Change, Proportion, difference


def reward_verdict(changed: Mapping[str, Change], kept_back: bool, alone: bool) -> str:
    """What became of the rewards, and of the length of answers, by which rewards are most often won.

    Args:
        changed: by the names of `kept_back.MEASURES`.
        kept_back: whether RLHF did not train on the prompts.
        alone: nothing else says which model is better.
    """
    reward, length = changed["reward"], changed["response_length"]
    prompts = f"{reward.n} prompts that RLHF {'did not train on' if kept_back else 'trained on too'}"
    if reward.low <= 0 <= reward.high:
        judgement, went = "no better and no worse than", "stayed where chance can take them: from"
    else:
        judgement, went = ("better than", "rose from") if reward.low > 0 else ("worse than", "fell from")
    begin = f"By its rewards the policy is {judgement} the fine-tuned model: on" if alone else "Its rewards on"
    said = (
        f"{begin} {prompts}{' they' if alone else ''} {went} {reward.before:.2f} to {reward.after:.2f} "
        f"(95% interval of the change {reward.low:+.2f} to {reward.high:+.2f})."
    )
    if length.low <= 0 <= length.high:
        return said
    word = "longer" if length.low > 0 else "shorter"
    return f"{said} Answers became {word}: {length.before:.0f} tokens before, {length.after:.0f} now."


def preference_verdict(moved: Mapping[str, float]) -> str:
    """Whether the policy went where the judges of held-out answers point, as of `PreferenceProbe.measure`."""
    way = "towards" if moved["low"] > 0.5 else "away from" if moved["high"] < 0.5 else "as often towards as away from"
    said = f"It moved {way} what held-out judgements ask for: towards the better answer in {moved['value']:.0%}"
    return f"{said} of {moved['n']:.0f} pairs (95% interval {moved['low']:.0%} to {moved['high']:.0%})."


def perplexity_verdict(read: Perplexity) -> str:
    """What became of the text that the base model had learned to write."""
    return (
        f"Perplexity of held-out text went from {read.sft:.2f} to {read.policy:.2f} "
        f"({read.change:+.1%}; 95% interval {read.low:+.1%} to {read.high:+.1%})."
    )


def verdict(exam: Exam, sft: Mapping[str, Proportion], policy: Mapping[str, Proportion]) -> str:
    """Says whether reinforcement learning made the model better. Only what chance does not explain counts."""
    better: list[str] = []
    worse: list[str] = []
    for figure in exam.figures:
        low, high = difference(sft[figure.name], policy[figure.name])
        if low <= 0 <= high:
            continue
        before, after = sft[figure.name].value, policy[figure.name].value
        clause = f"it {figure.clause} in {after:.0%} of cases instead of {before:.0%}"
        (better if (low > 0) == figure.higher_is_better else worse).append(clause)
    said = _judgement(better, worse)
    if exam.tax is None:
        return said
    return f"{said} {_alignment_tax(exam.tax, sft[exam.tax], policy[exam.tax])}"


def _judgement(better: list[str], worse: list[str]) -> str:
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
        f"The alignment tax, the {name.replace('_', ' ')} lost, is {tax:.2f} "
        f"(from {sft.value:.2f} to {policy.value:.2f}; 95% interval {low:.2f} to {high:.2f})."
    )


def _listed(clauses: list[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
