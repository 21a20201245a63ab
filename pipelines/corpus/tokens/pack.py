"""Packs documents into rows of one length with best-fit decreasing (Ding et al. 2024, https://arxiv.org/abs/2404.10830).

A document that fits is never cut: the longest go first, each to the row with the least room that still holds it. That
leaves about as little padding as cutting everything at row ends would, without a document that starts in its middle.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = Sequence[int] | NDArray[np.int32]
PADDING_ID = 0
NO_DOCUMENT = -1


@dataclass(frozen=True)
class Rows:
    """Packed rows, both (rows, context) int32.

    Attributes:
        input_ids: tokens; PADDING_ID after the last document.
        document_ids: 0, 1, 2 … within each row; NO_DOCUMENT where padded.
    """

    input_ids: NDArray[np.int32]
    document_ids: NDArray[np.int32]


def pack(documents: Sequence[Ids], context: int) -> Rows:
    """Packs documents, each with its end token, into as few rows as best-fit decreasing finds.

    A document longer than a row is cut into whole rows and a rest; the rest is packed like any other.
    """
    pieces = [piece for document in documents for piece in cut(document, context)]
    rows = best_fit([len(piece) for piece in pieces], context)
    input_ids = np.full((len(rows), context), PADDING_ID, dtype=np.int32)
    document_ids = np.full((len(rows), context), NO_DOCUMENT, dtype=np.int32)
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members):
            end = start + len(pieces[member])
            input_ids[row, start:end] = pieces[member]
            document_ids[row, start:end] = number
            start = end
    return Rows(input_ids, document_ids)


def cut(document: Ids, context: int) -> list[Ids]:
    """A document in pieces of at most `context` tokens, in order."""
    return [document[start : start + context] for start in range(0, len(document), context)]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distributes items over bins, longest first, each to the fullest bin that has room.

    Returns:
        The items of every bin, by their position in `lengths`.
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
