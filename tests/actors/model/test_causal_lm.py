import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig, LlamaForCausalLM

from actors.model.attention.packed import PAD_DOCUMENT_ID
from actors.model.causal_lm import build
from actors.model.forward import next_token_loss, next_token_losses
from cluster.recipe.model import Model
from cluster.runtime.memory import shape_of

DOCUMENTS = [[7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33]]
# Row 0: two documents and no room left; row 1: one document and three tokens of padding.
INPUT_IDS = torch.tensor([[*DOCUMENTS[0], *DOCUMENTS[1]], [*DOCUMENTS[2], 0, 0, 0]])
DOCUMENT_IDS = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID]])
TRAINED = torch.tensor([[0, 1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    made = build(Model(hidden=64, layers=2, vocabulary=300, context=32), seed=3, end_of_turn=4, padding=0)
    with torch.no_grad():
        # Larger weights than at initialization, so that attention to a wrong token shows in the logits.
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return made


@pytest.mark.parametrize(
    ("size", "vocabulary", "wanted"), [("2.5M", 4096, 2.5e6), ("135M", 49152, 135e6), ("8B", 128256, 8e9)]
)
def test_a_size_gives_a_shape_of_about_that_many_parameters(size: str, vocabulary: int, wanted: float):
    shape = shape_of(Model(size=size, vocabulary=vocabulary))
    assert shape.parameters(vocabulary) == pytest.approx(wanted, rel=0.1)
    assert 40 <= shape.hidden / shape.layers <= 128
    assert shape.hidden % shape.heads == 0
    assert shape.hidden // shape.heads in (32, 64)


@pytest.mark.parametrize(("size", "vocabulary"), [("2.5M", 4096), ("135M", 49152), ("300K", 512)])
def test_the_formula_counts_the_parameters_that_the_model_has(size: str, vocabulary: int):
    recipe = Model(size=size, vocabulary=vocabulary)
    with torch.device("meta"):
        made = build(recipe, seed=1, end_of_turn=4, padding=0)
    assert shape_of(recipe).parameters(vocabulary) == sum(p.numel() for p in made.parameters())
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_fields_that_the_recipe_sets_are_kept():
    assert shape_of(Model(size="135M", hidden=64, layers=2, heads=4)).heads == 4
    assert (shape_of(Model(size="135M", hidden=64, layers=2)).hidden, shape_of(Model(layers=3)).layers) == (64, 3)
    deep = shape_of(Model(size="2.5M", hidden=64))
    assert deep.hidden == 64
    assert deep.parameters(4096) == pytest.approx(2.5e6, rel=0.1)


def test_a_seed_makes_the_same_weights_and_another_seed_makes_others():
    recipe = Model(hidden=64, layers=2, vocabulary=300)
    first, again, other = (build(recipe, seed, 4, 0).state_dict()["model.embed_tokens.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.02, rel=0.05)


def losses_one_by_one(model: LlamaForCausalLM) -> Tensor:
    """Computes the cross-entropy of every document on its own, with transformers' own causal forward."""
    losses = []
    for document in DOCUMENTS:
        ids = torch.tensor([document])
        logits = model(input_ids=ids).logits
        losses.append(functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    return torch.cat(losses)


def test_packed_documents_have_the_losses_and_gradients_of_separate_ones(model: LlamaForCausalLM):
    names, parameters = zip(*model.named_parameters(), strict=True)
    packed = next_token_losses(model, INPUT_IDS, TRAINED, DOCUMENT_IDS)
    separate = losses_one_by_one(model)
    assert len(packed) == sum(len(document) - 1 for document in DOCUMENTS)
    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-5)
    assert float(separate.detach().std()) > 0.1
    packed_gradients = torch.autograd.grad(packed.sum(), parameters)
    separate_gradients = torch.autograd.grad(separate.sum(), parameters)
    for name, found, expected in zip(names, packed_gradients, separate_gradients, strict=True):
        scale = float(expected.abs().max())
        assert float((found - expected).abs().max()) < 1e-5 * max(1.0, scale), name


def test_the_document_mask_is_what_keeps_documents_apart(model: LlamaForCausalLM):
    with torch.no_grad():
        packed = next_token_losses(model, INPUT_IDS, TRAINED, DOCUMENT_IDS)
        one_document = next_token_losses(model, INPUT_IDS, TRAINED, torch.zeros_like(DOCUMENT_IDS))
    # The first document comes first either way; the second sees it when nothing keeps them apart.
    torch.testing.assert_close(packed[:4], one_document[:4], rtol=0, atol=1e-5)
    assert float((packed[4] - one_document[4]).abs()) > 1e-3


def test_only_trained_tokens_count(model: LlamaForCausalLM):
    some = TRAINED & (INPUT_IDS % 2 == 0)
    with torch.no_grad():
        every = next_token_losses(model, INPUT_IDS, TRAINED, DOCUMENT_IDS)
        found = next_token_losses(model, INPUT_IDS, some, DOCUMENT_IDS)
    assert 0 < len(found) < len(every)
    torch.testing.assert_close(found, every[some[TRAINED]])


def test_tied_embeddings_have_the_gradient_of_pytorch(model: LlamaForCausalLM):
    ids = INPUT_IDS.clone()
    ids[:, 1] = model.config.pad_token_id
    parameters = list(model.parameters())
    tied = torch.autograd.grad(next_token_loss(model, ids, TRAINED, DOCUMENT_IDS), parameters)
    plain = torch.autograd.grad(next_token_losses(model, ids, TRAINED, DOCUMENT_IDS).sum(), parameters)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for one, other in zip(tied, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (CohereConfig, {"logit_scale": 0.2}),
        (GraniteConfig, {"logits_scaling": 4.0}),
        (LlamaConfig, {"logit_scale": None, "logits_scaling": None}),
    ],
)
def test_scaled_logits_are_trained_on_as_the_model_makes_them(kind, settings):
    torch.manual_seed(0)
    config = kind(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config.update({**settings, "num_key_value_heads": 4, "initializer_range": 1.0, "eos_token_id": 4})
    model = AutoModelForCausalLM.from_config(config)
    whole = torch.ones_like(INPUT_IDS, dtype=torch.bool)
    whole[:, 0] = False
    with torch.no_grad():
        found = next_token_losses(model, INPUT_IDS, whole)
        expected = functional.cross_entropy(
            model(input_ids=INPUT_IDS).logits[:, :-1].flatten(0, 1), INPUT_IDS[:, 1:].flatten(), reduction="none"
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_padding_alone_give_no_nan(model: LlamaForCausalLM):
    ids = torch.cat([INPUT_IDS, torch.zeros_like(INPUT_IDS[:1])])
    documents = torch.cat([DOCUMENT_IDS, torch.full_like(DOCUMENT_IDS[:1], PAD_DOCUMENT_ID)])
    trained = torch.cat([TRAINED, torch.zeros_like(TRAINED[:1])])
    losses = next_token_losses(model, ids, trained, documents)
    losses.sum().backward()
    assert math.isfinite(float(losses.detach().sum()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(losses.detach(), losses_one_by_one(model).detach(), rtol=0, atol=1e-5)
