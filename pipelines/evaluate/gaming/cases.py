"""Chooses the prompts and honest answers with which rewards are audited, and runs the audit of a recipe."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from actors.functions.caller import CallLimits
from actors.orchestrator.fleet import Fleet
from actors.rewards.function import FunctionReward
from actors.rewards.http import HttpReward
from actors.types import RewardInput, Sampling
from cluster.recipe.functions import load_function
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.rewards import Reward
from cluster.run.folder import RunFolder
from pipelines.data.chat_formats import source_conversations
from pipelines.data.preferences.rankings import read_rankings
from pipelines.data.prompts import PromptText, all_prompts, rlhf_prompts
from pipelines.evaluate.gaming.audit import RewardAudit, ScoreAnswers, audit_reward, require_sound_reward
from pipelines.evaluate.gaming.hacks import AuditCase, code_keywords
from pipelines.rlhf.setup import RlhfPrompts

# Prompts of an audit, and answers that the fine-tuned model samples to each.
MAX_CASES, SAMPLES = 24, 2
# The field of a prompt's row that the built-in reward functions take the right answer from.
REFERENCE = "answer"


@dataclass(frozen=True)
class AuditCases:
    """Prompts with honest answers, and in words where the answers are from."""

    cases: list[AuditCase]
    origin: str


def cases_without_model(recipe: Recipe, run: RunFolder) -> AuditCases:
    """Chooses prompts and answers for an audit without an engine.

    Returns:
        The prompts of `collect.sources` with the answers of the fine-tuned model that were ranked, if there are
        rankings; else those that RLHF trains on, with their reference answers; else conversations of `sft.sources`.
        Perhaps none.
    """
    prompts, path = all_prompts(recipe), run.path("preferences") / "rankings.parquet"
    if path.exists():
        texts = {row["prompt_id"]: [text for text in row["texts"] if text.strip()] for row in read_rankings(path)}
        ranked = [_case(prompt, texts.get(prompt.id, [])) for prompt in prompts]
        if found := [case for case in ranked if case.honest][:MAX_CASES]:
            return AuditCases(found, "sampled and ranked answers of the fine-tuned model")
    trained_on = rlhf_prompts(recipe) or prompts
    referenced = [_case(prompt, []) for prompt in trained_on if prompt.metadata.get(REFERENCE)][:MAX_CASES]
    if referenced:
        return AuditCases(referenced, f"the field {REFERENCE!r} of the prompts' rows")
    replies = (
        AuditCase(RewardInput(list(one.messages[:-1]), {}), [str(one.messages[-1]["content"])])
        for one in source_conversations(recipe.sft.sources, recipe.seed)
        if len(one.messages) > 1 and one.messages[-1].get("content")
    )
    return AuditCases(list(islice(replies, MAX_CASES)), "conversations of sft.sources")


def sampled_cases(recipe: Recipe, fleet: Fleet, prompts: RlhfPrompts) -> AuditCases:
    """Samples answers to prompts from the fine-tuned model, which the fleet holds, and adds their reference answers."""
    chosen = list(prompts.rendered.values())[:MAX_CASES]
    samples = fleet.generate(chosen, Sampling(SAMPLES, 1.0, recipe.rlhf.sampling.max_tokens, recipe.seed))
    inputs = [prompts.inputs[prompt.id] for prompt in chosen]
    cases = [
        AuditCase(own, [*_references(own.metadata), *(sample.text for sample in samples[prompt.id])])
        for prompt, own in zip(chosen, inputs, strict=True)
    ]
    return AuditCases(cases, "samples of the fine-tuned model")


def audit_rewards(recipe: Recipe, cases: list[AuditCase]) -> Iterator[tuple[Reward, str, RewardAudit]]:
    """Audits every function and endpoint of `rlhf.rewards`.

    Yields:
        The reward, its name, and its audit.

    Raises:
        UserError: a function cannot be imported.
    """
    for reward in recipe.rlhf.rewards:
        with _scorer(reward) as found:
            if found is not None:
                name, score, keywords = found
                yield reward, name, audit_reward(score, cases, keywords, reward.weight)


def require_sound_rewards(recipe: Recipe, fleet: Fleet, prompts: RlhfPrompts) -> dict[str, dict[str, list[str]]]:
    """Audits the rewards of a recipe before the first step of RLHF.

    Conversations of several turns are not audited: a hack is one answer.

    Returns:
        By reward the hacks that `pay`, for the manifest.

    Raises:
        UserError: an empty or an echoed answer satisfies a reward, and the recipe does not accept that by name.
    """
    if recipe.rlhf.environment or not any(reward.function or reward.url for reward in recipe.rlhf.rewards):
        return {}
    paying = {}
    for reward, name, audit in audit_rewards(recipe, sampled_cases(recipe, fleet, prompts).cases):
        require_sound_reward(reward, name, audit)
        paying[name] = {"pay": audit.paying}
    return paying


@contextmanager
def _scorer(reward: Reward) -> Iterator[tuple[str, ScoreAnswers, str] | None]:
    """Starts a function or an endpoint as a reward: its name, how to score, and the keywords of its code."""
    if reward.function:
        keywords = code_keywords(load_function(reward.function))
        function = FunctionReward(reward.function, CallLimits(reward.timeout_seconds, reward.attempts, reward.at_once))
        try:
            yield f"the reward function {reward.function}", function.score, keywords
        finally:
            function.close()
    elif reward.url:
        endpoint = HttpReward(reward.url, reward.timeout_seconds, reward.attempts)
        yield f"the reward endpoint {reward.url}", endpoint.score, ""
    else:
        yield None


def _case(prompt: PromptText, answers: list[str]) -> AuditCase:
    return AuditCase(RewardInput(list(prompt.messages), prompt.metadata), answers or _references(prompt.metadata))


def _references(metadata: Mapping[str, str]) -> list[str]:
    reference = metadata.get(REFERENCE)
    return [reference] if reference else []
