"""Measures how the rollout fleet's coordinator scales on simulated actors: speed-up over one, CPU time per sample.

The simulated actors have the latencies of `infra.bench.simulation.Latency`. The cost is the process's CPU time, with
that of the simulation itself in it, so that the coordinator's is less; without Python's garbage collector, which walks
through all samples that are alive.
"""

import gc
import random
import time

from actors.orchestrator.ledger import Ledger
from actors.orchestrator.scheduler import RolloutScheduler
from actors.types import Prompt
from cluster.recipe.fleet import FleetSettings
from cluster.recipe.rlhf import Rlhf, RolloutSampling
from infra.bench.simulation import Latency, World, weights_of

STEPS, PROMPTS_AN_ACTOR, SAMPLES = 8, 16, 8


class NoRewards:
    """Rewards of no samples."""

    def ready(self) -> bool:
        """Is always ready."""
        return True

    def wait(self) -> list[list[float]]:
        """Returns the rewards of no prompt."""
        return []


def run(actors: int) -> tuple[float, float]:
    """Samples a second of simulated time, and microseconds of CPU a sample; each step ends with new weights."""
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


if __name__ == "__main__":
    main()
