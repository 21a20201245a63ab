import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.errors import UserError
from cluster.recipe.model import Cluster
from cluster.runtime.session import ROOT, connect, require_free_port

# Starts a session with a live actor, prints its processes, and sleeps.
DRIVER = """
import signal, time, psutil, ray
# A script's commands in the background, such as these tests, inherit that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from cluster.recipe.model import Cluster
from cluster.runtime.session import connect
with connect(Cluster(cpus=2, gpus=0), object_store_gb=0.1):
    @ray.remote
    class Busy:
        def imports(self):
            import cluster.recipe.recipe
            return 1
    actor = Busy.remote()
    ray.get(actor.imports.remote(), timeout=180)
    print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)],
)
def test_no_process_is_left_however_the_driver_ends(ending: signal.Signals, code: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    children = [int(word) for word in driver.stdout.readline().split()]
    assert len(children) >= 4
    driver.send_signal(ending)
    assert driver.wait(30) == code
    # Ray's two agents end by themselves too, but look for the dead control store for a minute first.
    allowed = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} if ending == signal.SIGKILL else set()
    deadline = time.monotonic() + 20
    while not _names(children) <= allowed and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _names(children) <= allowed


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "ray://no.such.host.invalid:10001"])
def test_a_cluster_that_does_not_answer_is_named(address: str) -> None:
    script = f"""
from cluster.errors import UserError
from cluster.recipe.model import Cluster
from cluster.runtime.session import connect
try:
    with connect(Cluster(address={address!r})):
        pass
except UserError as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=True)
    assert f"no Ray cluster answers at {address}" in child.stdout
    assert child.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_connected_process_keeps_its_connection() -> None:
    import ray

    with connect(Cluster(address="ray://127.0.0.1:1")):
        pass
    assert ray.is_initialized()


def _names(processes: list[int]) -> set[str]:
    """Returns the process titles of those that are still running."""
    found = set()
    for number in processes:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            process = psutil.Process(number)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.cmdline()[0])
    return found


def test_a_taken_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: Address already in use.*another port") as caught:
            require_free_port("127.0.0.1", port)
    assert "\n" not in str(caught.value)
    require_free_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("no.such.host.invalid", 8000)])
def test_impossible_addresses_are_refused(host: str, port: int) -> None:
    with pytest.raises(UserError):
        require_free_port(host, port)


# Says where a cluster listens and who may read its token. Then an actor hangs while it exits, which Ray takes for dead.
CLUSTER = """
import atexit, json, os, stat, time
from pathlib import Path
import psutil
from cluster.recipe.model import Cluster
from cluster.runtime.session import connect
with connect(Cluster(cpus=1, gpus=0), object_store_gb=0.1):
    import ray
    @ray.remote
    class Hanging:
        def process(self):
            atexit.register(time.sleep, 100)
            return os.getpid()
        def leave(self):
            ray.actor.exit_actor()
    actor = Hanging.remote()
    process = psutil.Process(ray.get(actor.process.remote(), timeout=180))
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = [one.laddr.ip for one in psutil.net_connections("inet") if one.status == "LISTEN" and one.pid in own]
    token = stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode)
    actor.leave.remote()
    try:
        ray.get(actor.process.remote(), timeout=60)
    except ray.exceptions.ActorDiedError:
        hangs = process.is_running()
# Where nothing reaps orphans, an ended process stays as a zombie.
left = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
print(json.dumps([found, token, hangs, left]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [None, 0o644])
def test_a_local_cluster_listens_on_the_loopback_hides_its_token_and_kills_workers_that_hang(
    tmp_path: Path, earlier: int | None
) -> None:
    token = tmp_path / ".ray" / "auth_token"
    if earlier:
        token.parent.mkdir()
        token.write_text("a" * 64)
        token.chmod(earlier)
    hidden = {"RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    addresses, mode, hangs, left = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) > 4
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert mode == 0o600
    assert len(token.read_text()) == 64
    assert (hangs, left) == (True, False)
