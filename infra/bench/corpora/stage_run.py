"""Runs the corpus stage as a user does, in a process of its own, and watches the memory of it and its children."""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

MODEL = {"size": "2.5M", "vocabulary": 2048, "context": 512}
_CHATS = {"sources": [{"kind": "function", "function": "pipelines.demo.questions:prompts"}]}
_EVERY_SECONDS = 0.1


@dataclass
class Watched:
    """Wall-clock seconds, and the peak resident MB of the driver, of one worker and of all workers together."""

    seconds: float = 0.0
    driver: int = 0
    worker: int = 0
    workers: int = 0


def write_recipe(folder: Path, lines: Path) -> Path:
    """Writes a recipe with one source of lines, whose run folder is `folder`/run; returns its path."""
    recipe = {
        "name": "bench",
        "run": str(folder / "run"),
        "model": MODEL,
        "corpus": {"sources": [{"kind": "files", "path": str(lines)}]},
        "sft": _CHATS,
        "collect": _CHATS,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def start(recipe: Path, cpus: int) -> psutil.Popen:
    """Starts the stage with `cpus` workers."""
    command = [sys.executable, "-m", "pipelines", "corpus", str(recipe), f"cluster.cpus={cpus}"]
    log = recipe.with_name("log").open("ab")
    return psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def watch(process: psutil.Popen) -> Watched:
    """Watches a stage until it ends.

    Raises:
        RuntimeError: the stage failed.
    """
    found, begun = Watched(), time.monotonic()
    while process.poll() is None:
        workers = [_resident(child) for child in family(process) if _is_worker(child)]
        found.driver = max(found.driver, _resident(process))
        found.worker = max([found.worker, *workers])
        found.workers = max(found.workers, sum(workers))
        time.sleep(_EVERY_SECONDS)
    found.seconds = time.monotonic() - begun
    if process.returncode:
        raise RuntimeError(f"the corpus stage ended with exit code {process.returncode}")
    return found


def family(process: psutil.Process) -> list[psutil.Process]:
    """Lists all descendants of a process."""
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def phases(folder: Path) -> float:
    """Sums the seconds of a finished run's phases, without the start of Ray and of Python."""
    stats = json.loads((folder / "run" / "corpus" / "stats.json").read_text(encoding="utf-8"))
    return float(sum(stats["seconds"].values()))


def hashes(run: Path) -> dict[str, str]:
    """Hashes every file of the finished stage, except those that contain seconds."""
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((run / "corpus").rglob("*"))
        if file.is_file() and file.name not in ("stats.json", "manifest.json")
    }


def _is_worker(process: psutil.Process) -> bool:
    try:
        return str(process.name()).startswith("ray::")
    except psutil.NoSuchProcess:
        return False


def _resident(process: psutil.Process) -> int:
    """Measures resident MB without shared memory: Ray's object store has a fixed size and is mapped by all
    processes."""
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared) >> 20
