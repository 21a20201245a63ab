"""Answers to one prompt in one row behind it: the prompt, which they share, goes through the model once.

A step of GRPO with eight answers to a prompt has its prompt computed once and not eight times, and so has a ranking of
answers that a reward model learns, with the same result. Short groups share a row, as documents do in pre-training: the
rows of the demo's reward model hold 24 % of padding so, and 38 % with a row a group.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.model.attention.packed import PAD_DOCUMENT_ID, attention_window
from actors.model.forward import last_hidden_states
from actors.model.microbatch import pad_rows
from actors.model.parts import trunk


@dataclass(frozen=True)
class SharedRows:
    """Groups, each a prompt followed by all answers to it, packed into rows.

    Attributes:
        input_ids: [R, L].
        segments: [R, L], the number in its row of the prompt or answer that a token belongs to, and PAD_DOCUMENT_ID
            where a row is filled up.
        prompts: [R, L], the segment of the prompt of the token's group, or PAD_DOCUMENT_ID.
        positions: [R, L]; every answer goes on from where its prompt ends.
        selected: [M], indices into the flattened rows of the tokens whose states are wanted.
    """

    input_ids: Tensor
    segments: Tensor
    prompts: Tensor
    positions: Tensor
    selected: Tensor

    def mask(self) -> Tensor:
        """Returns the attention mask, bool [R, 1, L, L]: an answer attends to its prompt and its own earlier tokens."""
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        keys = self.segments.unsqueeze(1)
        # Padding, whose states are not used, has to attend to something: to itself.
        return (((self.segments.unsqueeze(2) == keys) | (self.prompts.unsqueeze(2) == keys)) & causal).unsqueeze(1)


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
        # A window that reaches from an answer into its prompt would count the tokens of answers between the two.
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
    """Joins the rows of each group, each up to its last selected token, and packs the groups into rows as long as the
    longest. Arguments as of `states_at`."""
    joined: dict[int, _Row] = {}
    wanted: list[tuple[int, int]] = []
    given = zip(input_ids.tolist(), groups.tolist(), prompt_lengths.tolist(), selected, strict=True)
    for ids, group, start, mask in given:
        places = mask.nonzero().flatten().tolist()
        end = places[-1] + 1
        row = joined.setdefault(group, _Row(ids[:start], [0] * start, [0] * start, list(range(start))))
        moved = len(row.text) - start
        wanted += [(group, place + (moved if place >= start else 0)) for place in places]
        row.text += ids[start:end]
        row.segments += [(row.segments[-1] if row.segments else 0) + 1] * (end - start)
        row.prompts += [0] * (end - start)
        row.positions += range(start, end)
    rows, begins = _pack(joined)
    length = max(len(row.text) for row in rows)
    selected_places = torch.tensor([begins[group][0] * length + begins[group][1] + place for group, place in wanted])
    tables = (
        pad_rows([row.text for row in rows], 0),
        pad_rows([row.segments for row in rows], PAD_DOCUMENT_ID),
        pad_rows([row.prompts for row in rows], PAD_DOCUMENT_ID),
        pad_rows([row.positions for row in rows], 0),
        selected_places,
    )
    return SharedRows(*(table.to(input_ids.device) for table in tables))


@dataclass
class _Row:
    """A row of `SharedRows` in the making; its segments are numbered from 0."""

    text: list[int]
    segments: list[int]
    prompts: list[int]
    positions: list[int]

    def append(self, other: "_Row") -> None:
        """Puts another row's texts behind this one's, as segments of their own."""
        used = self.segments[-1] + 1 if self.segments else 0
        self.text += other.text
        self.segments += [used + number for number in other.segments]
        self.prompts += [used + number for number in other.prompts]
        self.positions += other.positions


def _pack(groups: dict[int, _Row]) -> tuple[list[_Row], dict[int, tuple[int, int]]]:
    """Packs groups into rows no longer than the longest: the longest first, each into the first row with room for it.

    Returns:
        The rows, and the row and place at which each group begins.
    """
    rows: list[_Row] = []
    begins: dict[int, tuple[int, int]] = {}
    longest = max(len(group.text) for group in groups.values())
    for number, group in sorted(groups.items(), key=lambda item: -len(item[1].text)):
        free = (at for at, row in enumerate(rows) if len(row.text) + len(group.text) <= longest)
        at = next(free, len(rows))
        if at == len(rows):
            rows.append(_Row([], [], [], []))
        begins[number] = at, len(rows[at].text)
        rows[at].append(group)
    return rows, begins
