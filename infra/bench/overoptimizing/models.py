"""The models of the study: a fine-tuned writer and reward models, trained by the project's own losses."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from actors.model.forward import next_token_loss
from actors.model.microbatch import pad_rows
from actors.model.optim import adamw
from actors.objectives.bradley_terry import BradleyTerryObjective
from actors.rewards.model import sequence_scores
from infra.bench.overoptimizing.world import END, MAX_TOKENS, PAD, PROMPTS, WORDS, Bias, ranks, write_tokenizer, written
from infra.bench.overoptimizing.world import gold as gold_of

POLICY_WIDTH, SFT_ROWS, SFT_STEPS, BATCH = 64, 4000, 500, 64
ANSWERS, REWARD_BATCH, EPOCHS, LEAST_STEPS = 4, 32, 3, 60


def config(width: int, layers: int, **more: Any) -> LlamaConfig:
    """Makes the shape of a Llama with two attention heads."""
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        **more,
    )


def write_policy(folder: Path, seed: int) -> None:
    """Trains the fine-tuned model on answers of mixed quality, and writes it with its tokenizer."""
    chance = random.Random(f"answers {seed}")
    prompts = [chance.choice(PROMPTS) for _ in range(SFT_ROWS)]
    answers = [written(prompt, chance) for prompt in prompts]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(POLICY_WIDTH, 2))
    optimizer = adamw(list(model.parameters()), 3e-3, 0.0)
    for step in range(SFT_STEPS):
        rows = chance.sample(range(SFT_ROWS), BATCH)
        ids = pad_rows([prompts[row] + answers[row] for row in rows], PAD)
        mask = pad_rows([[False] * len(prompts[row]) + [True] * len(answers[row]) for row in rows], False)
        loss = next_token_loss(model, ids, mask) / int(mask.sum())
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / SFT_STEPS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    write_tokenizer(folder)
    model.save_pretrained(folder)


def rankings(
    answers: dict[int, list[list[int]]], count: int, bias: Bias, strength: float, noise: float, chance: random.Random
) -> list[dict[str, Any]]:
    """Makes rows of rankings of the fine-tuned model's answers.

    Args:
        answers: samples of the fine-tuned model by the number of the prompt.
        count: the number of rankings.
    """
    rows = []
    for _ in range(count):
        number = chance.choice(list(answers))
        prompt, own = PROMPTS[number], chance.sample(answers[number], ANSWERS)
        rows.append(
            {"prompt_token_ids": prompt, "answers": own, "ranks": ranks(prompt, own, bias, strength, noise, chance)}
        )
    return rows


def train_reward_model(rows: Sequence[dict[str, Any]], width: int, seed: int) -> Any:
    """Trains a sequence classifier on rankings by the project's Bradley-Terry objective."""
    torch.manual_seed(seed)
    chance = random.Random(f"batches {seed}")
    model = LlamaForSequenceClassification(config(width, 1 if width < 32 else 2, num_labels=1))
    optimizer, objective = adamw(list(model.parameters()), 3e-3, 0.01), BradleyTerryObjective(PAD)
    shards = [
        {
            "input_ids": [token for answer in row["answers"] for token in row["prompt_token_ids"] + answer],
            "lengths": [len(row["prompt_token_ids"]) + len(answer) for answer in row["answers"]],
            "ranks": row["ranks"],
            "weight": 1.0,
        }
        for row in rows
    ]
    for _ in range(max(LEAST_STEPS, EPOCHS * len(shards) // REWARD_BATCH)):
        batch = objective.collate(pa.Table.from_pylist(chance.sample(shards, min(REWARD_BATCH, len(shards)))))
        loss, _ = objective.loss(model, batch)
        optimizer.zero_grad()
        (loss / objective.count(batch)).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def drawn(model: Any, prompts: Sequence[list[int]], seed: int) -> tuple[list[list[int]], list[list[float]]]:
    """Draws one answer to each prompt, all of one length, at temperature 1.

    Returns:
        Token ids with the end token, and their log-probabilities in nats.
    """
    source = torch.Generator().manual_seed(seed)
    ids, cache = torch.tensor(prompts), None
    tokens, logprobs = [], []
    for _ in range(MAX_TOKENS):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, table = out.past_key_values, out.logits[:, -1].log_softmax(-1)
        ids = torch.multinomial(table.exp(), 1, generator=source)
        tokens.append(ids)
        logprobs.append(table.gather(1, ids))
    written, nats = torch.cat(tokens, 1).tolist(), torch.cat(logprobs, 1).tolist()
    lengths = [row.index(END) + 1 if END in row else MAX_TOKENS for row in written]
    cut = list(zip(written, nats, lengths, strict=True))
    return [row[:length] for row, _, length in cut], [own[:length] for _, own, length in cut]


def scores(members: Sequence[Any], prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> np.ndarray:
    """Scores answers by each member of an ensemble. -> [M, N]."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return np.array([sequence_scores([member], rows) for member in members])


def gold_scores(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> np.ndarray:
    """Scores answers by the perfect judge (the gold score). -> [N]."""
    return np.array([gold_of(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
