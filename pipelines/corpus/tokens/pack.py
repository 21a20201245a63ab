"""Packs documents into rows of equal length by best-fit decreasing (Ding et al. 2024, https://arxiv.org/abs/2404.10830).

The longest documents are placed first, each in the row with the least room that still holds it. A document that fits a
row is never cut, and yet the padding is about as little as with documents concatenated and cut at row ends.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = Sequence[int] | NDArray[np.int32]
PAD_TOKEN_ID = 0
PAD_DOCUMENT_ID = -1


@dataclass(frozen=True)
class Rows:
    """Packed rows, both (rows, context) int32.

    Attributes:
        input_ids: token ids; PAD_TOKEN_ID in the padding after the last document.
        document_ids: 0, 1, 2, … within each row; PAD_DOCUMENT_ID in the padding.
    """

    input_ids: NDArray[np.int32]
    document_ids: NDArray[np.int32]


def pack(documents: Sequence[Ids], context: int) -> Rows:
    """Packs documents, end tokens included, into as few rows of `context` tokens as best-fit decreasing finds.

    A document longer than a row is cut into full rows and a rest, which is packed like a document.
    """
    pieces = [piece for document in documents for piece in cut(document, context)]
    rows = best_fit([len(piece) for piece in pieces], context)
    input_ids = np.full((len(rows), context), PAD_TOKEN_ID, dtype=np.int32)
    document_ids = np.full((len(rows), context), PAD_DOCUMENT_ID, dtype=np.int32)
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members):
            end = start + len(pieces[member])
            input_ids[row, start:end] = pieces[member]
            document_ids[row, start:end] = number
            start = end
    return Rows(input_ids, document_ids)


def cut(document: Ids, context: int) -> list[Ids]:
    """Cuts a document into consecutive pieces of at most `context` tokens."""
    return [document[start : start + context] for start in range(0, len(document), context)]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distributes items over bins, longest first, each into the fullest bin with room for it.

    Returns:
        For every bin, the positions in `lengths` of its items.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(rooms, lengths[item])
        if place < len(rooms):
            room = rooms[place]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        room -= lengths[item]
        if room:
            if room not in with_room:
                insort(rooms, room)
            with_room.setdefault(room, []).append(chosen)
    return bins
