"""RLHF on a Ray cluster of two nodes: one joins and gives an actor its place, then goes away with it.

Both nodes are processes of this machine. The second joins while the run is live, and `triptych fleet` adds an actor,
which lands there; then everything of that node is killed. The table gives the seconds until the actor worked, and from
the loss to the next finished step.

make demo && python -m infra.bench.node_loss [--run runs/demo]
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
from infra.bench.faults import SECONDS, Command, copied, end_family, options, parsed, titled, wait_for, wrong

STEPS = 60
DRAWS = "ray::RolloutActor.generate"
# The actor that joins finds its place on the other node, which has less to do.
HEAD_CPUS, NODE_CPUS = 2, 1
HEAD_SECONDS = 60.0


@contextlib.contextmanager
def ray_node(*words: str) -> Iterator[int]:
    """`ray start` in the foreground, by its process's id; all of its processes are killed at the end."""
    ray = Path(sys.executable).with_name("ray")
    fixed = ("--node-ip-address=127.0.0.1", "--object-store-memory=300000000", "--block")
    command = [str(ray), "start", *words, *fixed]
    path = f"{ray.parent}{os.pathsep}{os.environ['PATH']}"
    # By default Ray fills half of a node before it looks at the next.
    environment = {**os.environ, "PATH": path, "RAY_scheduler_spread_threshold": "0"}
    if "--head" not in words:
        # The head asks for the token that it made; who joins sends it only in this mode.
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


def join_and_leave(command: Command, address: str) -> None:
    """Has a node and an actor on it join a live run, and kills them.

    Raises:
        TimeoutError: the actor does not come to work, or the run does not go on.
    """
    wait_for(lambda: command.steps() >= 2, "step 2", command.process)
    with ray_node(f"--address={address}", f"--num-cpus={NODE_CPUS}") as node:
        # An actor that is added sooner goes to the first node, where there is room too.
        wait_until_it_joined(address, 2)
        begin = time.monotonic()
        fleet = [sys.executable, "-m", "pipelines", "fleet", str(command.run.root), "add", "1"]
        subprocess.run(fleet, check=True, timeout=60, stdout=subprocess.DEVNULL)
        wait_for(lambda: bool(titled(node, DRAWS)), "the actor on the second node to draw", command.process)
        took, done = time.monotonic() - begin, command.steps()
    lost = time.monotonic()
    wait_for(lambda: command.steps() > done, "the next step", command.process)
    print(f"an actor on the node that joined drew after {took:.1f} s, at step {done}")
    print(f"the next step came {time.monotonic() - lost:.1f} s after the node was lost")


def main() -> None:
    """Prints the figures; ends with 1 if the run was not whole."""
    words = options(__doc__, "node_loss.log")
    words.add_argument("--port", type=int, default=6380, help="for Ray's control store")
    given = parsed(words)
    address = f"127.0.0.1:{given.port}"
    # Sockets below it may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, copied(given.run) as run:
        head_words = ("--head", f"--port={given.port}", f"--num-cpus={HEAD_CPUS}", f"--temp-dir={folder}")
        with ray_node(*head_words, "--include-dashboard=false"):
            wait_until_it_answers(given.port)
            command = Command(run, given.log, [f"rlhf.steps={STEPS}", f"cluster.address={address}"])
            try:
                join_and_leave(command, address)
                code = command.process.wait(SECONDS)
            finally:
                command.end()
        found = [f"exit code {code}"] if code else wrong(run, STEPS)
        actors = [row["rollout_actors"] for row in read_metrics(run.path("policy"))]
        print(f"rollout actors by step: {actors}")
        print("; ".join(found) or f"all {STEPS} steps whole")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
