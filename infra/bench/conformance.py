"""Losses and gradients of each RLHF algorithm beside its paper's equations in float64, and beside TRL's.

The learner takes a step of two optimizer steps on the answers of `infra/bench/equations/steps.py`: drawn by the same
weights or by older ones, with tokens that the policy did not draw, an answer that was cut, and the paper's clips. The
table has the largest difference of the loss and of the gradients; of a critic's gradient too.

TRL's trainers compute the same optimizer steps from the same tensors: weights, answers, masks, advantages,
log-probabilities and, where it has them, importance weights. There the divergence is left out, of which TRL has k3
alone. It has no trainer of PPO and REINFORCE++: their surrogates are those of its GRPOTrainer with an advantage for
each token. Its RLOO has no mask within an answer: the answer that needs one is left out. Known differences of TRL's:

    rloo, older weights   it has no importance weights
    gspo, older weights   its gradient has an answer's mean importance weight at each token, and not the token's own

python -m infra.bench.conformance [--without-trl] [--run FOLDER]    ends with code 1 if a difference of ours is above
    1e-6
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from actors.algorithms.registry import ALGORITHMS
from actors.model.causal_lm import build
from actors.model.reward_head import with_new_head
from cluster.recipe.model import Model
from cluster.recipe.rlhf.presets import PRESETS
from infra.bench.equations.papers import MAX_TOKENS, TEMPERATURE, PaperStep, gradients, largest_difference
from infra.bench.equations.steps import StepComparison, compared
from infra.bench.models import make_tokenizer
from infra.bench.peers.run_trl import run_trl

MICRO_BATCHES = (1, 64)
LARGEST = 1e-6
# TRL's names of how a loss is averaged; the average over the tokens of an optimizer step unless named here.
AVERAGES = {"dr_grpo": "dr_grpo", "dapo": "dapo", "gspo": "grpo"}


@dataclass(frozen=True)
class LargestDifference:
    """The largest differences from the equations of the optimizer steps of one algorithm."""

    loss: float
    gradient: float


def models_in(folder: Path) -> tuple[Path, Path]:
    """Makes a fine-tuned model and a reward model of 0.1M parameters."""
    start, reward = folder / "sft", folder / "reward"
    tokenizer = make_tokenizer(folder / "tokenizer")
    shape = Model(vocabulary=len(tokenizer), hidden=64, layers=2, heads=2, context=64)
    build(shape, 0, end_of_turn=4, padding=0).save_pretrained(start)
    tokenizer.save_pretrained(start)
    with_new_head(start).save_pretrained(reward)
    (reward / "normalization.json").write_text(json.dumps({"mean": 0.0, "deviation": 1.0}), encoding="utf-8")
    return start, reward


def trl_case(step: PaperStep, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Writes the tensors from which TRL computes a loss, and returns the case for its program."""
    step.policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preset, rloo = PRESETS[step.name], step.name == "rloo"
    settings: dict[str, Any] = {"epsilon": preset.clip_range, "epsilon_high": preset.clip_range_high}
    settings |= {"temperature": TEMPERATURE, "max_completion_length": MAX_TOKENS}
    if not rloo:
        settings |= {"loss_type": AVERAGES.get(step.name, "bnpo"), "delta": preset.dual_clip}
        settings["importance_sampling_level"] = "sequence" if step.name == "gspo" else "token"
    save_file(_answer_tensors(step) if rloo else _token_tensors(step), folder / "tensors.safetensors")
    return {"folder": str(folder), "trainer": "rloo" if rloo else "grpo", "settings": settings}


def _token_tensors(step: PaperStep) -> dict[str, torch.Tensor]:
    # TRL gets all but the first token as the completion; the mask of tools leaves out tokens that were not drawn.
    drawn = torch.stack(
        [torch.tensor([place in row.places for place in range(1, _longest(step))]) for row in step.rows]
    )

    def placed(tables: Sequence[torch.Tensor], other: float = 0.0) -> torch.Tensor:
        found = torch.full(drawn.shape, other, dtype=torch.float64)
        found[drawn] = torch.cat(list(tables))
        return found

    ids = pad_sequence([torch.tensor(row.ids) for row in step.rows], batch_first=True)
    there = pad_sequence([torch.ones(len(row.ids), dtype=torch.long) for row in step.rows], batch_first=True)
    return {
        "prompt_ids": ids[:, :1].contiguous(),
        "prompt_mask": there[:, :1].contiguous(),
        "completion_ids": ids[:, 1:].contiguous(),
        "completion_mask": there[:, 1:].contiguous(),
        "tool_mask": drawn.long(),
        "advantages": placed(step.advantages),
        "old_per_token_logps": placed(step.old),
        "importance_sampling_ratio": placed(step.importance_weights(), 1.0),
        "num_items_in_batch": drawn.sum(),
    }


