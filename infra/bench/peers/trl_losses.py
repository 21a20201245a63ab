"""The peer's half of `infra/bench/conformance.py`, run with TRL on the path: its trainers' losses on given tensors.

python trl_losses.py CASES

CASES is a JSON file, a list of objects: `folder` of a model, beside which `tensors.safetensors` and, for the answer,
`gradients.safetensors` stand; `trainer`, grpo or rloo; and `settings` of its configuration. Prints JSON: the losses.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from infra.bench.loops.own import BARE

TRAINERS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


def loss_of(case: dict[str, Any], scratch: str) -> float:
    """Returns the loss of one case, and writes its gradients."""
    folder = Path(case["folder"])
    configuration, trainer = TRAINERS[case["trainer"]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    settings = configuration(
        output_dir=scratch,
        per_device_train_batch_size=2,
        num_generations=2,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        **BARE,
        **case["settings"],
    )
    own = trainer(
        model,
        lambda completions, **_: [0.0] * len(completions),
        settings,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 2),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    # Where vLLM draws, its losses weigh tokens by how far the weights that drew them are away.
    own.use_vllm = case["trainer"] == "grpo"
    loss = own._compute_loss(model.eval(), load_file(folder / "tensors.safetensors"))
    loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    save_file({name: value.contiguous() for name, value in gradients.items()}, folder / "gradients.safetensors")
    return float(loss)


def main(cases: Path) -> None:
    """Computes every case."""
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps([loss_of(case, scratch) for case in json.loads(cases.read_text(encoding="utf-8"))]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
