"""The report's verdict: sentences on whether RLHF improved the model, those on figures that it made worse first.

Changes within chance are not called changes; figures that could not be told from chance are named.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.evaluate.exam import Exam
from pipelines.evaluate.perplexity import Perplexity
from pipelines.evaluate.stats import Change, RatioChange, ShareChange, interval_text

# Models to compare the policy with, by name.
OTHERS = {"sft": "the fine-tuned model", "base": "the base model"}
# The changes from a model to the policy, by model and then by figure.
ExamChanges = Mapping[str, Mapping[str, ShareChange]]


def reward_verdict(changes: Mapping[str, Change], held_out: bool, alone: bool, rewarded: bool = True) -> str:
    """Describes the change of rewards, and of the length of answers, which rewards are most often gained by.

    Args:
        changes: the changes by the names of `held_out.MEASURES`.
        held_out: whether RLHF did not train on the prompts.
        alone: whether nothing else in the report compares the models, so that rewards decide which one is better.
        rewarded: whether there are rewards: a policy that learns from a teacher alone has none.
    """
    if not rewarded:
        return "The policy learned from a teacher alone: no rewards tell whether it is better."
    reward, length = changes["reward"], changes["response_length"]
    prompts = f"{reward.n} prompts that RLHF {'did not train on' if held_out else 'trained on too'}"
    if _within_chance(reward):
        judgment, went = "no better and no worse than", "did not change beyond chance: from"
    else:
        judgment, went = ("better than", "rose from") if reward.change > 0 else ("worse than", "fell from")
    begin = f"By its rewards the policy is {judgment} the fine-tuned model: on" if alone else "Its rewards on"
    interval = "one prompt is too few for an interval of the change"
    if reward.low is not None and reward.high is not None:
        interval = interval_text(reward.low, reward.high, "+.2f", " of the change")
    sentence = (
        f"{begin} {prompts}{' they' if alone else ''} {went} {reward.before:.2f} to {reward.after:.2f} ({interval})."
    )
    if _within_chance(length):
        return sentence
    word = "longer" if length.change > 0 else "shorter"
    return f"{sentence} Answers became {word}: {length.before:.0f} tokens before, {length.after:.0f} after."


def preference_verdict(drift: Mapping[str, float]) -> str:
    """Describes whether the policy agrees with the held-out rankings.

    Args:
        drift: the value of `PreferenceProbe.measure`.
    """
    direction = "with" if drift["low"] > 0.5 else "against" if drift["high"] < 0.5 else "as often with as against"
    return (
        f"It shifted probability {direction} the held-out rankings: towards the better answer in {drift['value']:.0%} "
        f"of {drift['n']:.0f} pairs ({interval_text(drift['low'], drift['high'])})."
    )


def signs_verdict(signs: Mapping[str, float]) -> str:
    """Describes the signs that the reward model is exploited, which tell of no fall of quality by themselves.

    Args:
        signs: means over the last steps of RLHF, of `sample_signs` and its tracker.
    """
    return (
        f"Signs of an exploited reward in the last steps: the tokens of answers diverged by "
        f"{signs['overoptimization']:.2f} bits from the fine-tuned model's, one token stands in "
        f"{signs['token_rise']:.0%} more of them and one opening begins {signs['opening_rise']:.0%} more; length, "
        f"repetition, that token and that opening explain {signs['cheap_explained']:.0%} of the reward's differences."
    )


def exam_verdict(exam: Exam | None, changes: ExamChanges, text: Perplexity | None) -> list[str]:
    """Says what got worse, against the fine-tuned and the base model, then what got better, the alignment tax, and what
    cannot be told from chance.

    Args:
        exam: whose figures to compare, if there is one.
        changes: the changes of the exam's figures; empty without an exam.
        text: the perplexity of held-out text, if there is any.
    """
    sentences = []
    for model, name in OTHERS.items():
        worse = [*_clauses(exam, changes.get(model, {}), better=False), *_lost_text(text, model)]
        if worse:
            sentences.append(f"Worse than {name}: {_listed(worse)}.")
        elif exam:
            sentences.append(f"Nothing that was measured got worse than in {name}, beyond chance.")
    if better := _clauses(exam, changes.get("sft", {}), better=True):
        sentences.append(f"Better than {OTHERS['sft']}: {_listed(better)}.")
    if text:
        sentences.append(_perplexity(text))
    if exam and exam.tax:
        sentences.append(_alignment_tax(exam.tax, changes["sft"][exam.tax]))
    if exam and (unclear := _unclear(exam, changes["sft"])):
        sentences.append(unclear)
    return sentences


def reward_model_verdict(trust: Mapping[str, Any]) -> str:
    """Names the kind of prompt whose pairs a reward model orders worst, or its accuracy where there is one kind.

    Args:
        trust: the value of `reward_model_report`.
    """
    kinds, whole = trust["by_kind"], trust["accuracy"]
    overall = f"The reward model orders {whole['value']:.0%} of {whole['n']} held-out pairs rightly"
    if len(kinds) < 2:
        return f"{overall} ({interval_text(whole['low'], whole['high'])}){_against_a_coin(whole)}."
    name, worst = min(kinds.items(), key=lambda item: (item[1]["value"], -item[1]["n"]))
    return (
        f"{overall}, and is weakest on the kind {name}: {worst['value']:.0%} of {worst['n']} pairs "
        f"({interval_text(worst['low'], worst['high'])}){_against_a_coin(worst)}."
    )


def _within_chance(change: Change) -> bool:
    return change.low is None or change.high is None or change.low <= 0 <= change.high


def _against_a_coin(share: Mapping[str, float]) -> str:
    if share["high"] < 0.5:
        return ", which is worse than chance"
    return ", which chance explains" if share["low"] <= 0.5 else ""


def _clauses(exam: Exam | None, changes: Mapping[str, ShareChange], better: bool) -> list[str]:
    """Describes the changes beyond chance in one direction, the largest first."""
    found = []
    for figure in exam.figures if exam and changes else ():
        change = changes[figure.name]
        if change.low <= 0 <= change.high or ((change.low > 0) == figure.higher_is_better) != better:
            continue
        clause = f"{figure.clause} in {change.after:.0%} of cases instead of {change.before:.0%}"
        found.append((abs(change.change), clause))
    return [clause for _, clause in sorted(found, key=lambda item: -item[0])]


def _lost_text(text: Perplexity | None, model: str) -> list[str]:
    """Describes held-out text that the policy predicts worse than a model, beyond chance; empty if there is none."""
    change = None if text is None else text.reinforcement if model == "sft" else text.alignment
    if text is None or change is None or change.low is None or change.low <= 0:
        return []
    before = text.sft if model == "sft" else text.base
    return [
        f"predicts held-out text worse, with a perplexity of {text.policy:.2f} instead of {before:.2f} "
        f"({change.change:+.1%})"
    ]


def _perplexity(text: Perplexity) -> str:
    """Describes the perplexity of held-out text from model to model."""
    return (
        f"Perplexity of held-out text: base {text.base:.2f}, fine-tuned {text.sft:.2f} ({_ratio(text.fine_tuning)}), "
        f"policy {text.policy:.2f} ({_ratio(text.reinforcement)})."
    )


def _ratio(change: RatioChange) -> str:
    if change.low is None or change.high is None:
        return f"{change.change:+.0%}; one row of text is too few for an interval"
    return f"{change.change:+.1%}; {interval_text(change.low, change.high, '+.1%')}"


def _unclear(exam: Exam, changes: Mapping[str, ShareChange]) -> str | None:
    """Lists the figures whose change chance may explain, each with the smallest change that would have shown."""
    parts = [
        f"{figure.title} ({change.before:.0%} and {change.after:.0%} of {change.n}; {_visible(change)})"
        for figure in exam.figures
        if (change := changes[figure.name]).low <= 0 <= change.high
    ]
    return f"Not told apart from chance: {'; '.join(parts)}." if parts else None


def _visible(change: ShareChange) -> str:
    return f"visible from {change.visible:.0%}" if change.visible <= 1 else "too few to see any change"


def _alignment_tax(name: str, change: ShareChange) -> str:
    # A loss is a negative change, so all signs are turned.
    return (
        f"The alignment tax, the loss of {name.replace('_', ' ')}, is {0.0 - change.change:.2f} "
        f"(from {change.before:.2f} to {change.after:.2f}; {interval_text(-change.high, -change.low, '.2f')})."
    )


def _listed(clauses: list[str]) -> str:
    *others, last = clauses
    return f"it {', '.join(others)} and {last}" if others else f"it {last}"
