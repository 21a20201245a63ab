"""RLHF: sample, reward, reinforce, reload; rollout actors, a reward actor and a learner actor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.fleet import Fleet
from actors.learner import Learner
from actors.ledger import Ledger, Outcome
from actors.model.chat import Chat
from actors.reward import RewardActor
from actors.rollouts import Rollouts
from actors.sample import Prompt, Sample, Sampling
from actors.stream import shards_in
from cluster.cli import stage_main
from cluster.failures import StageError, wait_for
from cluster.fleet import fleet_control, wanted_actors, write_fleet_state
from cluster.metrics import MetricsWriter, Stopwatch, read_metrics
from cluster.plan import Plan, Share, make_plan
from cluster.progress import metrics_progress
from cluster.recipe import Recipe
from cluster.run import RunFolder, file_fingerprint
from cluster.stages import Result
from pipelines.chat_data import prompts as prompt_texts
from pipelines.preferences import in_turn

# Engine and learner run the same float32 weights; measured gap 1e-6. Beyond this they are not the same model.
PARITY_LIMIT = 1e-3
PARITY_PROMPTS = 8
# The summary's last reward is a mean over so many steps: one step's is noisy.
LAST_STEPS = 5


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """The loop. Every prompt taken from the ledger ends trained, across crashes and resumes."""
    settings, plan = recipe.rlhf, make_plan(recipe)
    deadline = recipe.cluster.deadline_minutes * 60
    prompts = _prompts(recipe, Chat.of(run.path("sft")))
    checkpoint = out / "checkpoint"
    with _actors(recipe, run, plan) as (fleet, learner, reward), fleet_control(run, settings.rollout_actors):
        state = wait_for(learner.restore.remote(checkpoint), deadline, "the learner to load")
        start = state["step"] if state else 0
        ledger = Ledger(list(prompts), recipe.seed)
        if state:
            ledger.load_state_dict(state["ledger"])
            fleet.sync(start, wait_for(learner.weights.remote(), deadline, "the learner's weights"))
        _parity_gate(fleet, learner, list(prompts.values())[:PARITY_PROMPTS], settings.max_tokens, deadline)
        rollouts = Rollouts(fleet, ledger, prompts, settings, recipe.seed)
        metrics = MetricsWriter(out, resume_at=start)
        with metrics_progress(out, settings.steps, f"rlhf ({settings.algorithm})"):
            for step in range(start, settings.steps):
                clock = Stopwatch()
                _follow_wish(run, fleet)
                tickets, batch, groups = rollouts.next_batch(step)
                rollout_seconds = clock.lap()
                rewards = _rewards(reward, batch, groups, deadline)
                reward_seconds = clock.lap()
                figures = wait_for(learner.step.remote(batch, groups, rewards), deadline, "the learner's step")
                ledger.settle(tickets, Outcome.TRAINED)
                clock.lap()
                fleet.sync(step + 1, wait_for(learner.weights.remote(), deadline, "the learner's weights"))
                sync_seconds = clock.lap()
                metrics.write(
                    step,
                    **figures,
                    rollout_seconds=rollout_seconds,
                    reward_seconds=reward_seconds,
                    sync_seconds=sync_seconds,
                    rollout_tokens_per_second=figures["tokens"] / rollout_seconds,
                    rollout_actors=len(fleet.states()),
                )
                if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                    extra = {"step": step + 1, "ledger": ledger.state_dict()}
                    wait_for(learner.save.remote(checkpoint, extra), deadline, "the checkpoint")
        wait_for(learner.export.remote(out), deadline, "the policy to be written")
    return Result(metrics=_summary(read_metrics(out), ledger), weights=file_fingerprint(out / "model.safetensors"))


def _summary(rows: list[dict[str, Any]], ledger: Ledger) -> dict[str, Any]:
    last = rows[-LAST_STEPS:]
    return {
        "steps": len(rows),
        "reward_first": rows[0]["reward"],
        "reward_last": float(np.mean([row["reward"] for row in last])),
        "kl_sequence": float(np.mean([row["kl_sequence"] for row in last])),
        "tokens_per_second": sum(row["tokens"] for row in rows) / max(1e-9, rows[-1]["time"] - rows[0]["time"]),
        "prompts": ledger.outcomes,
    }


def _follow_wish(run: RunFolder, fleet: Fleet) -> None:
    """`triptych fleet RUN add 2` changes the fleet between two steps."""
    wanted = wanted_actors(run)
    if wanted is not None:
        fleet.resize(wanted)
        write_fleet_state(run, wanted)


def _prompts(recipe: Recipe, chat: Chat) -> dict[str, Prompt]:
    """The prompts that answers were ranked for: the reward model knows those best, and no kind drowns the others."""
    texts = in_turn(prompt_texts(recipe.collect.sources, recipe.seed), recipe.seed)[: recipe.collect.prompts]
    found = {text.id: Prompt(text.id, chat.prompt(text.messages)) for text in texts}
    room = recipe.model.context - recipe.rlhf.max_tokens
    return {name: prompt for name, prompt in found.items() if len(prompt.token_ids) <= room}


@contextmanager
def _actors(recipe: Recipe, run: RunFolder, plan: Plan) -> Iterator[tuple[Fleet, Any, Any]]:
    """Rollout actors, the learner and the reward actor, all starting at once and gone at the end."""
    sft = run.path("sft")
    text = shards_in(run.path("corpus") / "shards" / "train")
    learner = _remote(Learner, plan.learner).remote(
        recipe.rlhf, sft, run.path("reward"), text, recipe.seed, plan.learner.threads
    )
    reward = _remote(RewardActor, plan.reward).remote(run.path("reward"), plan.reward.threads)
    fleet = Fleet(
        sft,
        recipe.rlhf.rollout_actors,
        plan.rollout,
        recipe.model.context,
        recipe.seed,
        recipe.cluster.deadline_minutes * 60,
    )
    try:
        fleet.start()
        yield fleet, learner, reward
    finally:
        fleet.close()
        for actor in (learner, reward):
            ray.kill(actor)


def _remote(kind: type, share: Share) -> Any:
    environment = {"env_vars": {"OMP_NUM_THREADS": str(share.threads)}}
    return ray.remote(kind).options(num_cpus=share.cpus, num_gpus=share.gpus, runtime_env=environment)


def _rewards(reward: Any, batch: list[Prompt], groups: list[list[Sample]], deadline: float) -> list[list[float]]:
    sequences = [p.token_ids + sample.token_ids for p, group in zip(batch, groups, strict=True) for sample in group]
    flat = iter(wait_for(reward.score.remote(sequences), deadline, "the rewards"))
    return [[next(flat) for _ in group] for group in groups]


def _parity_gate(fleet: Fleet, learner: Any, prompts: list[Prompt], max_tokens: int, deadline: float) -> None:
    """Refuses to start when engine and learner disagree about the same tokens: every ratio would be wrong."""
    samples = fleet.generate(prompts, Sampling(1, 1.0, max_tokens, seed=0))
    drawn = [(prompt, samples[prompt.id][0]) for prompt in prompts]
    sequences = [prompt.token_ids + sample.token_ids for prompt, sample in drawn]
    starts = [len(prompt.token_ids) for prompt, _ in drawn]
    own = wait_for(learner.logprobs.remote(sequences, starts, 1.0), deadline, "the parity gate")
    pairs = [(a, b) for (_, s), row in zip(drawn, own, strict=True) for a, b in zip(s.logprobs, row, strict=True)]
    gap = max(abs(a - b) for a, b in pairs)
    if gap > PARITY_LIMIT:
        raise StageError(
            f"rollout engine and learner differ by {gap:.1e} in log-probability (limit {PARITY_LIMIT:.0e}): "
            "weights, precision or positions are not the same in both"
        )


if __name__ == "__main__":
    stage_main("rlhf")
