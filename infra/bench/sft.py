"""Conversations a second of the fine-tuning loop beside TRL's `SFTTrainer`, without and with its packing.

The same model, conversations, AdamW and precision (bfloat16 where the machine has instructions for it), the loss on the
answers. The medians of an epoch's steps but the first are compared: our loop compiles its layers in the first, and
again in the last if that has fewer rows (4 s each with 2.5M parameters on two cores). Unpacked, a step of the peer has
as many conversations as a step of packed rows has on average. Only the loop and the peer without packing keep the
conversations of a row apart.

python -m infra.bench.sft [FILE] [--size 2.5M] [--rows 16] [--context 256] [--most 2048]
    FILE in a layout that sft.sources reads; the demo's conversations unless told
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from actors.model.causal_lm import build, load, save, set_end_token
from actors.model.chat import Chat
from actors.model.perf import compile_layers
from actors.model.tokenizer import load_tokenizer
from actors.objectives.lm import LanguageObjective
from cluster.recipe.collect import ChatSource
from cluster.recipe.model import Model
from cluster.runtime.session import ENVIRONMENT
from infra.bench.loops.own import own_step
from infra.bench.peers.run_trl import run_trl
from pipelines.corpus.tokens.shards import write_shard
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer
from pipelines.data.chat_formats import Conversation, read_conversations
from pipelines.data.pack_chats import packed
from pipelines.data.render_chats import fit, rendered_batch

VOCABULARY = 4096


def main() -> None:
    """Prints the rates and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--size", default="2.5M")
    for name, value in (("rows", 16), ("context", 256), ("most", 2048)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    source = (
        ChatSource(kind="files", path=given.file)
        if given.file
        else ChatSource(kind="function", function="pipelines.demo.conversations:conversations")
    )
    found = read_conversations([source], 0).items[: given.most]
    with tempfile.TemporaryDirectory(prefix="triptych-sft-") as name:
        folder = Path(name)
        base = _base(folder / "base", given.size, given.context, found)
        chat = Chat.of(base)
        rows = [fit(chat, some.messages, some.tools, some.untrained, context=given.context)[0] for some in found]
        fitting = [some.messages for some, fits in zip(found, rows, strict=True) if fits]
        rendered = list(chain.from_iterable(rows))
        columns = packed(pa.Table.from_batches([rendered_batch(rows)]), given.context, chat.padding_id)
        write_shard(folder / "rows" / "shard-00000.parquet", columns)
        count = len(columns["input_ids"])
        lines = folder / "conversations.jsonl"
        lines.write_text("".join(f"{json.dumps(some)}\n" for some in fitting), encoding="utf-8")
        together = round(given.rows * len(rendered) / count)
        tokens = sum(len(some.token_ids) for some in rendered)
        shapes = f"{count:,} rows of {given.context}, {given.rows} a step"
        print(f"{len(rendered):,} conversations, {tokens:,} tokens; {shapes}")
        rates = {
            name: together / statistics.median(seconds)
            for name, seconds in {
                "the loop": own(base, folder / "rows", given.rows),
                "TRL": run_trl("trl_sft.py", base, lines, given.context, together, "separate"),
                "TRL, packing": run_trl("trl_sft.py", base, lines, given.context, given.rows, "packing"),
            }.items()
        }
    for name, rate in rates.items():
        print(f"{name}: {rate:,.1f} conversations/s")
    for name in ("TRL", "TRL, packing"):
        print(f"ratio of the loop to {name}: {rates['the loop'] / rates[name]:.2f}")


def own(base: Path, folder: Path, rows: int) -> list[float]:
    """Measures the seconds of every step of an epoch but the first, by the project's loop."""
    model, objective = load(base), LanguageObjective()
    set_end_token(model, load_tokenizer(base).eos_token_id)
    compile_layers(model)
    objective.compiled = True
    step = own_step(model, objective, rows, torch.device("cpu"))
    table, seconds = parquet.read_table(folder), []
    for begin in range(0, table.num_rows, rows):
        start = time.perf_counter()
        step(table.slice(begin, rows))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _base(folder: Path, size: str, context: int, found: Sequence[Conversation]) -> Path:
    """Writes a model with random weights, with a tokenizer of the conversations; returns its folder."""
    texts = [message["content"] for some in found for message in some.messages]
    save_tokenizer(train_tokenizer(texts, VOCABULARY), folder, context)
    tokenizer = load_tokenizer(folder)
    shape = Model(size=size, context=context, vocabulary=len(tokenizer))
    save(build(shape, 0, end_of_turn=tokenizer.eos_token_id, padding=tokenizer.pad_token_id), tokenizer, folder)
    return folder


if __name__ == "__main__":
    main()
