"""Runs RLHF on a Ray cluster of two nodes, of which one joins, gives an actor its place, and goes away with it.

Both nodes are processes of this machine. The second joins while the run is live, and `triptych fleet` adds an actor,
which lands there; then everything of that node is killed. Seconds are those from the loss to the next finished step.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.recipe.model import Cluster
from cluster.run.metrics import read_metrics
from cluster.runtime.session import connect
from infra.bench.scenarios.command import SECONDS, RlhfCommand, copied, end_family, titled, wait_until, wrong_with
from infra.bench.scenarios.outcome import Scenario, ScenarioOutcome, Settings

STEPS = 60
DRAWS = "ray::RolloutActor.generate"
# The actor that joins finds its place on the other node, which has less to do.
HEAD_CPUS, NODE_CPUS = 2, 1
HEAD_SECONDS = 60.0


@contextlib.contextmanager
def ray_node(*words: str) -> Iterator[int]:
    """Runs `ray start` in the foreground and gives its process's id; all of its processes are killed at the end."""
    ray = Path(sys.executable).with_name("ray")
    fixed = ("--node-ip-address=127.0.0.1", "--object-store-memory=300000000", "--block")
    command = [str(ray), "start", *words, *fixed]
    path = f"{ray.parent}{os.pathsep}{os.environ['PATH']}"
    # By default Ray fills half of a node before it looks at the next.
    environment = {**os.environ, "PATH": path, "RAY_scheduler_spread_threshold": "0"}
    if "--head" not in words:
        # The head asks for the token that it made; a node that joins sends it only in this mode.
        environment["RAY_AUTH_MODE"] = "token"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            end_family(process.pid)


def wait_until_it_answers(port: int) -> None:
    """Raises a TimeoutError if nothing listens there in time."""
    end = time.monotonic() + HEAD_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"waited {HEAD_SECONDS:.0f} s for Ray's control store at port {port}")


def wait_until_it_joined(address: str, nodes: int) -> None:
    """Raises a TimeoutError if the cluster has not so many nodes in time."""
    end = time.monotonic() + HEAD_SECONDS
    with connect(Cluster(address=address)):
        import ray

        while sum(node["Alive"] for node in ray.nodes()) < nodes:
            if time.monotonic() > end:
                raise TimeoutError(f"waited {HEAD_SECONDS:.0f} s for node {nodes} of {address}")
            time.sleep(0.1)


def join_and_leave(command: RlhfCommand, address: str) -> tuple[float, float]:
    """Adds a node, and an actor on it, to a live run, and kills them.

    Returns:
        Seconds until the actor drew, and from the loss of its node to the next finished step.

    Raises:
        TimeoutError: the actor does not come to work, or the run does not go on.
    """
    wait_until(lambda: command.steps() >= 2, "step 2", command.process)
    with ray_node(f"--address={address}", f"--num-cpus={NODE_CPUS}") as node:
        # An actor that is added sooner goes to the first node, where there is room too.
        wait_until_it_joined(address, 2)
        begin = time.monotonic()
        fleet = [sys.executable, "-m", "pipelines", "fleet", str(command.run.root), "add", "1"]
        subprocess.run(fleet, check=True, timeout=60, stdout=subprocess.DEVNULL)
        wait_until(lambda: bool(titled(node, DRAWS)), "the actor on the second node to draw", command.process)
        joined, done = time.monotonic() - begin, command.steps()
    lost = time.monotonic()
    wait_until(lambda: command.steps() > done, "the next step", command.process)
    return joined, time.monotonic() - lost


def measure(given: Settings) -> ScenarioOutcome:
    """Runs the stage while a node joins and is lost.

    Raises:
        TimeoutError: something was waited for too long; the message says what.
        subprocess.TimeoutExpired: the command did not end.
    """
    address = f"127.0.0.1:{given.port}"
    # Sockets below it may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, copied(given.run) as run:
        head_words = ("--head", f"--port={given.port}", f"--num-cpus={HEAD_CPUS}", f"--temp-dir={folder}")
        with ray_node(*head_words, "--include-dashboard=false"):
            wait_until_it_answers(given.port)
            command = RlhfCommand(run, given.log, [f"rlhf.steps={STEPS}", f"cluster.address={address}"])
            try:
                joined, seconds = join_and_leave(command, address)
                code = command.process.wait(SECONDS)
            finally:
                command.end()
        wrong = [f"exit code {code}"] if code else wrong_with(run, STEPS)
        actors = [row["rollout_actors"] for row in read_metrics(run.path("policy"))]
    details = f"an actor on the node that joined drew after {joined:.1f} s; rollout actors by step: {actors}"
    return ScenarioOutcome(seconds, wrong=wrong, details=details)


SCENARIOS = [Scenario("node: one joins a live RLHF stage and is lost", measure)]
