"""The stage `rlhf`: rollout actors sample, reward actors score, a learner updates the policy, rollout actors reload
it."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from actors.algorithms.guardrails import breach
from actors.learner.remote import LearnerLostError, RemoteLearner
from actors.model.start_checks import require_no_experts, require_positions
from actors.model.tokenizer import require_same_tokens
from actors.orchestrator.autoscaler import Scaler, advice
from actors.orchestrator.coordination.members import WORKING
from actors.orchestrator.fleet import Fleet
from actors.orchestrator.ledger import Ledger
from actors.orchestrator.loop import RlhfLoop
from actors.orchestrator.parity import check_parity
from actors.orchestrator.scheduler import RolloutScheduler
from actors.rewards.pool import RewardWorkerPool, WeightedRewards
from actors.rollout.actor import element_type
from actors.trainer.data import shards_in
from actors.types import RewardInput
from cluster.recipe.functions import load_function
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.section import Rlhf
from cluster.run.atomic import write_json
from cluster.run.fleet_control import fleet_control, take_resize_request, write_fleet_state
from cluster.run.folder import RunFolder
from cluster.run.metrics import MetricsWriter, metrics_progress, read_metrics
from cluster.run.stages import Result
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.placement import wait_for_room
from cluster.runtime.plan import make_plan
from cluster.trace import TraceWriter
from pipelines.evaluate.gaming.cases import require_sound_rewards
from pipelines.evaluate.preference_drift import PreferenceProbe, drift_metrics, probe_rankings
from pipelines.evaluate.reward_probes import require_probes_pass
from pipelines.evaluate.token_ratios import token_ratios
from pipelines.rlhf.evaluation import Evaluation, evaluation_prompts, held_out_summary
from pipelines.rlhf.setup import (
    RlhfPrompts,
    promote_unfinished,
    prompt_chat,
    reward_pools,
    rollout_fleet,
    training_prompts,
    wait_ready,
)

PARITY_PROMPTS = 8
# Restarts of the learner in one command, as many as training has for its workers.
LEARNER_RESTARTS = 3
# The file of the hacks that each reward likes as well as honest answers, by the audit before the first step.
REWARD_AUDIT = "reward_audit.json"
# The summary averages the last reward over these steps: that of a single step is noisy.
SUMMARY_STEPS = 5
# The signs of over-optimization in the verdict.
SIGNS = ("overoptimization", "token_rise", "opening_rise", "cheap_explained")


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Runs or resumes the stage: trains the policy and exports it to `out`.

    Every prompt taken from the ledger ends trained, filtered or failed, exactly once, across crashes and resumes.

    Raises:
        UserError: no prompt fits, a function of the recipe cannot be loaded, or an empty or echoed answer satisfies a
            reward.
        StageError: the reward model fails a probe, the engines and the learner disagree, training diverged, or the
            learner died more than `LEARNER_RESTARTS` times.
    """
    return with_restarts(lambda: _run(recipe, run, out), LEARNER_RESTARTS)


def with_restarts(work: Callable[[], Result], restarts: int) -> Result:
    """Repeats a function, up to a number of times, when the learner dies in it: it resumes from the last checkpoint.

    Raises:
        LearnerLostError: the learner died once more than that.
    """
    for left in reversed(range(restarts + 1)):
        try:
            return work()
        except LearnerLostError as error:
            if not left:
                raise LearnerLostError(f"the learner died {restarts + 1} times; the last: {error}") from error
            print(f"triptych: the learner is started again from its last checkpoint: {error}", file=sys.stderr)
    raise AssertionError("unreachable")


