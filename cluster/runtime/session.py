"""The connection to Ray: to a local cluster that ends with the command, or to a cluster that is running already."""

import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlparse

import psutil

import cluster
from cluster.compat import (
    LOCAL_CLUSTER_ENV,
    joined_session_folder,
    listen_on_loopback,
    local_cluster_processes,
    quiet_session_loggers,
    session_folder_option,
)
from cluster.errors import UserError, first_line
from cluster.recipe.model import Cluster

# The folder of the project's packages, and the packages that are sent to a cluster elsewhere.
ROOT = Path(cluster.__file__).resolve().parents[1]
PACKAGES = ("cluster", "actors", "pipelines", "serve", "infra")
# The longest wait for a TCP connection, and for a process to end by itself.
CONNECT_SECONDS = 10.0
EXIT_SECONDS = 5.0

# Environment variables of every process of a session, unless they are set already.
ENVIRONMENT = {
    # The engine runs in its actor's process: it dies with the actor, and its weights can be reached.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Several engines share the cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    # PyTorch asks Linux for pages of 2 MB for large tensors: with pages of 4 KB, page faults took a sixth of a small
    # model's step.
    "THP_MEM_ALLOC_ENABLE": "1",
    # vLLM's matrix products on CPUs use oneDNN, which caches a compiled kernel of 0.2 MB for every number of tokens and
    # shape that it has seen, 1,024 by default: under changing load a server grew for half an hour. A step of changing
    # sizes took 1.1 ms with 512 kernels, as with 1,024, and 1.4 ms with 256.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
    # transformers draws a progress bar for every model that it loads; the stages have progress bars of their own.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The polling interval of Ray Train's controller, 2 s by default: ray.train.report() blocks that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
}

# Environment variables of processes that train: glibc keeps freed memory for the next step. By default it hands large
# tensors back to Linux, which clears every page anew: 12 % of a step with 135M parameters on two cores, 5 % with 2.5M.
# Peak memory grows by 3 to 6 %; not for processes that live for weeks.
TRAINING_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@contextmanager
def connect(settings: Cluster, object_store_gb: float = 1.0, modules: Sequence[Path] = ()) -> Iterator[None]:
    """Connects to Ray until the block ends. A local cluster ends with it, also on SIGTERM and SIGINT.

    A process that is connected already keeps its connection. Inside a Ray job (`RAY_ADDRESS` is set) the job's cluster
    is used, whatever the recipe says. A local cluster dies with this process even on SIGKILL.

    Args:
        settings: the recipe's cluster section.
        object_store_gb: the shared memory of a local cluster, allocated as it fills; objects beyond it spill to disk.
        modules: files and folders of Python modules to send to a cluster that is running already, beside the project's.

    Raises:
        UserError: no cluster answers at the address, or it refuses.
    """
    inside_job = _is_cluster_address(os.environ.get("RAY_ADDRESS", ""))
    address = "auto" if inside_job else settings.address
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address == "local":
        listen_on_loopback()
    _add_to_path(ROOT)
    if address != "local" and auth_token():
        # A cluster with a token asks for it; a driver sends it only in this mode, which Ray reads once.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet_session_loggers()
    previous = _set_sigterm_handler(_exit_on_signal)
    try:
        if address == "local":
            _start_local(settings, object_store_gb)
        else:
            _join(address, None if inside_job else modules)
        # Ray has set a handler of its own, which ends the process with the signal's number.
        _set_sigterm_handler(_exit_on_signal)
        yield
    finally:
        started = local_cluster_processes() if address == "local" else []
        ray.shutdown()
        _end(started)
        if previous is not None:
            _set_sigterm_handler(previous)


def collect_garbage_rarely() -> None:
    """Makes Python look for garbage in cycles after 10,000 new objects, and not after 700 as it does by itself.

    Importing makes millions of objects and hardly any garbage: vLLM took 5.4 s of processor time to import in place of
    7.0, and the libraries of a training worker took 3.1 s in place of 4.2.
    """
    gc.set_threshold(10_000, 20, 20)


def auth_token() -> str:
    """Finds the token of Ray's clusters where Ray itself looks for it; empty if there is none."""
    path = _token_path()
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token and path.exists():
        token = path.read_text(encoding="utf-8").strip()
    return token


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _protect_token() -> None:
    """Makes the token of Ray's clusters readable to its owner alone, and a new one if there is none: Ray 2.60 would
    write it readable to all."""
    path = _token_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        path.chmod(0o600)


