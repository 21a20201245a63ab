"""Runs TRL, without being a part of the project's environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster.runtime.session import ENVIRONMENT
from infra.bench.peers.install import beside_ours

PACKAGES = ("trl==1.16.0", "datasets==5.2.0", "multiprocess==0.70.19")
SECONDS = 1800


def run_trl(program: str, *words: object) -> list[float]:
    """Returns the numbers that a program beside this file prints as JSON; ends this one if it fails."""
    command = [sys.executable, str(Path(__file__).with_name(program)), *map(str, words)]
    path = os.pathsep.join([str(beside_ours(PACKAGES)), os.environ.get("PYTHONPATH", "")])
    # Without the variables that our stages set, as TRL's users run it.
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT} | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=SECONDS)
    if done.returncode:
        sys.exit(f"TRL ended with {done.returncode}:\n{done.stderr[-2000:]}")
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers
