"""The peer's half of `infra/bench/rlhf.py trl`, run with TRL on the path: some steps of its GRPOTrainer.

python trl_grpo.py MODEL PROMPTS STEPS PROMPTS_A_STEP SAMPLES TOKENS ROWS

Prints JSON: the seconds of each step but the first.
"""

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from infra.bench.loops.own import BARE, StepClock
from infra.bench.loops.reward import BETA, RATE, brevity


def rewards(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Computes the reward of the bench for the answers of a step."""
    return [brevity(None, answer[0]["content"]) for answer in completions]


def main(model: str, prompts: Path, steps: int, together: int, samples: int, tokens: int, rows: int) -> None:
    """Takes one optimizer step on each batch of samples, with a reference for the KL divergence, as the stage does;
    `rows` samples go through the model at once."""
    clock = StepClock()
    messages = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=together * samples // rows,
            num_generations=samples,
            max_completion_length=tokens,
            temperature=1.0,
            beta=BETA,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            **BARE,
        )
        dataset = Dataset.from_list([{"prompt": some} for some in messages])
        GRPOTrainer(model, rewards, settings, train_dataset=dataset, callbacks=[clock]).train()
    print(json.dumps([end - start for start, end in pairwise(clock.ends)]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:8]))
