"""A tiny world for the loop: prompts that ask for three words, and a person who likes some of these words.

The fine-tuned model writes any of them. The reward model has to find out which ones the person likes, from judgements
alone, and with more of them it does so better.
"""

import json
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import yaml

LIKED = ("apple", "river", "candle", "meadow", "violin", "harbor", "pepper")
PLAIN = ("table", "window", "paper", "bottle", "corner", "ticket")
DISLIKED = ("gravel", "hammer", "sewage", "rusty", "poison", "cinder", "splinter")
WORDS = (*LIKED, *PLAIN, *DISLIKED)
HELD_OUT, QUESTIONS = 60, 600
Rule = Callable[[str], float]

RECIPE: dict[str, Any] = {
    "name": "loop",
    "model": {"size": "300K", "vocabulary": 500, "context": 64},
    "pretrain": {"learning_rate": 5.0e-3, "epochs": 2, "batch_rows": 16, "micro_batch_rows": 16},
    "sft": {"learning_rate": 3.0e-3, "epochs": 2, "batch_rows": 8, "micro_batch_rows": 8},
    "collect": {"prompts": 150, "samples_per_prompt": 3, "max_tokens": 24, "annotator": "people", "min_rankings": 24},
    "reward": {"epochs": 6, "batch_rows": 8, "micro_batch_rows": 8, "learning_rate": 1.0e-3},
    "rlhf": {
        "steps": 12,
        "prompts_per_step": 8,
        "sampling": {"samples_per_prompt": 6, "max_tokens": 24},
        "learning_rate": 4.0e-4,
        "fleet": {"rollout_actors": 1},
        # The person's world has no refusals, and its answers are three words long.
        "accept_probes": ["longer", "thanks", "repetition", "refusal", "empty", "unrelated"],
    },
    "evaluate": {"prompts": 60},
    "loop": {
        "min_new": 24,
        "promote_if": "not worse",
        "canary_share": 0.3,
        "canary_thumbs": 6,
        "canary_minutes": 2,
        "accept_gates": ["chance"],
    },
}


def taste(text: str) -> float:
    """Scores an answer by the hidden rule of this world: the number of different words that the person likes, less
    those that they dislike or do not know."""
    said = text.replace(",", " ").replace(".", " ").lower().split()
    liked = len(set(said) & set(LIKED))
    return liked - sum(word in DISLIKED for word in said) - sum(word not in WORDS for word in said)


def brevity(text: str) -> float:
    """Scores an answer by a hidden rule for any recipe: the shorter the better, but not empty."""
    return -len(text) if text.strip() else -10_000.0


RULES: dict[str, Rule] = {"taste": taste, "brevity": brevity}


def write_world(folder: Path, seed: int) -> Path:
    """Writes the recipe and its files to a folder, the run being `run` in it; returns the path of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    syllables = ["".join(pair) for pair in product("bdfgklmnprst", "aeiou")]
    names = ["".join(pair) for pair in product(syllables, repeat=2)]
    questions = [f"Three words for {name}?" for name in chance.sample(names, QUESTIONS)]

    def answer() -> str:
        return ", ".join(chance.sample(WORDS, 3)) + "."

    files = {
        "text": [{"text": "\n".join(f"{ask} {answer()}" for ask in chance.sample(questions, 8))} for _ in range(400)],
        "chats": [{"question": ask, "answer": answer()} for ask in chance.choices(questions, k=800)],
        "prompts": [{"prompt": ask} for ask in questions[:-HELD_OUT]],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sources = {name: {"kind": "files", "path": str(folder / f"{name}.jsonl")} for name in files}
    recipe = RECIPE | {
        "seed": seed,
        "run": str(folder / "run"),
        "corpus": {
            "sources": [sources["text"] | {"near_duplicates": "keep"}],
            "rules": {"c4": {"sentences": 1}},
        },
    }
    for section, name in (("sft", "chats"), ("collect", "prompts")):
        recipe[section] = RECIPE[section] | {"sources": [sources[name]]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    (folder / "held-out.json").write_text(json.dumps(questions[-HELD_OUT:]), encoding="utf-8")
    return path
