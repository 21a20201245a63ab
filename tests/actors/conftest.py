"""A small real model, and a fleet of two engines that the tests share."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.orchestrator.fleet import Fleet
from actors.rollout.environment import MultiTurnSettings
from actors.types import Prompt, RewardInput, Sample, Sampling
from cluster.runtime.plan import Allocation
from tests.actors.environment_functions import again
from tests.tiny import tiny_tokenizer

CONTEXT = 256
# Small, so that training beside the shared fleet gets its CPUs.
SHARE = Allocation(cpus=0.1, gpus=0, threads=1)
# Prompts whose answers the shared fleet goes on with, as conversations of several turns.
QUESTIONS = {f"talk-{i}": RewardInput([{"role": "user", "content": f"q{i}"}], {"next": f"n{i}"}) for i in range(4)}


def drawn_by(handle: Any, asked: list[Prompt], sampling: Sampling) -> list[list[Sample]]:
    """Returns the samples that one actor draws, in the order of the prompts."""
    reports = [ray.get(ref, timeout=180) for ref in handle.generate.remote(asked, sampling)]
    return [group for _, group in sorted((one for report in reports for one in report), key=lambda one: one[0])]


def make_model(folder: Path, seed: int, shared_heads: int = 3) -> LlamaForCausalLM:
    """Makes a random Llama of 2.5M parameters with tied embeddings, and saves it with a tokenizer.

    Args:
        shared_heads: of keys and values, for the six heads of queries.
    """
    tiny_tokenizer(300).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=shared_heads,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=4,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    # Larger weights than at initialization make logits spread, so that a wrong weight shows.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    # A list, as Llama 3 has.
    model.generation_config.eos_token_id = [4, 6]
    model.save_pretrained(folder)
    return model


def changed(model: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """Returns the same model after a step in a random direction in all parameters."""
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return other


def reference_logprobs(model: LlamaForCausalLM, row: list[int], start: int, temperature: float) -> list[float]:
    """Computes transformers' own log-probabilities of the tokens of a row from `start` on."""
    with torch.inference_mode():
        table = (model(torch.tensor([row])).logits[0] / temperature).log_softmax(-1)
    return [table[i - 1, row[i]].item() for i in range(start, len(row))]


def prompts(name: str, count: int) -> list[Prompt]:
    """Returns distinct prompts of six tokens."""
    return [Prompt(f"{name}-{i}", [2, 20 + i, 50, 60, 4, 3]) for i in range(count)]


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    folder = tmp_path_factory.mktemp("tiny")
    return folder, make_model(folder, seed=0)


@pytest.fixture(scope="package")
def fleet(tiny: tuple[Path, LlamaForCausalLM], ray_session: None) -> Iterator[Fleet]:
    talk = MultiTurnSettings(f"{again.__module__}:{again.__name__}", QUESTIONS, turns=4)
    with Fleet(tiny[0], 2, SHARE, CONTEXT, seed=1, deadline=300, multi_turn=talk) as running:
        yield running


@pytest.fixture
def fresh_version(versions: Iterator[int]) -> int:
    """Returns a weight version that no test has used."""
    return next(versions)


@pytest.fixture(scope="package")
def versions() -> Iterator[int]:
    return itertools.count(1)
