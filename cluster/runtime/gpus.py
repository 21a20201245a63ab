"""The GPUs of this machine, read from NVIDIA's driver without loading CUDA."""

import os
import shutil
import subprocess

GB = 1e9


def gpu_memory_gb(whole_machine: bool = False) -> list[float]:
    """Lists the memory, in 1e9 bytes, of every NVIDIA GPU that this process may use, or of all that the machine has."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (subprocess.SubprocessError, OSError):
        return []
    found = [float(line) * 2**20 / GB for line in lines if line.replace(".", "").isdigit()]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        found
        if whole_machine or allowed is None
        else found[: len([name for name in allowed.split(",") if name.strip()])]
    )
