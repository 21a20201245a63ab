"""Answers to one prompt in one row behind it: the prompt, which they share, goes through the model once.

A step of GRPO with eight answers to a prompt has its prompt computed once and not eight times, and so has a ranking of
answers that a reward model learns, with the same result.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.model.attention.packed import PAD_DOCUMENT_ID, attention_window
from actors.model.causal_lm import last_hidden_states
from actors.model.microbatch import pad_rows
from actors.model.parts import trunk

PROMPT = 0


@dataclass(frozen=True)
class SharedRows:
    """Prompts, each followed by all answers to it.

    Attributes:
        input_ids: [R, L].
        segments: [R, L]: PROMPT, then 1, 2, … for the answers, and PAD_DOCUMENT_ID where a row is filled up.
        positions: [R, L]; every answer goes on from where the prompt ends.
        selected: [M], indices into the flattened rows of the tokens whose states are wanted.
    """

    input_ids: Tensor
    segments: Tensor
    positions: Tensor
    selected: Tensor

    def mask(self) -> Tensor:
        """Returns the attention mask, bool [R, 1, L, L]: an answer attends to the prompt and its own earlier tokens."""
        length = self.segments.shape[1]
        device = self.segments.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        same = self.segments.unsqueeze(2) == self.segments.unsqueeze(1)
        prompt = (self.segments == PROMPT).unsqueeze(1)
        # Padding, whose states are not used, has to attend to something.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        return (((same | prompt) & causal) | itself).unsqueeze(1)


def states_at(model: Any, input_ids: Tensor, selected: Tensor, prompt_lengths: Tensor, groups: Tensor) -> Tensor:
    """Computes the hidden states of selected tokens; rows share their prompt where that is less work.

    Args:
        input_ids: [N, T], prompt and answer, padding at the right.
        selected: bool [N, T], at least one token a row, and none before the last of its prompt.
        prompt_lengths: [N], tokens of the prompt.
        groups: [N]; rows of one group begin with the same prompt.

    Returns:
        [M, H] for the M selected tokens, row by row.
    """
    if len(groups.unique()) < len(groups):
        rows = share_prompts(input_ids, selected, prompt_lengths, groups)
        # An answer's window would have to begin in the prompt, which another answer's tokens stand behind.
        windowed = (attention_window(model.config) or input_ids.shape[1]) < input_ids.shape[1]
        if not windowed and pays(rows, input_ids, model.config.hidden_size):
            states = trunk(model)(
                input_ids=rows.input_ids, attention_mask=rows.mask(), position_ids=rows.positions, use_cache=False
            ).last_hidden_state
            return states.flatten(0, 1)[rows.selected]
    return last_hidden_states(model, input_ids)[selected]


def pays(rows: SharedRows, input_ids: Tensor, hidden: int) -> bool:
    """Says whether shared rows are less work than separate ones [N, T] for a model of that width.

    A token takes 24 H² operations a layer and 4 H more for every token that it may attend to (Kaplan et al. 2020, table
    1); with a mask, masked ones are computed too, and without one half of them are not.
    """
    (shared, long), (separate, short) = rows.input_ids.shape, input_ids.shape
    return shared * long * (6 * hidden + long) < separate * short * (6 * hidden + short / 2)


def share_prompts(input_ids: Tensor, selected: Tensor, prompt_lengths: Tensor, groups: Tensor) -> SharedRows:
    """Joins the rows of each group, each up to its last selected token. Arguments as of `states_at`."""
    rows: dict[int, tuple[list[int], list[int], list[int]]] = {}
    found: list[tuple[int, int]] = []
    given = zip(input_ids.tolist(), groups.tolist(), prompt_lengths.tolist(), selected, strict=True)
    for ids, group, start, mask in given:
        places = mask.nonzero().flatten().tolist()
        end = places[-1] + 1
        text, segments, positions = rows.setdefault(group, (ids[:start], [PROMPT] * start, list(range(start))))
        moved = len(text) - start
        found += [(group, place + (moved if place >= start else 0)) for place in places]
        segments += [(segments[-1] if segments else PROMPT) + 1] * (end - start)
        text += ids[start:end]
        positions += range(start, end)
    texts, segments_of, positions_of = zip(*rows.values(), strict=True)
    length = max(map(len, texts))
    number = {group: index for index, group in enumerate(rows)}
    flat = torch.tensor([number[group] * length + place for group, place in found])
    tables = pad_rows(texts, 0), pad_rows(segments_of, PAD_DOCUMENT_ID), pad_rows(positions_of, 0), flat
    return SharedRows(*(table.to(input_ids.device) for table in tables))
