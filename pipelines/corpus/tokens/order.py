"""Shuffles rows: a permutation of which a task computes its own part without the rest."""

from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

# Up to this number of rows the whole permutation is held: 8 MB.
_HELD = 1 << 20
_ROUNDS = 6


class Order(Protocol):
    """A permutation of the numbers from 0 to n - 1."""

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers at some places, (n,)."""


def order(rows: int, seed: int) -> Order:
    """Returns a random permutation of rows, which depends on their number and the seed alone."""
    return _Held(rows, seed) if rows <= _HELD else Feistel(rows, seed)


class _Held:
    def __init__(self, rows: int, seed: int) -> None:
        self._order: NDArray[np.int64] = np.random.default_rng(seed).permutation(rows)

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._order[places]


class Feistel:
    """A Feistel network with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    It permutes the smallest square number of even bits above n; a result that is not below n is permuted again, fewer
    than four times on average.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._bits = max(1, (max(rows - 1, 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._bits) - 1)
        self._keys = [np.uint64(xxhash.xxh3_64_intdigest(bytes([number]), seed=seed)) for number in range(_ROUNDS)]

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers at some places, (n,)."""
        found = self._permuted(places.astype(np.uint64))
        while (outside := found >= self._rows).any():
            found[outside] = self._permuted(found[outside])
        return found.astype(np.int64)

    def _permuted(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits, mask = np.uint64(self._bits), self._mask
        left, right = numbers >> bits, numbers & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return (left << bits) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
