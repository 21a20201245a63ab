"""Trains on two workers of a node that is taken away with notice, and goes on on another; prints what came of it.

A process of its own: it has a cluster of several nodes.
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

from actors.model.objectives.language import LanguageObjective
from actors.training_job import checkpoints_in
from cluster.metrics import read_metrics
from cluster.plan import Plan, Share
from cluster.session import ROOT
from pipelines.training import fit
from tests.actors.test_trainer import training_job
from tests.helpers import wait_until

SECONDS = 120
ONE = Share(1, 0, 1)


class Slow(LanguageObjective):
    """Leaves time to take the node away before all is trained."""

    def count(self, batch: Any) -> int:
        time.sleep(0.3)
        return super().count(batch)


def main(root: Path) -> None:
    """Prints the steps, and where training stood when the checkpoint of the notice was there."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    node = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
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
    rows = read_metrics(job.out)
    print(json.dumps({"of": job.steps, "steps": [row["step"] for row in rows], "noticed": noticed}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
