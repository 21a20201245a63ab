"""Attention by blocks against PyTorch's in float64, and its gradients against finite differences."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from actors.model.attention import blockwise as blocks
from actors.model.attention.blockwise import block_attention
from actors.model.attention.packed import PAD_DOCUMENT_ID, document_mask
from actors.model.causal_lm import build
from actors.model.forward import next_token_loss
from actors.model.microbatch import DataParallelRank
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.lm import LanguageObjective
from cluster.recipe.model import Model


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    """Makes blocks so small that a few tokens need several, of queries and of rows."""
    monkeypatch.setattr(blocks, "QUERIES", 3)
    monkeypatch.setattr(blocks, "WEIGHTS", 100)


def tensors(rows: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Returns query, key and value of two heads, laid out as models have them."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(rows, length, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [one.to(dtype).transpose(1, 2).requires_grad_() for one in made]


DOCUMENTS = torch.tensor(
    [[0] * 8, [0, 0, 0, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID]]
)
MASKS = [document_mask(DOCUMENTS), document_mask(DOCUMENTS[:1])]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mask", MASKS)
def test_results_and_gradients_are_those_of_the_definition(mask: Tensor):
    query, key, value = tensors(3, 8, torch.float64)
    expected = scaled_dot_product_attention(query, key, value, mask.expand(3, -1, -1, -1), scale=0.7)
    torch.testing.assert_close(block_attention(query, key, value, mask, 0.7), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: block_attention(*given, mask, 0.7), (query, key, value))


def test_a_fully_masked_query_gives_finite_values():
    mask = MASKS[0].clone()
    mask[1, :, 2] = False
    query, key, value = tensors(3, 8, torch.bfloat16)
    found, whole = (block_attention(query, key, value, given, 0.7) for given in (mask, MASKS[0]))
    assert bool(found.isfinite().all())
    assert torch.equal(found[[0, 2]], whole[[0, 2]])


@pytest.mark.usefixtures("small_blocks")
def test_the_custom_operation_passes_pytorchs_own_checks():
    given = (*tensors(3, 8, torch.float32), MASKS[0], 0.7)
    torch.library.opcheck(block_attention, given)


@pytest.mark.parametrize("length", [40, 600])
def test_bfloat16_errs_by_its_own_rounding(length: int):
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    rounded = tensors(2, length, torch.bfloat16)
    exact = [one.detach().double().requires_grad_() for one in rounded]
    expected = scaled_dot_product_attention(*exact, is_causal=True)
    slopes = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected.backward(slopes.double())
    found = block_attention(*rounded, mask, 0.5)
    found.backward(slopes)
    pairs = [(found, expected), *((one.grad, other.grad) for one, other in zip(rounded, exact, strict=True))]
    errors = [((one - other).square().mean() / other.square().mean()).sqrt().item() for one, other in pairs]
    # A number of 8 bits is off by at most 2^-9 of itself.
    assert max(errors) < 2**-7


@pytest.mark.parametrize("heads", [4, 2])
def test_a_model_that_trains_in_bfloat16_attends_by_blocks(heads: int, monkeypatch: pytest.MonkeyPatch):
    shape = Model(vocabulary=300, hidden=32, layers=3, heads=4, context=64)
    model = build(shape, 0, end_of_turn=4, padding=0)
    if heads != 4:
        model = type(model)(type(model.config)(**{**model.config.to_dict(), "num_key_value_heads": heads}))
    ids = torch.randint(5, 300, DOCUMENTS.shape, generator=torch.Generator().manual_seed(0))
    trained = DOCUMENTS != PAD_DOCUMENT_ID
    trained[:, 0] = False
    calls = []
    monkeypatch.setattr(
        "actors.model.attention.packed.block_attention", lambda *given: calls.append(1) or block_attention(*given)
    )

    def gradients(precision: str) -> Tensor:
        with DataParallelRank(0, 1, 8, precision, torch.device("cpu")).autocast():
            loss = next_token_loss(model, ids, trained, DOCUMENTS)
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))])

    before = gradients("float32")
    WithLoss(model, LanguageObjective())
    assert torch.equal(gradients("float32"), before)
    assert not calls
    assert torch.nn.functional.cosine_similarity(gradients("bfloat16"), before, dim=0) > 0.999
    assert len(calls) == 3
