"""The parity gate on real engines: the cause of a difference from the learner is named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from actors.orchestrator.fleet import Fleet
from actors.orchestrator.parity import check_parity, gap_of, growth
from cluster.errors import StageError
from tests.actors.conftest import changed, prompts, reference_logprobs

Tiny = tuple[Path, LlamaForCausalLM]


class Model:
    """A learner that is only asked for scores."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict())

    def logprobs(self, sequences: list[list[int]], starts: list[int], temperature: float) -> list[list[float]]:
        rows = zip(sequences, starts, strict=True)
        return [reference_logprobs(self.model, row, start, temperature) for row, start in rows]


@pytest.mark.slow
def test_the_cause_of_a_difference_is_named(fleet: Fleet, tiny: Tiny, versions: Iterator[int]):
    fleet.load(next(versions), tiny[1].state_dict())

    def gate(model: LlamaForCausalLM) -> float:
        return check_parity(fleet, Model(model), "float32", prompts("gate", 6), 48, 60.0)

    # The ratio of learner to engine is 1 to 1e-4.
    assert gate(tiny[1]) < 1e-4
    with pytest.raises(StageError, match=r"differ by .* the weights differ in model, model.layers.0, .* more"):
        gate(changed(tiny[1], seed=1))
    turned = LlamaForCausalLM(
        type(tiny[1].config).from_dict(
            {**tiny[1].config.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": 11_000.0}}
        )
    ).eval()
    turned.load_state_dict(tiny[1].state_dict())
    with pytest.raises(StageError, match="the weights are the same and the gap grows along an answer: positions"):
        gate(turned)
    rounded = changed(tiny[1], seed=1).bfloat16()
    fleet.load(next(versions), dict(rounded.state_dict()))
    with pytest.raises(StageError, match="the engine computes in float32 and the learner holds bfloat16"):
        gate(rounded)


def test_in_bfloat16_a_rare_token_that_rounding_moves_far_is_no_other_model():
    gaps = [np.full(30, 0.01), np.array([0.3, 0.01])]
    assert gap_of(gaps, "float32") == pytest.approx(0.3)
    assert gap_of(gaps, "bfloat16") == pytest.approx((31 * 0.01 + 0.3) / 32)


def test_growth_is_of_the_last_quarter_over_the_first():
    assert growth([np.array([1.0, 9.0, 9.0, 5.0]), np.array([3.0, 9.0, 9.0, 7.0])]) == pytest.approx(3.0)
    assert growth([np.full(8, 1e-3)]) == pytest.approx(1.0)
    assert growth([np.ones(3)]) == 1.0