def _answer_tensors(step: PaperStep) -> dict[str, torch.Tensor]:
    def padded(tables: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(own) for own in tables]
        ones = [torch.ones(len(own), dtype=torch.long) for own in tables]
        return {
            name: pad_sequence(values, batch_first=True, padding_side=side).contiguous()
            for name, values in (("ids", rows), ("mask", ones))
        }

    prompts = padded([row.ids[: row.start] for row in step.rows], "left")
    answers = padded([row.ids[row.start :] for row in step.rows], "right")
    return {
        **{f"prompt_{name}": value for name, value in prompts.items()},
        **{f"completion_{name}": value for name, value in answers.items()},
        "advantages": torch.stack([own[0] for own in step.advantages]),
        "old_logps": torch.stack([own.sum() for own in step.old]),
    }


def _longest(step: PaperStep) -> int:
    return max(len(row.ids) for row in step.rows)


def without_holes(step: PaperStep) -> PaperStep:
    """Leaves out answers with tokens that the policy did not draw, for which TRL's RLOO has no mask."""
    kept = [index for index, row in enumerate(step.rows) if all(row.drawn)]
    tables = (step.rows, step.old, step.reference, step.advantages)
    return PaperStep(step.name, step.policy, *([table[index] for index in kept] for table in tables))


def trl_differences(
    found: Mapping[tuple[str, bool], StepComparison], folder: Path
) -> dict[tuple[str, bool], LargestDifference]:
    """Runs TRL's optimizer steps, and compares the loss and gradient of each with the equations."""
    steps: list[tuple[tuple[str, bool], PaperStep]] = []
    for key, own in found.items():
        chosen = map(without_holes, own.steps) if key[0] == "rloo" else own.steps
        steps += [(key, step) for step in chosen if step.rows]
    tokenizer = make_tokenizer(folder / "tokenizer")
    cases = [trl_case(step, tokenizer, folder / f"case{number}") for number, (_, step) in enumerate(steps)]
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    losses = run_trl("trl_losses.py", folder / "cases.json")
    differences: dict[tuple[str, bool], LargestDifference] = {}
    for (key, step), case, loss in zip(steps, cases, losses, strict=True):
        expected = step.loss(beta=0.0)
        theirs = load_file(Path(case["folder"]) / "gradients.safetensors")
        gradient = largest_difference(theirs, gradients(expected, step.policy))
        before = differences.get(key, LargestDifference(0.0, 0.0))
        differences[key] = LargestDifference(
            max(before.loss, abs(loss - expected.item())), max(before.gradient, gradient)
        )
    return differences


def main() -> None:
    """Prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--without-trl", action="store_true", help="do not install and run TRL")
    words.add_argument("--run", type=Path, help="a folder for models and tensors, which are kept; else they are not")
    given = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="triptych-conformance-") as scratch:
        folder = (given.run or Path(scratch)).absolute()
        start, reward = models_in(folder)
        own: dict[tuple[str, bool], LargestDifference] = {}
        compared_steps: dict[tuple[str, bool], StepComparison] = {}
        for name in ALGORITHMS:
            for stale in (False, True):
                found = [compared(name, stale, rows, start, reward) for rows in MICRO_BATCHES]
                compared_steps[name, stale] = found[0]
                own[name, stale] = LargestDifference(
                    max(one.loss for one in found), max(max(one.gradient.values()) for one in found)
                )
        theirs = {} if given.without_trl else trl_differences(compared_steps, folder)
    table = Table("algorithm", "drawn by", "loss", "gradient", "TRL: loss", "TRL: gradient")
    for key, difference in own.items():
        peer = theirs.get(key)
        cells = [difference.loss, difference.gradient, *([peer.loss, peer.gradient] if peer else [])]
        table.add_row(key[0], "older weights" if key[1] else "the same", *(f"{cell:.1e}" for cell in cells))
    Console().print(table)
    wrong = [key[0] for key, one in own.items() if max(one.loss, one.gradient) > LARGEST]
    print("above 1e-6:", *(sorted(set(wrong)) or ["none"]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