def _run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    settings = recipe.rlhf
    chat = prompt_chat(recipe, run.path("sft"))
    prompts = training_prompts(recipe, chat)
    held_out = evaluation_prompts(recipe, chat) if settings.evaluate_every else RlhfPrompts({}, {})
    evaluation = Evaluation(settings, list(held_out.rendered.values()), recipe.seed, out) if held_out.rendered else None
    _check_rewards(recipe, run)
    rankings = probe_rankings(run, settings, recipe.seed)
    with (
        _actors(recipe, run, out, {**prompts.inputs, **held_out.inputs}) as (fleet, learner, pools),
        fleet_control(run, settings.fleet.rollout_actors),
    ):
        state = learner.restore()
        start = state["step"] if state else 0
        ledger = Ledger(prompts.rendered.values(), recipe.seed)
        if state:
            ledger.load_state_dict(state["ledger"])
            fleet.sync(learner.publish(start))
            if evaluation:
                evaluation.restore(state.get("best"))
        else:
            # The engines still hold the fine-tuned model.
            write_json(out / REWARD_AUDIT, require_sound_rewards(recipe, fleet, prompts))
        rewards = partial(WeightedRewards, pools, environment_weight=settings.environment_weight)
        scheduler = RolloutScheduler(fleet, ledger, prompts.rendered, settings, recipe.seed, rewards)
        loop = RlhfLoop(fleet, learner, scheduler, settings)
        probe = (
            PreferenceProbe(rankings, learner, settings.sampling.temperature, settings.stop.probe_every)
            if rankings
            else None
        )
        parity_prompts = list(prompts.rendered.values())[:PARITY_PROMPTS]
        rollout_scaler = Scaler.of_rollouts(settings.fleet.rollout_actors, settings.fleet.rollout_limit)
        reward_scaler = Scaler.of_rewards(settings.fleet.reward_actors, settings.fleet.reward_limit)
        metrics, traces = MetricsWriter(out, resume_at=start, steps=settings.steps), TraceWriter(out)
        stopped = None
        with metrics_progress(out, settings.steps, f"rlhf ({settings.algorithm})", recipe.training.trackers):
            for step in range(start, settings.steps):
                if step == start or (settings.fleet.parity_every and step % settings.fleet.parity_every == 0):
                    precision = settings.precision or fleet.precision
                    check_parity(
                        fleet,
                        learner,
                        precision,
                        parity_prompts,
                        settings.sampling.max_tokens,
                        recipe.cluster.deadline_seconds,
                    )
                _resize(run, fleet, take_resize_request(run))
                before = evaluation.measure(fleet, pools) if evaluation and step == 0 else {}
                figures = loop.step(step, probe.figures(step) if probe else {})
                figures |= {f"{name}_before": value for name, value in before.items()}
                if evaluation and evaluation.due(step):
                    figures |= evaluation.measure(fleet, pools)
                    evaluation.keep_best(step + 1, figures, partial(learner.export, within_limits=False))
                if settings.fleet.max_rollout_actors:
                    states = fleet.states()
                    _resize(run, fleet, rollout_scaler.wanted(figures, len(states), WORKING.issuperset(states)))
                if settings.fleet.max_reward_actors and pools:
                    _resize_rewards(pools, reward_scaler, figures)
                figures["reward_actors"] = pools[0].size if pools else 0
                checkpoint = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
                if checkpoint or step == 0:
                    figures["rollouts"] = token_ratios(
                        loop.last_batch, learner, chat.tokenizer, prompts.inputs, settings.sampling.temperature
                    )
                metrics.write(step, **figures)
                traces.write(loop.trace)
                stopped = breach(figures, settings)
                if stopped:
                    break
                if settings.promote_every and (step + 1) % settings.promote_every == 0:
                    promote_unfinished(run, step, partial(learner.export, within_limits=False))
                if checkpoint:
                    loop.save(step + 1, {"best": evaluation.best} if evaluation else {})
                    if evaluation:
                        evaluation.prune()
        drift = probe.measure() if probe else None
        stopped = stopped or (breach(drift_metrics(drift), settings) if drift else None)
        best = evaluation.write_best() if evaluation and not stopped else None
        exported_policy = best is not None or learner.export(out, within_limits=stopped is not None)
        if probe and stopped:
            drift = probe.measure()
    kept = (
        "the last policy within the limits"
        if exported_policy
        else "no policy was measured within them: the fine-tuned model"
    )
    reason = stopped and f"{stopped}; {kept} is kept"
    rows = read_metrics(out)
    summary = _summary(rows, ledger, settings, reason)
    if drift and best in (None, len(rows)):
        # Otherwise the figure is of another policy than the kept one.
        summary["preference_accuracy"] = drift
    if evaluation:
        summary |= held_out_summary(rows, None if stopped else best or len(rows))
    audit = out / REWARD_AUDIT
    # A stage that an older version began has none.
    summary["reward_audit"] = json.loads(audit.read_text(encoding="utf-8")) if audit.exists() else None
    return Result(metrics=summary, weights=weights_fingerprint(out))


