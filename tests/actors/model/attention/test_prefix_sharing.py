"""Answers that share their prompt's row: the same states and gradients as rows of their own, for less work."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from actors.model.attention.prefix_sharing import SharedRows, pays, share_prompts
from actors.model.causal_lm import build
from actors.model.completion_logprobs import completion_states
from actors.model.forward import last_hidden_states
from cluster.recipe.model import Model

PROMPTS = [[2, 10, 11, 12, 13, 14, 4, 3], [2, 15, 4, 3], [2, 16, 17, 4, 3]]
# The answers to each prompt; None is a token that was not drawn, such as a tool's in the middle of an answer.
ANSWERS = [[[20, 21, 4], [22], [23, 24, 25, 26, 4]], [[27, 4], [28, None, 29, 4]], [[30, 31, 4]]]


@pytest.fixture(scope="module")
def model():
    shape = Model(vocabulary=300, hidden=32, layers=3, heads=4, context=64)
    return build(shape, 0, end_of_turn=4, padding=0).double()


def batch(order: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids, completion mask and groups of the answers in that order."""
    rows = [(group, answer) for group, answers in enumerate(ANSWERS) for answer in answers]
    rows = [rows[index] for index in order]
    width = max(len(PROMPTS[group]) + len(answer) for group, answer in rows)
    ids, drawn = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (group, answer) in enumerate(rows):
        start = len(PROMPTS[group])
        whole = PROMPTS[group] + [5 if token is None else token for token in answer]
        ids[row, : len(whole)] = torch.tensor(whole)
        drawn[row, start : len(whole)] = torch.tensor([token is not None for token in answer])
    return ids, drawn, torch.tensor([group + 7 for group, _ in rows])


def rows_of(ids: Tensor, drawn: Tensor, groups: Tensor) -> SharedRows:
    """Returns the shared rows of the states that predict the drawn tokens."""
    return share_prompts(ids, functional.pad(drawn[:, 1:], (0, 1)), drawn.int().argmax(1), groups)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 3, 1], [0, 5, 3, 1, 2], [1, 2]])
def test_states_and_gradients_are_those_of_separate_rows(model, order: list[int]):
    ids, drawn, groups = batch(order)
    assert pays(rows_of(ids, drawn, groups), ids, 32)
    results = []
    for states in (completion_states(model, ids, drawn, groups), last_hidden_states(model, ids)[:, :-1][drawn[:, 1:]]):
        loss = model.lm_head(states).log_softmax(-1).square().sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
        results.append((states, found))
    (shared, shared_gradients), (separate, separate_gradients) = results
    assert torch.allclose(shared, separate, atol=1e-12)
    for one, other in zip(shared_gradients, separate_gradients, strict=True):
        # The norms compute in 32 bits, whatever the model.
        assert torch.allclose(one, other, atol=1e-6 * float(other.abs().max()))


def test_a_prompt_goes_through_the_model_once(model):
    ids, drawn, groups = batch([0, 1, 2, 3, 4, 5])
    rows = rows_of(ids, drawn, groups)
    # The last token of an answer predicts none.
    assert rows.input_ids[0].tolist() == [*PROMPTS[0], 20, 21, 23, 24, 25, 26]
    assert rows.segments[0].tolist() == [0] * 8 + [1] * 2 + [2] * 4
    assert rows.positions[0].tolist() == [*range(8), 8, 9, 8, 9, 10, 11]
    assert rows.segments[2].tolist() == [0] * 5 + [1] * 2 + [-1] * 7
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    try:
        completion_states(model, ids, drawn, groups)
        completion_states(model, ids, drawn, torch.arange(6))
    finally:
        hook.remove()
    assert seen == [(3, 14), (6, 13)]


def test_short_groups_share_a_row():
    ids, drawn, groups = batch([0, 5, 3, 1, 2])
    rows = rows_of(ids, drawn, groups)
    assert rows.input_ids.shape == (2, 14)
    assert rows.input_ids[1].tolist() == [*PROMPTS[2], 30, 31, *PROMPTS[1], 27, 0, 0]
    assert rows.segments[1].tolist() == [0] * 5 + [1] * 2 + [2] * 4 + [3, -1, -1]
    assert rows.prompts[1].tolist() == [0] * 7 + [2] * 5 + [-1, -1]
    assert rows.positions[1].tolist() == [*range(7), *range(5), 0, 0]
    # Nothing is seen of another group, nor of another answer.
    assert rows.mask()[1, 0, 11].tolist() == [False] * 7 + [True] * 5 + [False] * 2


def test_answers_without_a_common_prompt_see_nothing_of_each_other():
    ids, selected = torch.tensor([[20, 21], [22, 23], [24, 0]]), torch.tensor([[0, 1], [0, 1], [1, 0]]).bool()
    rows = share_prompts(ids, selected, torch.zeros(3, dtype=torch.long), torch.tensor([0, 0, 1]))
    assert rows.input_ids.tolist() == [[20, 21, 22, 23], [24, 0, 0, 0]]
    assert rows.mask()[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_long_answers_to_a_short_prompt_keep_rows_of_their_own():
    ids, drawn = torch.ones(8, 1016, dtype=torch.long), torch.ones(8, 1016, dtype=torch.bool)
    drawn[:, :16] = False
    groups = torch.zeros(8, dtype=torch.long)
    assert not pays(rows_of(ids, drawn, groups), ids, 192)
    drawn[:, :800] = False
    assert pays(rows_of(ids, drawn, groups), ids, 192)
