"""Measures what adapters lose when engines in bfloat16 merge them, from the first step on.

Adapters of a model learn from a few sentences, two of which they are to make likelier and one less likely. After some
steps they are merged as rollout actors do, rounded by chance, and beside that rounded to the nearest number. The change
of the sentences' log-probabilities is compared with that of a merge in float32, of which the table has the share that
is kept (the projection) and the root of the mean square of what is wrong, in nats a token; for weights that are stored
in bfloat16, as those of most models are, and in float32. All is computed in float32: the weights alone are rounded.

python -m infra.bench.loops.merging MODEL [--learning-rate 1.5e-4] [--rank 16]
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from actors.model import causal_lm, lora
from actors.model.optim import adamw
from actors.model.tokenizer import load_tokenizer
from cluster.recipe.base import Lora

SENTENCES = {
    "The capital of India is New Delhi, and the capital of France is Paris.": 1.0,
    "Once upon a time there was a little girl who lived in a village.": -1.0,
    "Two plus two is four, and three times three is nine. A dozen is twelve.": 0.5,
}
STEPS = (1, 3, 10)


def logprobs(model: Any, ids: Tensor) -> Tensor:
    """Computes the log-probabilities of all tokens but the first. [N, T] -> [N, T - 1]."""
    table: Tensor = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    return table.gather(2, ids[:, 1:, None])[:, :, 0]


@torch.no_grad()
def logprobs_with(model: Any, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Loads weights into a model and computes `logprobs`."""
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)
    return logprobs(model, ids)


def measure(folder: Path, stored: torch.dtype, rate: float, rank: int, table: Table) -> None:
    """Adds the table's rows for weights stored in one element type."""
    tokenizer = load_tokenizer(folder)
    rows = [tokenizer.encode(text) for text in SENTENCES]
    ids = torch.tensor([row[: min(map(len, rows))] for row in rows])
    model, engine = causal_lm.load(folder).float().eval(), causal_lm.load(folder).float().eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored).float()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    before = logprobs_with(engine, base, ids)
    before_rounded = logprobs_with(engine, {name: value.bfloat16() for name, value in base.items()}, ids)
    lora.add(model, Lora(rank=rank, alpha=2 * rank), seed=1)
    optimizer = adamw([one for one in model.parameters() if one.requires_grad], rate, 0.0)
    signs = torch.tensor(list(SENTENCES.values())).unsqueeze(1)
    for step in range(1, max(STEPS) + 1):
        (-(signs * logprobs(model, ids)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step not in STEPS:
            continue
        adapters = lora.scaled_adapters(model, {name: value.detach() for name, value in model.state_dict().items()})
        exact = dict(lora.merge_into(base.items(), adapters))
        expected = logprobs_with(engine, exact, ids)
        ways = {
            "by chance": dict(lora.merge_into(base.items(), adapters, torch.bfloat16)),
            "to the nearest": exact,
        }
        cells = []
        for merged in ways.values():
            found = logprobs_with(engine, {name: value.bfloat16() for name, value in merged.items()}, ids)
            effect, own = expected - before, found - before_rounded
            cells += [f"{float((own * effect).sum() / effect.square().sum()):.2f}"]
            cells += [f"{float((found - expected).square().mean().sqrt()):.4f}"]
        size = float((expected - before).square().mean().sqrt())
        table.add_row(str(stored).removeprefix("torch."), str(step), f"{size:.3f}", *cells)


def main() -> None:
    """Prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("model", type=Path, help="the folder of a model")
    words.add_argument("--learning-rate", type=float, default=1.5e-4)
    words.add_argument("--rank", type=int, default=16)
    given = words.parse_args()
    columns = ("stored in", "step", "effect", "by chance: kept", "wrong by", "to the nearest: kept", "wrong by")
    table = Table(*columns)
    for stored in (torch.bfloat16, torch.float32):
        measure(given.model, stored, given.learning_rate, given.rank, table)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
