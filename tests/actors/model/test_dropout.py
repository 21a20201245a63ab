"""Models whose configuration names dropout: it is part of fine-tuning, and not of losses that compare."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from actors.model.sharding.fsdp import WithLoss
from actors.objectives.bradley_terry import BradleyTerryObjective
from actors.objectives.dpo import PairObjective
from actors.objectives.lm import LanguageObjective
from actors.objectives.reference import Reference

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
# Dropout of embeddings, of attention, and of the output of a layer; by modules and by functions.
MODELS = {
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES, resid_pdrop=0.3, embd_pdrop=0.3, attention_dropout=0.3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.3)),
    "starcoder2": lambda: Starcoder2ForCausalLM(
        Starcoder2Config(**SIZES, num_key_value_heads=2, residual_dropout=0.3, embedding_dropout=0.3)
    ),
}
IDS = torch.arange(24).view(2, 12)


def loss_of(model, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_losses_that_compare_are_the_same_at_every_pass(kind: str, recompute: bool):
    model = MODELS[kind]()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = loss_of(model.eval(), 0).item()
    for objective in (PairObjective(0, Reference(MODELS[kind]()), 0.1), BradleyTerryObjective(0)):
        both = WithLoss(model, objective).train()
        calls = []
        hook = model.model.layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        losses = [loss_of(model, seed) for seed in (1, 2)]
        losses[0].backward()
        hook.remove()
        assert [loss.item() for loss in losses] == [pytest.approx(expected, abs=1e-6)] * 2
        assert torch.equal(losses[0], losses[1])
        # Gradients flow, and with recomputation the layer is computed once more for them.
        assert all(parameter.grad is not None for parameter in both.parameters())
        assert len(calls) == (3 if recompute else 2)
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("kind", MODELS)
def test_fine_tuning_drops_what_the_configuration_says(kind: str):
    model = MODELS[kind]()
    WithLoss(model, LanguageObjective()).train()
    assert loss_of(model, 1).item() != loss_of(model, 2).item()
