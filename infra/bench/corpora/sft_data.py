"""Measures how fast conversations become fine-tuning's shards, and the memory that this takes, at two sizes.

python -m infra.bench.corpora.sft_data [conversations …]        default 200,000 and 1,000,000, of some 40 tokens each
python -m infra.bench.corpora.sft_data trl [conversations]      beside TRL's preparation, packed too; default 100,000

Runs the data's phases on Ray with two workers, as the stage does, over one JSONL file and a tokenizer of 4,096 tokens.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from actors.model.causal_lm import build, save
from actors.model.tokenizer import load_tokenizer
from cluster.recipe.model import Model
from cluster.recipe.recipe import Recipe
from cluster.runtime.session import connect
from infra.bench.corpora.stage_run import Watched, watch
from infra.bench.peers.run_trl import run_trl
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer
from pipelines.sft_data import make_shards

SIZES, CORES, BESIDE_TRL = (200_000, 1_000_000), 2, 100_000
CONTEXT, VOCABULARY = 256, 4096
_NOUNS = ("river", "mountain", "winter", "market", "letter", "garden", "engine", "silver", "window", "planet")


def main() -> None:
    """Prints a line a size, and how the driver's memory grew."""
    if sys.argv[1:2] == ["make"]:
        make(Path(sys.argv[2]))
        return
    if sys.argv[1:2] == ["trl"]:
        beside_trl(int(sys.argv[2]) if sys.argv[2:] else BESIDE_TRL)
        return
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("conversations", nargs="*", type=int, default=list(SIZES))
    sizes = words.parse_args().conversations
    found = [measure(size) for size in sizes]
    print(f"driver's memory at {sizes[-1]:,} over {sizes[0]:,}: {found[-1].driver / found[0].driver:.2f}")


def measure(count: int) -> Watched:
    """Makes the shards of so many conversations in a process of its own, and watches it."""
    with tempfile.TemporaryDirectory(prefix="triptych-sft-") as name:
        folder = Path(name)
        write_conversations(folder, count)
        with (folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "infra.bench.corpora.sft_data", "make", str(folder)]
            watched = watch(psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    rate, tokens = count / made["seconds"] / CORES, made["tokens"] / made["seconds"] / CORES
    print(
        f"{count:,} conversations, {made['tokens'] / count:.0f} tokens each, {made['rows']:,} rows in {made['shards']} "
        f"shards: {made['seconds']:.0f} s, {rate:,.0f} conversations/s and {tokens:,.0f} tokens/s a core; "
        f"most memory: driver {watched.driver:,} MB, a worker {watched.worker:,} MB",
        flush=True,
    )
    return watched


def write_conversations(folder: Path, count: int) -> None:
    """Writes so many conversations, and a tokenizer of some."""
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps({'messages': turns})}\n" for turns in conversations(count))
    texts = [turn["content"] for turns in conversations(2000) for turn in turns]
    save_tokenizer(train_tokenizer(texts, VOCABULARY), folder / "tokenizer", CONTEXT)


def beside_trl(count: int) -> None:
    """Prints the rates of the stage's preparation and of TRL's, of the same file with as many processes."""
    with tempfile.TemporaryDirectory(prefix="triptych-sft-") as name:
        folder = Path(name)
        write_conversations(folder, count)
        tokenizer = load_tokenizer(folder / "tokenizer")
        shape = Model(size="0.1M", layers=1, heads=1, hidden=16, context=CONTEXT, vocabulary=len(tokenizer))
        save(build(shape, 0, end_of_turn=tokenizer.eos_token_id, padding=0), tokenizer, folder / "model")
        make(folder)
        own = json.loads((folder / "made.json").read_text(encoding="utf-8"))["seconds"]
        every, few = run_trl("trl_sft_data.py", folder / "model", folder / "chats.jsonl", CONTEXT, CORES)
    theirs = every - few
    print(f"{count:,} conversations: {count / own / CORES:,.0f} a second and core, TRL {count / theirs / CORES:,.0f}")
    print(f"ratio: {theirs / own:.2f}")


def make(folder: Path) -> None:
    """Makes the shards in `folder`, and writes down how long that took."""
    source = {"sources": [{"path": str(folder / "chats.jsonl")}]}
    sections = {"model": {"context": CONTEXT}, "cluster": {"cpus": CORES}, "corpus": source, "collect": source}
    recipe = Recipe.model_validate({"name": "bench", "run": str(folder / "run"), "sft": source, **sections})
    load_tokenizer(folder / "tokenizer")
    with connect(recipe.cluster):
        start = time.monotonic()
        metrics = make_shards(recipe, folder / "tokenizer", folder / "none", folder / "sft")
        seconds = time.monotonic() - start
    shards = len(list((folder / "sft" / "shards").rglob("*.parquet")))
    made = {"seconds": seconds, "rows": metrics["rows"], "tokens": metrics["tokens"], "shards": shards}
    (folder / "made.json").write_text(json.dumps(made), encoding="utf-8")


def conversations(count: int) -> Iterator[list[dict[str, str]]]:
    """Makes short conversations of one or two exchanges, the same each time."""
    chance = random.Random(5)
    for number in range(count):
        turns = []
        for _ in range(chance.randint(1, 2)):
            first, second, third = chance.choices(_NOUNS, k=3)
            turns.append({"role": "user", "content": f"Which {first} is near the {second}?"})
            turns.append(
                {"role": "assistant", "content": f"The {third} {first}, number {number}, is near the {second}."}
            )
        yield turns


if __name__ == "__main__":
    main()
