"""The peer's half of `infra/bench/corpora/sft_data.py trl`, run with TRL on the path: its preparation of conversations.

python trl_sft_data.py MODEL CONVERSATIONS CONTEXT PROCESSES

Prints JSON: the seconds that reading the file and making its SFTTrainer take, of all conversations and of the first.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset, load_dataset
from trl import SFTConfig, SFTTrainer

from infra.bench.loops.own import BARE


def main(model: str, conversations: Path, context: int, processes: int) -> None:
    """Renders, tokenizes, masks and packs, as the trainer does before its first step."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for first in (None, 100):
            start = time.perf_counter()
            dataset = load_dataset("json", data_files=str(conversations), split="train", cache_dir=f"{folder}/{first}")
            assert isinstance(dataset, Dataset)
            settings = SFTConfig(
                output_dir=folder,
                max_length=context,
                packing=True,
                assistant_only_loss=True,
                dataset_num_proc=processes if first is None else None,
                use_cpu=True,
                bf16=False,
                **BARE,
            )
            SFTTrainer(model, settings, train_dataset=dataset if first is None else dataset.select(range(first)))
            seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5]))
