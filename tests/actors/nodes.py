"""What goes on when a node of a cluster goes; prints what came of it.

A process of its own for each: it has a cluster of several nodes.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.fleet import Fleet
from actors.model.objectives.language import LanguageObjective
from actors.roster import ActorState
from actors.sample import Sampling
from actors.training_job import checkpoints_in
from cluster.metrics import read_metrics
from cluster.plan import Plan, Share
from cluster.session import ENVIRONMENT, ROOT
from pipelines.training import fit
from tests.actors.conftest import CONTEXT, changed, make_model, prompts
from tests.actors.test_trainer import training_job
from tests.helpers import wait_until

SECONDS = 120
ONE = Share(cpus=1, gpus=0, threads=1)


class Slow(LanguageObjective):
    """Leaves time to take the node away before all is trained."""

    def count(self, batch: Any) -> int:
        time.sleep(0.3)
        return super().count(batch)


def preempted(cluster: Cluster, root: Path) -> dict[str, Any]:
    """Two training workers are on a node that is taken away with notice: the steps, how many there should be, and the
    step of the checkpoint at the notice."""
    node = cluster.add_node(num_cpus=2)
    # The last step alone would have a checkpoint.
    job = training_job(root, "preempted", Slow(), workers=2, checkpoint_every=100, epochs=8)
    thread = threading.Thread(target=fit, args=(job, Plan(2, 0, 8, ONE, ONE, ONE, ONE, ONE), "preempted"), daemon=True)
    thread.start()
    wait_until(lambda: len(read_metrics(job.out)) > 2, SECONDS, "the third step")
    cluster.add_node(num_cpus=2)
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    subprocess.run([*command, "--deadline-remaining-seconds", "30"], check=True)
    wait_until(lambda: bool(checkpoints_in(job.out)), 20, "a checkpoint")
    noticed = checkpoints_in(job.out)[-1][0]
    cluster.remove_node(node, allow_graceful=False)
    thread.join(SECONDS)
    return {"of": job.steps, "steps": [row["step"] for row in read_metrics(job.out)], "noticed": noticed}


def removed(cluster: Cluster, root: Path) -> dict[str, Any]:
    """Of two rollout actors one is on a node that goes while they draw: the samples of each prompt, and what the actors
    are and have then."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    model = make_model(root, seed=0)
    with Fleet(root, 2, ONE, CONTEXT, seed=1, deadline=SECONDS) as fleet:
        fleet.load(1, changed(model, seed=1).state_dict())
        cluster.add_node(num_cpus=1)
        fleet.submit(prompts("removed", 24), Sampling(8, 1.0, 120, seed=1))
        time.sleep(0.5)
        begin = time.monotonic()
        cluster.remove_node(nodes[0], allow_graceful=False)
        groups = fleet.collect(24, deadline=SECONDS)
        wait_until(lambda: fleet.states() == [ActorState.READY] * 2, SECONDS, "the replacement")
        return {
            "samples": {group[0].prompt_id: [sample.index for sample in group] for group in groups},
            "deaths": fleet.counters().deaths,
            "versions": ray.get([handle.version.remote() for handle in fleet.handles()], timeout=SECONDS),
            "seconds": time.monotonic() - begin,
        }


def main(what: str, root: Path) -> None:
    """Prints what came of it, as JSON."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    surroundings = {"env_vars": {"PYTHONPATH": str(ROOT), **ENVIRONMENT}}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=surroundings)
    print(json.dumps({"preempted": preempted, "removed": removed}[what](cluster, root)))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
