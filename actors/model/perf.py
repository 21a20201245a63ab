"""The speed of training: floating-point operations of a token and of the machine, precision, and compiled layers."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from actors.model.parts import layers_of
from cluster.errors import UserError
from cluster.recipe.base import Precision

# Dense bfloat16 rates from NVIDIA's data sheets, in operations a second. The first name found in a device's counts.
KNOWN_GPUS = {
    "B200": 2.25e15,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "H200": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
}
COMPILERS = ("g++", "clang++")
# Operations of a training job: about five minutes of two cores, one of an H100. Compiling takes 10 to 30 s.
COMPILING_PAYS = {"cpu": 1e14, "cuda": 1e16}
# The number of experts that a token is given to, in configurations of most models, of Ernie, and of Llama 4's kind.
CHOSEN_EXPERTS = ("num_experts_per_tok", "moe_k", "num_experts_per_token", "top_k_experts")
# The side of the square matrices whose product is timed.
SIDES = {"cpu": 1024, "cuda": 8192}
REPETITIONS = 5
# As `torch.cpu.get_capabilities` names them, on x86 and ARM.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def compile_layers(model: Any) -> None:
    """Compiles the model's layers at their first step: one kernel where eager PyTorch reads and writes several times.

    The layers are alike, so that they are compiled once for all.

    Raises:
        UserError: there is no C++ compiler, which PyTorch needs on a CPU.
    """
    if not torch.cuda.is_available() and not _has_compiler():
        raise UserError(f"compile_layers needs a C++ compiler, and none of {', '.join(COMPILERS)} was found")
    for layer in layers_of(model):
        layer.compile()


def compiling_pays(model: Any, tokens: int, length: int, device: torch.device) -> bool:
    """Says whether training on `tokens` tokens, in rows of one length, takes so long that compiled layers pay."""
    return tokens * flops_per_token(model, length) > COMPILING_PAYS[device.type] and _has_compiler()


def _has_compiler() -> bool:
    return bool(os.environ.get("CXX") or any(map(shutil.which, COMPILERS)))


def flops_per_token(model: Any, length: int) -> float:
    """Counts operations of one token's forward and backward pass: 6 N + 12 L H T (Chowdhery et al. 2022, appendix B).

    N are the parameters that multiply: all but the embedding, which is looked up, unless it is the output head as well.
    A frozen parameter has no gradient of its own and counts 4. Of a mixture of experts, those that a token is given to
    count. L layers, hidden width H, T tokens a row.
    """
    head = model.get_output_embeddings()
    looked_up = model.get_input_embeddings().weight
    tied = head is not None and head.weight is looked_up
    used = [(name, parameter) for name, parameter in model.named_parameters() if tied or parameter is not looked_up]
    matrices = sum(
        (6 if parameter.requires_grad else 4) * parameter.numel() * _used_share(model.config, name, parameter)
        for name, parameter in used
    )
    return matrices + 12.0 * model.config.num_hidden_layers * model.config.hidden_size * length


def _used_share(config: Any, name: str, parameter: torch.Tensor) -> float:
    """Returns the share of a parameter that multiplies one token: of experts, which are one tensor, those chosen."""
    if ".experts." not in name or parameter.ndim < 2:
        return 1.0
    chosen = next((count for key in CHOSEN_EXPERTS if (count := getattr(config, key, None))), parameter.shape[0])
    return min(1.0, chosen / parameter.shape[0])


def engine_precision(device: str) -> Precision:
    """Returns the precision of rollout engines on a kind of device, and of the other actors of RLHF."""
    return "bfloat16" if device == "cuda" else "float32"


def native_precision(device: torch.device) -> Precision:
    """Returns the narrowest type whose products the device has instructions for.

    Without them PyTorch computes the products of bfloat16 one number at a time: on a CPU that has AVX2 alone, such as
    AMD's before Zen 4 and Intel's for laptops, 1 to 9 GFLOP/s in place of 120 in float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_INSTRUCTIONS)
    return "bfloat16" if native else "float32"


def peak_flops(device: torch.device, precision: str) -> float:
    """Returns the peak operations a second of one worker: a known GPU's stated rate, else a measured one.

    Measured are products of matrices, with torch's present number of threads, in less than a second.
    """
    if device.type == "cuda" and precision == "bfloat16":
        stated = stated_flops(torch.cuda.get_device_name(device))
        if stated:
            return stated
    side = SIDES[device.type]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    # Its own generator: the training that follows must not depend on this measurement.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    seconds = [_seconds(left, right) for _ in range(1 + REPETITIONS)]
    return 2.0 * side**3 / min(seconds[1:])


def stated_flops(name: str) -> float | None:
    """Returns a GPU's stated operations a second in bfloat16, or None if the GPU is not in the table."""
    # Whole words: an L40 is no L4, and an A1000 no A100.
    return next((rate for known, rate in KNOWN_GPUS.items() if re.search(rf"\b{known}\b", name)), None)


def peak_memory_gb(device: torch.device) -> float:
    """Returns the peak memory of this process so far, in 1e9 bytes: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Linux counts in KiB. Not `getrusage`, whose figure a new process inherits from the one that started it.
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(kilobytes) * 1024 / 1e9


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    # Read back, so that the product is done and not only queued.
    float((left @ right)[0, 0])
    return time.perf_counter() - start
