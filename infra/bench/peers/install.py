"""Installs the peers of a bench in folders of their own in the user's cache, outside the project's environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def uv() -> str:
    """Returns the path of uv, the installer."""
    return shutil.which("uv") or str(Path(sys.executable).with_name("uv"))


def folder_of(packages: tuple[str, ...]) -> Path:
    """Returns the folder in which packages are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "triptych" / "-".join(packages).translate(str.maketrans("[]=,", "----"))


def beside_ours(packages: tuple[str, ...]) -> Path:
    """Returns a folder for PYTHONPATH with packages that the project's environment lacks, without their requirements,
    which the environment has."""
    folder = folder_of(packages)
    ready = folder / ".ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages], check=True)
        ready.touch()
    return folder


def on_their_own(packages: tuple[str, ...]) -> Path:
    """Returns the Python of an environment with packages and all that they need, which it installs if it is missing."""
    folder = folder_of(packages)
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        for arguments in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            ["pip", "install", "--quiet", "--python", str(python), *packages],
        ):
            subprocess.run([uv(), *arguments], check=True)
        ready.touch()
    return python
