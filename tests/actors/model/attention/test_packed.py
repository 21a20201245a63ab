import pytest
import torch
from torch import Tensor

from actors.model import forward
from actors.model.attention.packed import (
    PAD_DOCUMENT_ID,
    document_bounds,
    document_mask,
    has_one_document_per_row,
    position_ids_within_documents,
)
from actors.model.causal_lm import build
from actors.model.forward import next_token_losses
from cluster.recipe.model import Model


def test_mask_of_hand_made_rows() -> None:
    found = document_mask(torch.tensor([[0, 0, 1, 1, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID]]))
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert found.shape == (1, 1, 6, 6)
    assert found[0, 0].int().tolist() == expected


def test_positions_restart_with_every_document() -> None:
    rows = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID]])
    assert position_ids_within_documents(rows)[0].tolist() == [0, 1, 2, 0, 1, 0]
    assert position_ids_within_documents(rows)[1, :4].tolist() == [0, 0, 1, 2]


def test_bounds_of_hand_made_rows() -> None:
    rows = torch.tensor([[0, 0, 0, 1, 1, 2], [2, 3, 3, 3, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID]])
    found = document_bounds(rows)
    assert (found.shape, found.dtype) == ((1, 1, 1, 7), torch.int32)
    assert found.flatten().tolist() == [0, 3, 5, 6, 7, 10, 12]


@pytest.mark.parametrize(
    ("rows", "alone"),
    [
        ([[0, 0, 0], [4, 4, 4]], True),
        ([[0, 0, PAD_DOCUMENT_ID], [PAD_DOCUMENT_ID, PAD_DOCUMENT_ID, PAD_DOCUMENT_ID]], True),
        ([[0, 0, 0], [0, 0, 1]], False),
    ],
)
def test_rows_of_one_document_are_recognized(rows: list[list[int]], alone: bool) -> None:
    assert has_one_document_per_row(torch.tensor(rows)) is alone


def test_a_row_of_one_document_needs_no_mask() -> None:
    ids = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 24, [3] * 15 + [PAD_DOCUMENT_ID] * 9])
    trained = documents != PAD_DOCUMENT_ID
    trained[:, 0] = False
    model = build(Model(hidden=64, layers=2, vocabulary=300, context=32), seed=3, end_of_turn=4, padding=0)
    parameters = list(model.parameters())
    found = next_token_losses(model, ids, trained, documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "has_one_document_per_row", lambda _: False)
        masked = next_token_losses(model, ids, trained, documents)
    torch.testing.assert_close(found, masked, rtol=0, atol=1e-5)
    pairs = (torch.autograd.grad(losses.sum(), parameters) for losses in (found, masked))
    for given, right in zip(*pairs, strict=True):
        torch.testing.assert_close(given, right, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_bounds_give_the_losses_and_gradients_of_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (3, 128), generator=generator)
    documents = torch.tensor([[0] * 50 + [1] * 78, [0] * 128, [0] * 3 + [1] * 25 + [2] * 60 + [PAD_DOCUMENT_ID] * 40])
    trained = documents != PAD_DOCUMENT_ID
    trained[:, 1:] &= documents[:, 1:] == documents[:, :-1]
    model = build(Model(hidden=128, layers=2, vocabulary=300, context=128), seed=3, end_of_turn=4, padding=0).cuda()

    def found(autocast: bool) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            losses = next_token_losses(model, ids.cuda(), trained.cuda(), documents.cuda())
        return losses.detach(), list(torch.autograd.grad(losses.mean(), list(model.parameters())))

    masked, bounded = found(False), found(True)
    # bfloat16 has 8 bits of precision; documents that saw each other would differ by tenths.
    torch.testing.assert_close(bounded[0], masked[0], rtol=0, atol=0.02)
    for right, given in zip(masked[1], bounded[1], strict=True):
        assert float((given - right).norm() / right.norm()) < 0.02
