"""Takes a node of a cluster away: with notice, from under training; without, from under rollout actors.

A cluster of several nodes runs on this machine. Training on two workers has to go on on another node from the
checkpoint that the notice made, with each step once; rollout actors have to draw all that was asked, with the current
weights.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

from actors.model.causal_lm import save
from actors.orchestrator.coordination.members import ActorState
from actors.orchestrator.fleet import Fleet
from actors.trainer.job import checkpoints_in
from actors.types import Prompt, Sampling
from cluster.recipe.model import Model
from cluster.recipe.training import Training
from cluster.run.metrics import read_metrics
from cluster.runtime.plan import Allocation, Plan
from cluster.runtime.session import ENVIRONMENT, ROOT
from infra.bench.loops.job import made_up_job, made_up_model, made_up_tokenizer
from infra.bench.loops.rows import table
from infra.bench.scenarios.command import wait_until
from infra.bench.scenarios.outcome import Scenario, ScenarioOutcome, Settings
from pipelines.train import fit, speed_metrics

SECONDS = 240.0
ONE = Allocation(cpus=1, gpus=0, threads=1)
SHAPE = Model(size="2.5M", context=256)
STEPS, ROWS = 40, 8
PROMPTS, SAMPLES = 24, 8


@contextmanager
def started() -> Iterator[Cluster]:
    """Starts a cluster whose head does no work."""
    os.environ.update(ENVIRONMENT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        runtime_env = {"env_vars": {"PYTHONPATH": str(ROOT), **ENVIRONMENT}}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=runtime_env)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def with_notice(cluster: Cluster, root: Path) -> ScenarioOutcome:
    """Takes the node of two training workers away."""
    ids = np.random.default_rng(0).integers(5, SHAPE.vocabulary, (STEPS * ROWS, SHAPE.context))
    # Without the notice, the last step alone would have a checkpoint.
    settings = Training(batch_rows=ROWS, micro_batch_rows=ROWS, checkpoint_every=2 * STEPS, workers=2)
    job = made_up_job(root, SHAPE, table(ids, 1), settings, threads=1)
    node = cluster.add_node(num_cpus=2)
    plan = Plan(2, 0, 8, ONE, ONE, ONE, ONE, ONE)
    training = threading.Thread(target=fit, args=(job, plan, "training"), daemon=True)
    training.start()
    wait_until(lambda: len(read_metrics(root)) > 2, "the third step", seconds=SECONDS, poll_seconds=0.1)
    cluster.add_node(num_cpus=2)
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a bench"]
    subprocess.run([*command, "--deadline-remaining-seconds", "30"], check=True)
    wait_until(lambda: bool(checkpoints_in(root)), "the checkpoint of the notice", seconds=SECONDS, poll_seconds=0.1)
    cluster.remove_node(node, allow_graceful=False)
    training.join(SECONDS)
    rows = read_metrics(root)
    if [row["step"] for row in rows] != list(range(STEPS)):
        return ScenarioOutcome(float("nan"), wrong=["steps are missing or twice"])
    (resume,) = speed_metrics(rows)["resumes"]
    return ScenarioOutcome(resume["recovery_seconds"], details=f"{resume['lost_steps']} steps were done again")


def without_notice(cluster: Cluster, root: Path) -> ScenarioOutcome:
    """Takes the node of one of two rollout actors away while they draw."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    model, _, words = made_up_model(SHAPE, made_up_tokenizer(root, SHAPE))
    save(model, words, root / "model")
    prompts = [Prompt(f"prompt {number}", [2, 20 + number, 50, 60, 4, 3]) for number in range(PROMPTS)]
    with Fleet(root / "model", 2, ONE, SHAPE.context, seed=1, deadline=SECONDS) as fleet:
        fleet.load(1, model.state_dict())
        cluster.add_node(num_cpus=1)
        fleet.submit(prompts, Sampling(SAMPLES, 1.0, 120, seed=1))
        time.sleep(0.5)
        begin = time.monotonic()
        cluster.remove_node(nodes[0], allow_graceful=False)
        groups = fleet.collect(PROMPTS, deadline=SECONDS)
        wait_until(
            lambda: fleet.states() == [ActorState.READY] * 2,
            "the actor in its place",
            seconds=SECONDS,
            poll_seconds=0.1,
        )
        seconds = time.monotonic() - begin
        versions = ray.get([handle.version.remote() for handle in fleet.handles()], timeout=SECONDS)
        checks = {
            "prompts are missing or twice": sorted(group[0].id.prompt for group in groups)
            == sorted(prompt.id for prompt in prompts),
            "samples are missing": all(len(group) == SAMPLES for group in groups),
            "no actor died: the node was another's": fleet.counters().deaths == 1,
            f"the weights are of versions {versions}": versions == [1, 1],
        }
    return ScenarioOutcome(seconds, wrong=[what for what, holds in checks.items() if not holds])


@dataclass(frozen=True)
class NodeLoss:
    """A scenario that loses one of the nodes of a cluster of its own."""

    work: Callable[[Cluster, Path], ScenarioOutcome]

    def measure(self, _: Settings) -> ScenarioOutcome:
        """Starts the cluster and takes the node away.

        Raises:
            TimeoutError: something was waited for too long; the message says what.
        """
        with tempfile.TemporaryDirectory() as folder, started() as cluster:
            return self.work(cluster, Path(folder))


SCENARIOS = [
    Scenario("node: with notice, from under training", NodeLoss(with_notice).measure, needs_run=False),
    Scenario("node: without notice, from under rollout actors", NodeLoss(without_notice).measure, needs_run=False),
]
