"""RLHF: sample, reward, reinforce, reload; rollout actors, a reward actor and a learner actor."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.fleet import Fleet
from actors.learner import Learner
from actors.ledger import Ledger, Outcome
from actors.model.chat import Chat
from actors.model.objectives.algorithms import ALGORITHMS
from actors.reward import FunctionReward, ModelReward, Question, Scorer, load_function, weighted_rewards
from actors.rollouts import Rollouts
from actors.sample import Prompt, Sampling
from actors.stream import shards_in
from cluster.cli import stage_main
from cluster.failures import StageError, wait_for
from cluster.fleet import fleet_control, wanted_actors, write_fleet_state
from cluster.metrics import MetricsWriter, Stopwatch, read_metrics
from cluster.plan import Plan, Share, make_plan
from cluster.progress import metrics_progress
from cluster.recipe import Recipe, Reward
from cluster.run import RunFolder, file_fingerprint
from cluster.stages import Result
from pipelines.chat_data import prompts as prompt_texts
from pipelines.preferences import in_turn
from pipelines.trust import require_trust

# Engine and learner run the same float32 weights; measured gap 1e-6. Beyond this they are not the same model.
PARITY_LIMIT = 1e-3
PARITY_PROMPTS = 8
# The summary's last reward is a mean over so many steps: one step's is noisy.
LAST_STEPS = 5
# A reward function computes little beside the models.
FUNCTION_SHARE = Share(cpus=0, gpus=0, threads=1)


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """The loop. Every prompt taken from the ledger ends trained, across crashes and resumes."""
    settings, plan = recipe.rlhf, make_plan(recipe)
    deadline = recipe.cluster.deadline_seconds
    prompts, questions = _prompts(recipe, Chat.of(run.path("sft")))
    dynamic = ALGORITHMS[settings.algorithm].dynamic_sampling
    for source in settings.rewards:
        if source.function:
            load_function(source.function)
        else:
            require_trust(run.require("reward", "reward").metrics["trust"]["probes"], settings.accept_probes)
    checkpoint = out / "checkpoint"
    with (
        _actors(recipe, run, plan, questions) as (fleet, learner, scorers),
        fleet_control(run, settings.rollout_actors),
    ):
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
                batch = rollouts.scored_batch(step, partial(weighted_rewards, scorers), dynamic)
                learned = learner.step.remote(batch.prompts, batch.groups, batch.rewards)
                figures = wait_for(learned, deadline, "the learner's step")
                ledger.settle(batch.tickets, Outcome.TRAINED)
                clock.lap()
                fleet.sync(step + 1, wait_for(learner.weights.remote(), deadline, "the learner's weights"))
                sync_seconds = clock.lap()
                metrics.write(
                    step,
                    **figures,
                    rollout_seconds=batch.rollout_seconds,
                    reward_seconds=batch.reward_seconds,
                    sync_seconds=sync_seconds,
                    rollout_tokens_per_second=figures["tokens"] / batch.rollout_seconds,
                    filtered=batch.filtered,
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


def _prompts(recipe: Recipe, chat: Chat) -> tuple[dict[str, Prompt], dict[str, Question]]:
    """The prompts that answers were ranked for: the reward model knows those best, and no kind drowns the others. As
    the engines take them, and as reward functions do."""
    texts = in_turn(prompt_texts(recipe.collect.sources, recipe.seed), recipe.seed)[: recipe.collect.prompts]
    found = {text.id: Prompt(text.id, chat.prompt(text.messages)) for text in texts}
    questions = {text.id: Question(text.messages, text.metadata) for text in texts}
    room = recipe.model.context - recipe.rlhf.max_tokens
    return {name: prompt for name, prompt in found.items() if len(prompt.token_ids) <= room}, questions


@contextmanager
def _actors(
    recipe: Recipe, run: RunFolder, plan: Plan, questions: dict[str, Question]
) -> Iterator[tuple[Fleet, Any, list[Scorer]]]:
    """Rollout actors, the learner and the reward actors, all starting at once and gone at the end."""
    sft, deadline = run.path("sft"), recipe.cluster.deadline_seconds
    text = shards_in(run.path("corpus") / "shards" / "train")
    learner = _remote(Learner, plan.learner).remote(
        recipe.rlhf, sft, run.path("reward"), text, recipe.seed, plan.learner.threads
    )
    scorers = [_scorer(source, run, plan, questions, deadline) for source in recipe.rlhf.rewards]
    fleet = Fleet(sft, recipe.rlhf.rollout_actors, plan.rollout, recipe.model.context, recipe.seed, deadline)
    try:
        fleet.start()
        ready = [scorer.actor.__ray_ready__.remote() for scorer in scorers]
        wait_for(ready, deadline, "the reward actors to start")
        yield fleet, learner, scorers
    finally:
        fleet.close()
        for actor in (learner, *(scorer.actor for scorer in scorers)):
            ray.kill(actor)


def _scorer(source: Reward, run: RunFolder, plan: Plan, questions: dict[str, Question], deadline: float) -> Scorer:
    if source.function:
        actor = _remote(FunctionReward, FUNCTION_SHARE).remote(source.function, questions)
        return Scorer(f"the function {source.function}", actor, source.weight, source.timeout_seconds)
    actor = _remote(ModelReward, plan.reward).remote(run.path("reward"), plan.reward.threads)
    return Scorer("the reward model", actor, source.weight, deadline)


def _remote(kind: type, share: Share) -> Any:
    environment = {"env_vars": {"OMP_NUM_THREADS": str(share.threads)}}
    return ray.remote(kind).options(num_cpus=share.cpus, num_gpus=share.gpus, runtime_env=environment)


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
