"""The peer's half of infra/bench/sft.py, run with TRL on the path: one epoch of its SFTTrainer.

python trl_sft.py MODEL CONVERSATIONS CONTEXT ROWS PACKING    prints JSON: seconds of each step but the first
"""

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from actors.model.perf import native_precision
from infra.bench.loops.own import BARE, DECAY, RATE, StepClock


def main(model: str, conversations: Path, context: int, rows: int, packing: bool) -> None:
    """Trains on the answers, as the stage does."""
    clock = StepClock()
    messages = [json.loads(line) for line in conversations.read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list([{"prompt": some[:-1], "completion": some[-1:]} for some in messages])
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=rows,
            max_length=context,
            packing=packing,
            learning_rate=RATE,
            weight_decay=DECAY,
            bf16=native_precision(torch.device("cpu")) == "bfloat16",
            use_cpu=True,
            gradient_checkpointing=False,
            **BARE,
        )
        SFTTrainer(model, settings, train_dataset=dataset, callbacks=[clock]).train()
    print(json.dumps([end - start for start, end in pairwise(clock.ends)]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "packing")
