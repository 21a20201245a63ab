"""RLHF: sample, reward, reinforce, reload; rollout actors, a reward actor and a learner actor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.algorithms.guardrails import breach
from actors.learner.remote import RemoteLearner
from actors.model.chat import Chat
from actors.orchestrator.autoscaler import Scaler, advice
from actors.orchestrator.fleet import Fleet
from actors.orchestrator.ledger import Ledger
from actors.orchestrator.loop import Loop
from actors.orchestrator.members import WORKING
from actors.orchestrator.parity import check_parity
from actors.orchestrator.scheduler import RolloutScheduler
from actors.rewards.function import load_function
from actors.rewards.pool import RewardWorkerPool, WeightedRewards
from actors.rollout.actor import element_type
from actors.trainer.data import shards_in
from actors.types import RewardInput
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf import Rlhf
from cluster.run.fleet_control import fleet_control, take_resize_request, write_fleet_state
from cluster.run.folder import RunFolder, file_fingerprint
from cluster.run.metrics import MetricsWriter, metrics_progress, read_metrics
from cluster.run.stages import Result
from cluster.runtime.plan import make_plan
from cluster.trace import TraceWriter
from pipelines.evaluate.preference_drift import PreferenceProbe, figures_of, held_out_rankings
from pipelines.evaluate.reward_probes import require_trust
from pipelines.evaluate.token_ratios import token_ratios
from pipelines.rlhf_setup import promote_unfinished, prompts_to_train_on, reward_actors, rollout_fleet, wait_ready

PARITY_PROMPTS = 8
# The summary's last reward is a mean over so many steps: one step's is noisy.
LAST_STEPS = 5


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """The loop. Every prompt taken from the ledger ends trained, across crashes and resumes."""
    settings = recipe.rlhf
    chat = Chat.of(run.path("sft"))
    asked = prompts_to_train_on(recipe, chat)
    prompts = asked.rendered
    _check(recipe, run)
    judged = held_out_rankings(run, settings, recipe.seed)
    with (
        _actors(recipe, run, out, asked.inputs) as (fleet, learner, scorers),
        fleet_control(run, settings.fleet.rollout_actors),
    ):
        state = learner.restore()
        start = state["step"] if state else 0
        ledger = Ledger(prompts.values(), recipe.seed)
        if state:
            ledger.load_state_dict(state["ledger"])
            fleet.sync(learner.publish(start))
        scheduler = RolloutScheduler(fleet, ledger, prompts, settings, recipe.seed, partial(WeightedRewards, scorers))
        loop = Loop(fleet, learner, scheduler, settings)
        probe = (
            PreferenceProbe(judged, learner, settings.sampling.temperature, settings.stop.probe_every)
            if judged
            else None
        )
        some = list(prompts.values())[:PARITY_PROMPTS]
        scaler = Scaler.of_rollouts(settings.fleet.rollout_actors, settings.fleet.rollout_limit)
        reward_scaler = Scaler.of_rewards(settings.fleet.reward_actors, settings.fleet.reward_limit)
        metrics, traces = MetricsWriter(out, resume_at=start), TraceWriter(out)
        stopped = None
        with metrics_progress(out, settings.steps, f"rlhf ({settings.algorithm})"):
            for step in range(start, settings.steps):
                if step == start or (settings.fleet.parity_every and step % settings.fleet.parity_every == 0):
                    precision = settings.precision or fleet.precision
                    check_parity(
                        fleet, learner, precision, some, settings.sampling.max_tokens, recipe.cluster.deadline_seconds
                    )
                _resize(run, fleet, take_resize_request(run))
                figures = loop.step(step, probe.figures(step) if probe else {})
                if settings.fleet.max_rollout_actors:
                    states = fleet.states()
                    _resize(run, fleet, scaler.wanted(figures, len(states), WORKING.issuperset(states)))
                if settings.fleet.max_reward_actors:
                    _resize_rewards(scorers, reward_scaler, figures)
                figures["reward_actors"] = scorers[0].size
                saved = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
                if saved or step == 0:
                    figures["rollouts"] = token_ratios(
                        loop.last_batch, learner, chat.tokenizer, asked.inputs, settings.sampling.temperature
                    )
                metrics.write(step, **figures)
                traces.write(loop.trace)
                stopped = breach(figures, settings)
                if stopped:
                    break
                if settings.promote_every and (step + 1) % settings.promote_every == 0:
                    promote_unfinished(run, step, partial(learner.export, within_limits=False))
                if saved:
                    loop.save(step + 1)
        moved = probe.measure() if probe else None
        stopped = stopped or (breach(figures_of(moved), settings) if moved else None)
        found = learner.export(out, within_limits=stopped is not None)
        if probe and stopped:
            moved = probe.measure()
    kept = "the last policy within the limits" if found else "no policy was measured to be within: the fine-tuned model"
    ended = stopped and f"{stopped}; {kept} is kept"
    summary = _summary(read_metrics(out), ledger, settings, ended) | ({"preference_accuracy": moved} if moved else {})
    return Result(metrics=summary, weights=file_fingerprint(out / "model.safetensors"))


def _check(recipe: Recipe, run: RunFolder) -> None:
    """Before anything starts: functions can be imported, and the reward model can be trusted."""
    settings = recipe.rlhf
    if settings.environment:
        load_function(settings.environment.function, "environment")
    for source in settings.rewards:
        if source.function:
            load_function(source.function)
        if source.kind == "model":
            found = run.require("reward").metrics["trust"]["probes"]
            require_trust(found, settings.accept_probes, recipe.reward.counterexamples)


def _summary(rows: list[dict[str, Any]], ledger: Ledger, settings: Rlhf, stopped: str | None) -> dict[str, Any]:
    last = rows[-LAST_STEPS:]
    learner_idle, rollout_idle, actors = (
        float(np.mean([row[name] for row in rows])) for name in ("learner_idle", "rollout_idle", "rollout_actors")
    )
    return {
        "steps": len(rows),
        "reward_first": rows[0]["reward"],
        "reward_last": float(np.mean([row["reward"] for row in last])),
        "kl_sequence": float(np.mean([row["kl_sequence"] for row in last])),
        "tokens_per_second": sum(row["tokens"] for row in rows) / sum(row["step_seconds"] for row in rows),
        "learner_idle": learner_idle,
        "rollout_idle": rollout_idle,
        "prompts": ledger.outcomes,
        "stopped": stopped and f"ended at step {len(rows)} of {settings.steps}: {stopped}",
        "advice": advice(learner_idle, rollout_idle, round(actors), settings.fleet.max_staleness),
    }


def _resize(run: RunFolder, fleet: Fleet, wanted: int | None) -> None:
    """Between two steps: `triptych fleet RUN add 2` wants it, or the measured idle shares."""
    if wanted is not None:
        fleet.resize(wanted)
        write_fleet_state(run, wanted)


def _resize_rewards(scorers: list[RewardWorkerPool], scaler: Scaler, figures: Mapping[str, float]) -> None:
    """All alike: which of them a step waits for changes with their number."""
    actors = scorers[0].size
    wanted = scaler.wanted(figures, actors, settled=all(scorer.settled for scorer in scorers))
    for scorer in scorers:
        scorer.resize(wanted or actors)


@contextmanager
def _actors(
    recipe: Recipe, run: RunFolder, out: Path, inputs: Mapping[str, RewardInput]
) -> Iterator[tuple[Fleet, RemoteLearner, list[RewardWorkerPool]]]:
    """Rollout actors, the learner and the reward actors, all starting at once and gone at the end."""
    sft, deadline, plan = run.path("sft"), recipe.cluster.deadline_seconds, make_plan(recipe)
    text = shards_in(run.path("corpus") / "shards" / "train") if recipe.rlhf.pretrain_mix else []
    words = (recipe.rlhf, sft, run.path("reward"), text, recipe.seed, plan.learner.threads)
    workers, sent = recipe.rlhf.fleet.learner_workers, element_type(plan.rollout)
    learner = RemoteLearner(plan.learner, workers, out / "checkpoint", sent, deadline, *words)
    try:
        with (
            reward_actors(recipe, run, inputs) as scorers,
            rollout_fleet(recipe, sft, recipe.rlhf.fleet.rollout_actors, inputs) as fleet,
        ):
            wait_ready(scorers, deadline)
            yield fleet, learner, scorers
    finally:
        learner.close()
