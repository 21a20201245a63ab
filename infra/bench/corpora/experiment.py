"""Counts how often `triptych experiment` finds the better of a clean and a polluted source, over seeds.

python -m infra.bench.corpora.experiment [--seeds 10] [--polluted 0.5] [--folder DIR]

Both sources have as many documents of facts; of the polluted one, a share are menus of web pages, or sentences whose
words are in a random order. By turns the clean and the polluted one are the corpus as the recipe has it. The models are
compared on other facts. With the same folder it goes on where it ended.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import randfacts

from cluster.recipe.recipe import Recipe
from cluster.runtime.session import connect
from infra.bench.corpora.documents import write_lines
from pipelines.experiment.run import run_experiment

DOCUMENTS, TARGETS, SENTENCES = 400, 40, 12
MENU = ("Home", "About us", "Contact", "Log in", "Terms of use", "Privacy", "Share", "Next page", "Cookies")
SETTINGS = {"size": "200K", "vocabulary": 1024, "context": 128, "tokens": 100_000, "seeds": 5}


def main(seeds: int, polluted: float, folder: Path) -> None:
    """Prints the comparison of every seed, and how many were right."""
    right, lines = 0, []
    for seed in range(1, seeds + 1):
        own = folder / f"seed-{seed}"
        own.mkdir(parents=True, exist_ok=True)
        recipe = _recipe(own, seed, polluted)
        with connect(recipe.cluster):
            (found,) = run_experiment(recipe, own / "experiment").values()
        wanted = "better" if seed % 2 else "worse"
        right += found.verdict == wanted
        interval = f"{found.low:+.3f} to {found.high:+.3f}"
        lines.append(f"{seed:4}  {found.change:+.3f}  {interval}  {found.verdict} ({wanted})")
    print("seed  change  95% interval      verdict (right)", *lines, sep="\n")
    print(f"{right} of {seeds} right")


def _recipe(folder: Path, seed: int, polluted: float) -> Recipe:
    rng = random.Random(seed)
    facts = sorted({fact if fact.endswith((".", "!", "?")) else f"{fact}." for fact in randfacts.safe_facts})
    rng.shuffle(facts)
    others = facts[: len(facts) // 5]
    sources = {}
    for name, share in (("clean", 0.0), ("polluted", polluted)):
        texts = _documents(rng, facts[len(others) :], DOCUMENTS, share)
        sources[name] = [{"path": str(write_lines(folder / f"{name}.jsonl", texts))}]
    write_lines(folder / "target.jsonl", _documents(rng, others, TARGETS, 0.0))
    first, second = ("polluted", "clean") if seed % 2 else ("clean", "polluted")
    return Recipe.model_validate(
        {
            "name": "experiment",
            "seed": seed,
            "run": str(folder),
            "corpus": {"sources": sources[first]},
            "experiment": {
                "target": [{"path": str(folder / "target.jsonl")}],
                "variants": {second: {"sources": sources[second]}},
                **SETTINGS,
            },
            # Required by the recipe, and not used here.
            "sft": {"sources": [{"kind": "function", "function": "pipelines.demo.conversations:conversations"}]},
            "collect": {"sources": [{"kind": "function", "function": "pipelines.demo.questions:prompts"}]},
        }
    )


def _documents(rng: random.Random, facts: list[str], count: int, polluted: float) -> Iterator[str]:
    for _ in range(count):
        kind = rng.random()
        if kind < polluted / 2:
            yield "\n".join(rng.choices(MENU, k=10 * SENTENCES))
            continue
        sentences = rng.choices(facts, k=SENTENCES)
        if kind < polluted:
            words = " ".join(sentences).split()
            rng.shuffle(words)
            yield " ".join(words)
        else:
            yield " ".join(sentences)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="experiments to run")
    parser.add_argument("--polluted", type=float, default=0.5, help="share of the polluted source's bad documents")
    parser.add_argument("--folder", type=Path, help="for everything that is made; default: a temporary one")
    given = parser.parse_args()
    if given.folder:
        main(given.seeds, given.polluted, given.folder)
    else:
        with tempfile.TemporaryDirectory(prefix="triptych-experiment-") as name:
            main(given.seeds, given.polluted, Path(name))