def _check_rewards(recipe: Recipe, run: RunFolder) -> None:
    """Checks before anything starts that engines can take the policy's weights, that functions can be loaded, and that
    the reward model passes its probes."""
    settings = recipe.rlhf
    require_no_experts(AutoConfig.from_pretrained(run.path("sft")), str(run.path("sft")))
    if settings.teacher:
        require_same_tokens(settings.teacher, run.path("sft"))
        require_positions(AutoConfig.from_pretrained(settings.teacher), recipe.model.context, settings.teacher)
    if settings.environment:
        load_function(settings.environment.function, "environment")
    for source in settings.rewards:
        if source.function:
            load_function(source.function)
        if source.kind == "model":
            results = run.require("reward").metrics["trust"]["probes"]
            require_probes_pass(results, settings.accept_probes, recipe.reward.counterexamples)


def _summary(rows: list[dict[str, Any]], ledger: Ledger, settings: Rlhf, stopped: str | None) -> dict[str, Any]:
    last = rows[-SUMMARY_STEPS:]
    learner_idle, rollout_idle, actors = (
        _mean(rows, name) for name in ("learner_idle", "rollout_idle", "rollout_actors")
    )
    return {
        "steps": len(rows),
        "reward_first": rows[0]["reward"],
        "reward_last": _mean(last, "reward"),
        **{name: _mean(last, name) for name in ("kl_sequence", "teacher_kl_sequence") if name in last[0]},
        **({"signs": {name: _mean(last, name) for name in SIGNS}} if all(SIGNS[0] in row for row in last) else {}),
        "failed_verdicts": ledger.verdicts.failed,
        "tokens_per_second": sum(row["tokens"] for row in rows) / sum(row["step_seconds"] for row in rows),
        "learner_idle": learner_idle,
        "rollout_idle": rollout_idle,
        "prompts": ledger.outcomes,
        "verdicts": ledger.verdicts.given,
        "failures": ledger.verdicts.remark(),
        "stopped": stopped and f"ended at step {len(rows)} of {settings.steps}: {stopped}",
        "advice": advice(learner_idle, rollout_idle, round(actors), settings.fleet.max_staleness),
    }


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _resize(run: RunFolder, fleet: Fleet, wanted: int | None) -> None:
    """Resizes the fleet between two steps to the size that `triptych fleet` or the autoscaler sets, if one does."""
    if wanted is not None:
        fleet.resize(wanted)
        write_fleet_state(run, wanted)


def _resize_rewards(pools: list[RewardWorkerPool], scaler: Scaler, figures: Mapping[str, float]) -> None:
    """Resizes all pools alike: which of them delays a step depends on their sizes."""
    actors = pools[0].size
    wanted = scaler.wanted(figures, actors, settled=all(pool.settled for pool in pools))
    for pool in pools:
        pool.resize(wanted or actors)


@contextmanager
def _actors(
    recipe: Recipe, run: RunFolder, out: Path, inputs: Mapping[str, RewardInput]
) -> Iterator[tuple[Fleet, RemoteLearner, list[RewardWorkerPool]]]:
    """Starts rollout actors, learner and reward actors concurrently, and ends them all afterwards."""
    sft, deadline, plan = run.path("sft"), recipe.cluster.deadline_seconds, make_plan(recipe)
    text = shards_in(run.path("corpus") / "shards" / "train") if recipe.rlhf.pretrain_mix else []
    arguments = (recipe.rlhf, sft, run.path("reward"), text, recipe.seed, plan.learner.threads)
    workers, dtype = recipe.rlhf.fleet.learner_workers, element_type(plan.rollout)
    reward_actors = recipe.rlhf.fleet.reward_actors
    kinds = {
        "worker of the learner": (plan.learner, workers),
        "rollout actor": (plan.rollout, recipe.rlhf.fleet.rollout_actors),
        "reward actor": (plan.reward, sum(pool.kind == "model" for pool in recipe.rlhf.rewards) * reward_actors),
    }
    wait_for_room(kinds, deadline)
    learner = RemoteLearner(plan.learner, workers, out, dtype, deadline, *arguments)
    try:
        with (
            reward_pools(recipe, run, inputs) as pools,
            rollout_fleet(recipe, sft, recipe.rlhf.fleet.rollout_actors, inputs) as fleet,
        ):
            wait_ready(pools, deadline)
            yield fleet, learner, pools
    finally:
        learner.close()
