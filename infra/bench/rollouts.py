"""Tokens per second of the rollout fleet beside transformers' own `generate`: same model, prompts, samples, lengths.

make bench        (after make demo: it samples from runs/demo/sft)
"""

import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sampling
from cluster.recipe.loading import load_recipe
from cluster.runtime.plan import make_plan
from cluster.runtime.session import connect
from pipelines.demo.questions import training_questions

RUN = Path("runs/demo")
PROMPTS, SAMPLES, TOKENS, ROUNDS = 16, 8, 24, 5


def fleet_rate(prompts: list[Prompt]) -> float:
    """Median tokens per second over rounds, after a warm-up round, with the recipe's rollout actors."""
    recipe = load_recipe(RUN / "recipe.yaml")
    with (
        connect(recipe.cluster),
        Fleet(
            RUN / "sft",
            recipe.rlhf.fleet.rollout_actors,
            make_plan(recipe).rollout,
            recipe.model.context,
            recipe.seed,
            300.0,
        ) as fleet,
    ):
        rates = []
        for seed in range(ROUNDS + 1):
            start = time.perf_counter()
            samples = fleet.generate(prompts, Sampling(SAMPLES, 1.0, TOKENS, seed))
            tokens = sum(len(sample.token_ids) for group in samples.values() for sample in group)
            rates.append(tokens / (time.perf_counter() - start))
    return sorted(rates[1:])[ROUNDS // 2]


def transformers_rate(prompts: list[Prompt], padding: int, end: int) -> float:
    """The same with one batch of `generate` in this process on all cores."""
    model = AutoModelForCausalLM.from_pretrained(RUN / "sft", dtype=torch.float32).eval()
    length = max(len(prompt.token_ids) for prompt in prompts)
    rows = [prompt.token_ids for prompt in prompts for _ in range(SAMPLES)]
    ids = torch.tensor([[padding] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    rates = []
    for seed in range(ROUNDS + 1):
        torch.manual_seed(seed)
        start = time.perf_counter()
        drawn = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=TOKENS
        )[:, length:]
        ended = (drawn == end).int()
        tokens = int(((ended.cumsum(1) - ended) == 0).sum())
        rates.append(tokens / (time.perf_counter() - start))
    return sorted(rates[1:])[ROUNDS // 2]


def main() -> None:
    """Prints both rates and their ratio."""
    if not (RUN / "sft" / "manifest.json").exists():
        print(f"{RUN}/sft is not there: run `make demo` first")
        return
    chat = Chat.of(RUN / "sft")
    questions = training_questions(seed=1)[:: max(1, len(training_questions(seed=1)) // PROMPTS)][:PROMPTS]
    prompts = [Prompt(q.id, chat.prompt([{"role": "user", "content": q.text}])) for q in questions]
    peer = transformers_rate(prompts, chat.padding_id, chat.end_of_turn_id)
    own = fleet_rate(prompts)
    print(f"{PROMPTS} prompts x {SAMPLES} samples, at most {TOKENS} tokens, median of {ROUNDS} rounds")
    print(f"rollout fleet {own:,.0f} tokens/s; transformers generate {peer:,.0f} tokens/s; ratio {own / peer:.2f}")


if __name__ == "__main__":
    main()