def check_address(settings: Cluster) -> None:
    """Checks that something listens at the address of the recipe's cluster, if it names one.

    Raises:
        UserError: nothing does.
    """
    if settings.address not in ("local", "auto"):
        _check_answers(settings.address)


def require_free_port(host: str, port: int) -> None:
    """Checks that this machine can listen on a port.

    Args:
        host: the address to listen on.
        port: the TCP port.

    Raises:
        UserError: another program listens there, or the address is not one of this machine's.
    """
    advice = "stop the program that uses it, or choose another port (serve.port=… or --port …)"
    if not 0 < port < 65536:
        raise UserError(f"port {port} does not exist: choose one from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Ignores connections that linger after a server has ended, but not another listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; {advice}") from error


def _start_local(settings: Cluster, object_store_gb: float) -> None:
    for name, value in LOCAL_CLUSTER_ENV.items():
        os.environ.setdefault(name, value)
    import ray

    _protect_token()
    try:
        ray.init(
            address="local",
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            object_store_memory=int(object_store_gb * 1e9),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **session_folder_option(_session_folder()),
            runtime_env={"worker_process_setup_hook": f"{__name__}.{collect_garbage_rarely.__name__}"},
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot start Ray on this machine: {first_line(error)}") from error


def _join(address: str, modules: Sequence[Path] | None) -> None:
    """Joins a running cluster. A driver sends the project's code and modules of its own; a job (None) has both already,
    in its working directory."""
    import ray

    where = os.environ["RAY_ADDRESS"] if modules is None else address
    _check_answers(where)
    runtime_env: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    if modules is not None:
        packages = [ROOT / name for name in PACKAGES if (ROOT / name).is_dir()]
        runtime_env["py_modules"] = [str(path) for path in (*packages, *modules)]
    try:
        ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"cannot use the Ray cluster at {where}: {first_line(error)}") from error
    if modules is not None:
        _introduce(address)


def _introduce(address: str) -> None:
    """Says which cluster has been joined.

    Raises:
        UserError: another run of this program started it, and ends it when it ends.
    """
    import ray

    folder = joined_session_folder()
    if folder is not None and folder.is_relative_to(_sessions()):
        process = folder.relative_to(_sessions()).parts[0]
        ray.shutdown()
        raise UserError(
            f"cluster.address={address}: the Ray cluster of this machine is that of another run (process {process}), "
            "and ends with it: start one with `ray start --head`, or leave cluster.address=local"
        )
    total = ray.cluster_resources()
    nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    where = ray.get_runtime_context().gcs_address if folder is not None else address
    print(
        f"triptych: using the Ray cluster at {where}: {len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, "
        f"{total.get('GPU', 0):g} GPUs",
        file=sys.stderr,
    )


def _sessions() -> Path:
    """Returns the folder of the local clusters of this user."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / f"triptych-{os.getuid()}"


def _is_cluster_address(address: str) -> bool:
    """Tells whether `RAY_ADDRESS` names a cluster, and not the HTTP address for `ray job`, which reads it too."""
    return bool(address) and not address.startswith(("http://", "https://")) and address != "local"


def _check_answers(address: str) -> None:
    """Raises a UserError within seconds if nothing listens at an address; Ray itself would try for minutes."""
    if address == "auto":
        return
    place = urlparse(address if "://" in address else f"//{address}")
    try:
        port = place.port or 10001
        with socket.create_connection((place.hostname or "", port), timeout=CONNECT_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}): is it running, and the port right?") from error


def _end(processes: list[psutil.Process]) -> None:
    """Kills processes that do not end by themselves: Ray does not look after a worker that hangs while it exits."""
    _, left = psutil.wait_procs(processes, timeout=EXIT_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=EXIT_SECONDS)


def _session_folder() -> Path:
    """Returns the folder for the sockets and logs of a local cluster, and removes those of processes that are gone.

    Its path is short, because that of a socket may have 107 characters. It outlives the session, for its logs.
    """
    home = _sessions()
    home.mkdir(mode=0o700, exist_ok=True)
    for folder in home.iterdir():
        if folder.name.isdigit() and not psutil.pid_exists(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
    return home / str(os.getpid())


def _add_to_path(root: Path) -> None:
    """Adds a folder to PYTHONPATH, so that worker processes import the project whether or not it is installed."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(root) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *paths])


def _set_sigterm_handler(handler: Any) -> Any:
    """Sets a handler and returns the one before; outside the main thread, which alone may do so, does nothing."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return None


def _exit_on_signal(signal_number: int, frame: FrameType | None) -> None:
    """Raises SystemExit, so that every `finally` runs."""
    del frame
    sys.exit(128 + signal_number)
