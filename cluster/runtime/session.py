"""The connection to Ray: a cluster of this machine alone that ends with the command, or one that is already there."""

import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlparse

import psutil

import cluster
from cluster.errors import UserError, first_line
from cluster.recipe.model import Cluster

ROOT = Path(cluster.__file__).resolve().parents[1]
PACKAGES = ("cluster", "actors", "pipelines", "serve", "infra")
ANSWER_SECONDS = 10.0
LEAVE_SECONDS = 5.0

ENVIRONMENT = {
    # The engine stays in its actor's process: it dies with it, and its weights can be reached.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Several engines share the cores, and each one's cache is bounded (GiB).
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    # PyTorch asks Linux for pages of 2 MB where a tensor is large: with those of 4 KB, their faults made a sixth of the
    # time of a small model's step.
    "THP_MEM_ALLOC_ENABLE": "1",
    # vLLM's products on CPUs go through oneDNN, which keeps a compiled kernel of 0.2 MB for every number of tokens and
    # shape that it has seen, 1,024 by default: under changing load a server grew for half an hour. A step of changing
    # sizes took 1.1 ms with 512, as with 1,024, and 1.4 with 256.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
    # transformers draws a bar for every model that it loads; the stages have progress bars of their own.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often Ray Train's controller looks: ray.train.report() blocks that long, 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
}

# Of processes that train: what they free stays theirs, for the next step to take. Otherwise glibc hands large tensors
# back to Linux, which clears every page anew: 12 % of a step with 135M parameters on two cores, 5 % with 2.5M. It holds
# 3 to 6 % more at most, and is not for processes that live for weeks.
TRAINING_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@contextmanager
def connect(settings: Cluster, object_store_gb: float = 1.0) -> Iterator[None]:
    """Connects to Ray for as long as the context lasts; what it started ends with it, on SIGTERM and SIGINT too.

    A process that is connected already keeps its connection, and inside a Ray job (`RAY_ADDRESS` is set) the job's
    cluster is used whatever the recipe says. A local cluster dies with this process even on SIGKILL.

    Args:
        settings: the recipe's cluster section.
        object_store_gb: the shared memory of a local cluster, used as objects come; larger ones spill to disk.

    Raises:
        UserError: no cluster answers at that address, or it refuses.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _add_to_path(ROOT)
    inside_job = _is_cluster_address(os.environ.get("RAY_ADDRESS", ""))
    address = "auto" if inside_job else settings.address
    if address != "local" and auth_token():
        # A cluster asks for the token where there is one; who joins sends it only in this mode, which Ray reads once.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray says on every start that its token authentication is on, and of every dataset how it goes; the stages have
    # progress bars of their own.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    previous = _on_sigterm(_leave)
    try:
        if address == "local":
            _start_local(settings, object_store_gb)
        else:
            _join(address, ship_code=not inside_job)
        # Ray sets a handler of its own, which ends the process with the signal's number.
        _on_sigterm(_leave)
        yield
    finally:
        started = _workers() if address == "local" else []
        ray.shutdown()
        _end(started)
        if previous is not None:
            _on_sigterm(previous)


def auth_token() -> str:
    """The token that Ray's clusters ask for, from where Ray itself looks; empty if there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token and path.exists():
        token = path.read_text(encoding="utf-8").strip()
    return token


def _start_local(settings: Cluster, object_store_gb: float) -> None:
    # Nobody takes this machine away with notice, and the process that would watch for it costs 4 s of processor time.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Two processes that would wait for tasks from the start: 2 s of processor time, and stages need others.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            object_store_memory=int(object_store_gb * 1e9),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(_session_folder()),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot start Ray on this machine: {first_line(error)}") from error


def _join(address: str, ship_code: bool) -> None:
    """Joins a cluster. A job has the code as its working directory; any other driver sends it."""
    import ray

    where = os.environ["RAY_ADDRESS"] if not ship_code else address
    _check_answers(where)
    runtime_env: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    if ship_code:
        runtime_env["py_modules"] = [str(ROOT / name) for name in PACKAGES if (ROOT / name).is_dir()]
    try:
        ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"cannot use the Ray cluster at {where}: {first_line(error)}") from error


def _is_cluster_address(address: str) -> bool:
    """Whether `RAY_ADDRESS` names a cluster, and not the HTTP address that `ray job` takes from the same variable."""
    return bool(address) and not address.startswith(("http://", "https://")) and address != "local"


def check_address(settings: Cluster) -> None:
    """Raises a UserError if the recipe names a cluster and nothing listens at its address."""
    if settings.address not in ("local", "auto"):
        _check_answers(settings.address)


def _check_answers(address: str) -> None:
    """Raises a UserError within seconds if nothing listens there; Ray itself would try for minutes."""
    if address == "auto":
        return
    place = urlparse(address if "://" in address else f"//{address}")
    try:
        port = place.port or 10001
        with socket.create_connection((place.hostname or "", port), timeout=ANSWER_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}): is it running, and the port right?") from error


def _workers() -> list[psutil.Process]:
    """The processes that this process's local cluster has started."""
    with suppress(psutil.NoSuchProcess):
        raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
        return [process for raylet in raylets for process in raylet.children(recursive=True)]
    return []


def _end(processes: list[psutil.Process]) -> None:
    """Kills what does not end by itself: Ray no longer looks after a worker that hangs as it leaves."""
    _, left = psutil.wait_procs(processes, timeout=LEAVE_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=LEAVE_SECONDS)


def _session_folder() -> Path:
    """Where the local cluster keeps its sockets and logs. Those of sessions whose process is gone are removed.

    It is short, because a socket's path may have 107 characters, and it outlives the session, for its logs.
    """
    home = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / f"triptych-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    for folder in home.iterdir():
        if folder.name.isdigit() and not psutil.pid_exists(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
    return home / str(os.getpid())


def _add_to_path(root: Path) -> None:
    """Lets worker processes import the project, installed or not."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(root) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *paths])


def _on_sigterm(handler: Any) -> Any:
    """Sets the handler and gives back the one before; does nothing where only the main thread may."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return None


def _leave(signal_number: int, frame: FrameType | None) -> None:
    """Ends the process in order: every `finally` runs."""
    del frame
    sys.exit(128 + signal_number)


# Whether a port is free, asked before anything starts.
def require_free_port(host: str, port: int) -> None:
    """Checks that this machine can listen on the address.

    Raises:
        UserError: another program listens there, or the address is not one of this machine's.
    """
    advice = "stop the program that uses it, or choose another port (serve.port=… or --port …)"
    if not 0 < port < 65536:
        raise UserError(f"port {port} is none: choose one from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Connections of a server that has just ended linger; this option looks past them, not past a listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; {advice}") from error
