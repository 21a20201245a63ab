"""Figures of one answer."""

import pytest

from actors.sample import Sample


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    # Of 5-6-7, 6-7-5, 7-5-6 and 5-6-7 one stood before; of three times 5-5-5, two.
    [([], 0), ([5, 6], 0), ([5, 6, 7], 0), ([5, 6, 7, 5, 6, 7], 1 / 4), ([5] * 5, 2 / 3)],
)
def test_repetition_is_the_share_of_runs_that_stood_before(token_ids: list[int], expected: float) -> None:
    sample = Sample("a", 0, token_ids, [0.0] * len(token_ids), [0] * len(token_ids), "stop", "")
    assert sample.repetition == pytest.approx(expected)
