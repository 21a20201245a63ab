"""Compares the policy of a round with the one that is live: on the same held-out prompts, and in the exam."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from actors.model import causal_lm
from actors.model.sharding.fsdp import parameters
from actors.types import Sampling
from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.versions import differing_files
from pipelines.evaluate.exam import Exam, exam_changes, load_exam
from pipelines.evaluate.exam_runner import ExamRunner, graded_for_all
from pipelines.evaluate.held_out import paired_changes, sample_and_reward
from pipelines.evaluate.stage import MAX_ACTORS, evaluation_prompts
from pipelines.evaluate.stats import Change, ShareChange, interval_text
from pipelines.loop.rounds import Verdict
from pipelines.rlhf.setup import prompt_chat, reward_pools, rollout_fleet, wait_ready


def compare_policies(recipe: Recipe, run: RunFolder, live: Path) -> Verdict:
    """Samples answers of both policies to the prompts of the evaluation and its exam, and compares the answers by the
    round's rewards and the exam's grader.

    Args:
        recipe: the whole recipe.
        run: the run folder, with the round's policy and reward model.
        live: the folder of the policy that is live.

    Raises:
        UserError: the two differ in more than their weights, so that one cannot take the place of the other.
    """
    new = run.path("policy")
    if others := differing_files(live, new):
        raise UserError(
            f"{', '.join(others)} of the new policy differ from those of the live one in {live}, which it cannot "
            f"replace: `triptych loop {run.root} refuse` sets the round aside"
        )
    exam, (prompts, _) = load_exam(recipe), evaluation_prompts(recipe, prompt_chat(recipe, run.path("sft")))
    runner = ExamRunner.of(exam, recipe, run) if exam else None
    sampling = Sampling(recipe.evaluate.samples_per_prompt, 1.0, recipe.rlhf.sampling.max_tokens, recipe.seed)
    rewarded, answers, rendered = [], {}, list(prompts.rendered.values())
    at_once, actors = recipe.rlhf.prompts_per_step, min(MAX_ACTORS, recipe.rlhf.fleet.rollout_actors)
    with (
        reward_pools(recipe, run, prompts.inputs) as pools,
        rollout_fleet(recipe, run.path("sft"), actors, prompts.inputs) as fleet,
    ):
        wait_ready(pools, recipe.cluster.deadline_seconds)
        for version, folder in enumerate((live, new), 1):
            fleet.load(version, parameters(causal_lm.load(folder)))
            if runner:
                answers[str(version)] = runner.answers(fleet, "policy")
            rewarded.append(
                sample_and_reward(fleet, pools, rendered, sampling, at_once, recipe.rlhf.environment_weight)
            )
    shares = exam_changes(exam, *graded_for_all(answers).values()) if exam else {}
    return judge_changes(paired_changes(*rewarded)["reward"], exam, shares, recipe.loop.promote_if == "better")


def judge_changes(reward: Change, exam: Exam | None, shares: Mapping[str, ShareChange], better: bool) -> Verdict:
    """Decides whether the new policy may take over.

    Args:
        reward: the change of the mean reward of held-out prompts, from the live policy to the new one.
        exam: whose figures are compared, if there is one.
        shares: their changes, by name.
        better: whether the reward has to be better beyond chance, and not merely not worse.
    """
    worse = [
        f"worse in the exam: it {figure.clause} in {change.after:.0%} of cases instead of {change.before:.0%}"
        for figure in (exam.figures if exam else ())
        if (change := shares[figure.name]).low > 0 or change.high < 0
        if (change.change > 0) != figure.higher_is_better
    ]
    if reward.low is None or reward.high is None:
        enough, interval = False, "one prompt is too few for an interval"
    else:
        enough = reward.low > 0 if better else reward.high >= 0
        interval = interval_text(reward.low, reward.high, "+.3f", " of the change")
    rewards = f"reward {reward.before:.3f} live, {reward.after:.3f} new on {reward.n} held-out prompts ({interval})"
    why = [rewards, *(worse or ["no figure of the exam is worse beyond chance"] * bool(exam))]
    figures = {"reward": asdict(reward), "exam": {name: asdict(change) for name, change in shares.items()}}
    return Verdict(enough and not worse, "; ".join(why), figures)
