"""Measures how the rollout fleet's coordinator scales on simulated actors, and how it treats long answers.

Scaling: speed-up over one actor, CPU time per sample. Long answers: rate of the loop, prompts that were drawn and never
learned from, and the share of long prompts in what was learned from, where a tenth of all prompts are long.

The simulated actors have the latencies of `infra.bench.loops.simulation.Latency`. The cost is the process's CPU time,
with that of the simulation itself in it, so that the coordinator's is less; without Python's garbage collector, which
walks through all samples that are alive.
"""

import argparse
import gc
import random
import time
from collections import Counter
from dataclasses import dataclass

from actors.orchestrator.ledger import Ledger, Outcome
from actors.orchestrator.scheduler import RolloutScheduler
from actors.types import Prompt
from cluster.recipe.rlhf.fleet import FleetSettings
from cluster.recipe.rlhf.section import Rlhf, RolloutSampling
from infra.bench.loops.simulation import Latency, World, weights_of

STEPS, PROMPTS_AN_ACTOR, SAMPLES = 8, 16, 8
# Of the loop with long answers: actors, steps, and how often a step looks for samples that have come.
LONG_ACTORS, LONG_STEPS, LOOKS = 16, 40, 20
# Prompts an actor and step, seconds of the learner, `Latency.long_factor` and `Latency.long_tail`.
LONG_CASES = (
    (16, 0.5, 10, 0.0),
    (4, 0.5, 10, 0.0),
    (4, 0.2, 4, 0.3),
    (4, 0.5, 4, 1.0),
    (16, 0.5, 4, 1.0),
    (16, 0.3, 4, 0.5),
    (4, 0.3, 1, 2.0),
)


@dataclass(frozen=True)
class LongAnswers:
    """The outcome of a loop with long answers.

    Attributes:
        rate: prompts a second that were learned from.
        discarded: prompts that were drawn and neither learned from nor kept for the next step.
        given, learned: the share of long prompts in those that were drawn for, and in those that were learned from.
    """

    rate: float
    discarded: int
    given: float
    learned: float


class NoRewards:
    """Rewards of no samples."""

    def ready(self) -> bool:
        """Is always ready."""
        return True

    def wait(self) -> list[list[float]]:
        """Returns the rewards of no prompt."""
        return []


def run(actors: int) -> tuple[float, float]:
    """Measures samples a second of simulated time, and microseconds of CPU a sample; each step ends with new
    weights."""
    world = World(Latency(), random.Random(1))
    coordinator = world.coordinator(actors, deadline=60.0)
    coordinator.start()
    prompts = {str(i): Prompt(str(i), [1]) for i in range(2 * PROMPTS_AN_ACTOR * actors)}
    settings = Rlhf(
        prompts_per_step=PROMPTS_AN_ACTOR * actors,
        sampling=RolloutSampling(samples_per_prompt=SAMPLES),
        fleet=FleetSettings(max_staleness=1),
    )
    ledger = Ledger(prompts.values(), 1)
    scheduler = RolloutScheduler(coordinator, ledger, prompts, settings, 1, lambda *_: NoRewards(), world.timeline.now)
    begun, cpu = world.timeline.now(), time.process_time()
    for step in range(STEPS):
        batch = scheduler.next_batch(step, settings.prompts_per_step)
        ledger.requeue([group.turn for group in batch])
        coordinator.sync(weights_of(step + 1), wait=False)
    samples = STEPS * settings.prompts_per_step * SAMPLES
    return samples / (world.timeline.now() - begun), (time.process_time() - cpu) / samples * 1e6


def run_long(
    latency: Latency, prompts_an_actor: int, learner_seconds: float, staleness: int = 1, swap_in_flight: bool = False
) -> LongAnswers:
    """Runs the loop where every tenth prompt is long, as the latency says."""
    world = World(latency, random.Random(1), is_long=lambda prompt: prompt.name.endswith("0"))
    coordinator = world.coordinator(LONG_ACTORS, 600.0, swap_in_flight)
    coordinator.start()
    size = prompts_an_actor * LONG_ACTORS
    prompts = {str(i): Prompt(str(i), [1]) for i in range(4 * size)}
    settings = Rlhf(
        prompts_per_step=size,
        sampling=RolloutSampling(samples_per_prompt=SAMPLES),
        fleet=FleetSettings(max_staleness=staleness),
        steps=LONG_STEPS,
    )
    ledger = Ledger(prompts.values(), 1)
    scheduler = RolloutScheduler(coordinator, ledger, prompts, settings, 1, lambda *_: NoRewards(), world.timeline.now)
    learned: Counter[bool] = Counter()
    begun = world.timeline.now()
    for step in range(LONG_STEPS):
        batch = scheduler.next_batch(step, size)
        learned.update(world.is_long(group.prompt) for group in batch)
        for _ in range(LOOKS):
            world.timeline.run(learner_seconds / LOOKS)
            scheduler.collect()
        ledger.commit([group.turn for group in batch], Outcome.TRAINED)
        coordinator.sync(weights_of(step + 1), wait=staleness == 0)
    return LongAnswers(
        learned.total() / (world.timeline.now() - begun),
        world.drawn.total() - learned.total() - len(scheduler.finished),
        world.drawn[True] / world.drawn.total(),
        learned[True] / learned.total(),
    )


def main() -> None:
    """Prints one line for each number of actors."""
    gc.disable()
    run(1)
    alone, _ = run(1)
    print(f"{PROMPTS_AN_ACTOR} prompts x {SAMPLES} samples an actor and step, {STEPS} steps, max_staleness 1")
    for actors in (1, 4, 16, 64, 256, 1024):
        rate, cost = run(actors)
        print(
            f"{actors:5} actors: {rate:9,.0f} samples/s simulated, {rate / alone / actors:.2f} of linear; "
            f"{cost:.1f} us of CPU a sample"
        )
    print(f"{LONG_ACTORS} actors, every tenth prompt long, {LONG_STEPS} steps, max_staleness 1")
    for prompts, learner, factor, tail in LONG_CASES:
        for swap in (False, True):
            found = run_long(Latency(long_factor=factor, long_tail=tail), prompts, learner, swap_in_flight=swap)
            print(
                f"{prompts:2} prompts an actor, learner {learner} s, long: {factor:2} times the work and {tail} s "
                f"more, swap in flight {swap!s:5}: {found.rate:6.1f} prompts/s, {found.discarded} discarded, long "
                f"{found.given:.3f} of what was drawn and {found.learned:.3f} of what was learned from"
            )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
