"""RLHF with a verifiable reward: how often a model adds two numbers of two digits rightly, before and after.

A model learns to write from sums, to answer from few conversations, and then from a function that checks its answers;
there is no reward model. The pairs that it is asked about in the end are in none of these.

With 6,000 documents to learn to write from, the fine-tuned model was right in 44 % of its draws when it was trained in
bfloat16, and in 80 % in float32, where there is less to gain: fewer make a weaker start.

python -m infra.bench.addition [--run runs/addition] [--seed 1] [--documents 6000] [key=value …]
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from actors.model import causal_lm
from actors.model.chat import Chat
from actors.model.sharding.fsdp import parameters
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sampling
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.runtime.plan import make_plan
from cluster.runtime.session import connect
from infra.bench.loops.addition import asked, last_number, sum_is_right, write_task
from pipelines.evaluate.stats import paired_shares, proportion

CONVERSATIONS, HELD_OUT = 3000, 500
SECONDS = 3000
DRAWS = {"greedy": 0.0, "drawn at temperature 1": 1.0}
RECIPE = {
    "name": "addition",
    "model": {"size": "2.5M", "vocabulary": 300, "context": 128},
    "pretrain": {"optimizer": "muon", "learning_rate": 6.0e-3, "epochs": 2, "batch_rows": 32, "micro_batch_rows": 32},
    "sft": {"learning_rate": 1.0e-3, "weight_decay": 0.0, "batch_rows": 16, "decay_share": 0.5},
    "collect": {"prompts": 8100},
    "rlhf": {
        "rewards": [{"kind": "function", "function": f"{sum_is_right.__module__}:{sum_is_right.__name__}"}],
        "steps": 240,
        "prompts_per_step": 64,
        "sampling": {"samples_per_prompt": 8, "max_tokens": 16},
        "learning_rate": 1.5e-4,
        "kl": {"coefficient": 0.0},
    },
}


def made(
    folder: Path,
    seed: int,
    documents: int,
    overrides: list[str],
    stages: Sequence[str] = ("corpus", "pretrain", "sft", "rlhf"),
) -> tuple[RunFolder, Recipe, list[tuple[int, int]]]:
    """Makes the run with those stages done; returns it, its recipe, and the pairs that it has not seen.

    Raises:
        SystemExit: a stage failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    apart = write_task(folder, seed, documents, CONVERSATIONS, HELD_OUT)
    files = {name: {"kind": "files", "path": str(folder / f"{name}.jsonl")} for name in ("text", "chats", "prompts")}
    recipe = RECIPE | {
        "seed": seed,
        "run": str(folder / "run"),
        # The default rules want letters in most words.
        "corpus": {"sources": [files["text"] | {"near_duplicates": "keep"}], "rules": {"c4": {"sentences": 1}}},
    }
    for section, name in (("sft", "chats"), ("collect", "prompts")):
        recipe[section] = RECIPE[section] | {"sources": [files[name]]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    for stage in stages:
        command = [sys.executable, "-m", "pipelines", stage, str(path), *overrides]
        if subprocess.run(command, check=False, timeout=SECONDS).returncode:
            sys.exit(f"{stage} failed")
    loaded = load_recipe(path, overrides)
    return RunFolder(loaded.folder), loaded, apart


def accuracies(
    models: Mapping[str, Path], recipe: Recipe, pairs: list[tuple[int, int]]
) -> dict[str, dict[str, list[bool]]]:
    """Tells whether each model adds each pair rightly, by the way of drawing."""
    first = next(iter(models.values()))
    chat = Chat.of(first)
    prompts = [Prompt(asked(pair), chat.prompt([{"role": "user", "content": asked(pair)}])) for pair in pairs]
    sums = {asked(pair): str(sum(pair)) for pair in pairs}
    found: dict[str, dict[str, list[bool]]] = {}
    deadline, share = recipe.cluster.deadline_seconds, make_plan(recipe).rollout
    with Fleet(first, 1, share, recipe.model.context, recipe.seed, deadline) as fleet:
        for version, (name, folder) in enumerate(models.items(), 1):
            fleet.load(version, parameters(causal_lm.load(folder)))
            for way, temperature in DRAWS.items():
                sampling = Sampling(1, temperature, recipe.rlhf.sampling.max_tokens, recipe.seed)
                drawn = fleet.generate(prompts, sampling)
                hits = [last_number(drawn[question][0].text) == right for question, right in sums.items()]
                found.setdefault(way, {})[name] = hits
    return found


def main() -> None:
    """Prints both accuracies and what changed, with 95 % intervals."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", type=Path, default=Path("runs/addition"))
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--documents", type=int, default=6000, help="of sums, to pre-train on")
    words.add_argument("overrides", nargs="*", metavar="key=value")
    given = words.parse_args()
    run, recipe, apart = made(given.run.absolute(), given.seed, given.documents, given.overrides)
    with connect(recipe.cluster):
        found = accuracies({name: run.path(name) for name in ("sft", "policy")}, recipe, apart)
    for way, models in found.items():
        shares = {name: proportion(sum(hits), len(hits)) for name, hits in models.items()}
        values = [f"{name} {cell.value:.3f} ({cell.low:.3f}-{cell.high:.3f})" for name, cell in shares.items()]
        paired = paired_shares(models["sft"], models["policy"])
        change = f"change {paired.change:+.3f} ({paired.low:+.3f} to {paired.high:+.3f})"
        print(f"{way}, n = {len(apart)}", *values, change, sep=" | ")


if __name__ == "__main__":
    main()
