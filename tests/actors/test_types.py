"""Figures of one answer."""

import pytest

from actors.types import Sample


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    # Of 5-6-7, 6-7-5, 7-5-6 and 5-6-7 one stood before; of three times 5-5-5, two.
    [([], 0), ([5, 6], 0), ([5, 6, 7], 0), ([5, 6, 7, 5, 6, 7], 1 / 4), ([5] * 5, 2 / 3)],
)
def test_repetition_is_the_share_of_runs_that_stood_before(token_ids: list[int], expected: float) -> None:
    sample = Sample("a", 0, token_ids, [0.0] * len(token_ids), [0] * len(token_ids), "stop", "")
    assert sample.repetition == pytest.approx(expected)


def test_what_others_say_in_between_is_not_the_policys_repetition() -> None:
    # Two turns of 5-6-7 and 5-6-8, and twice the same three tokens that somebody else said.
    token_ids, said = [5, 6, 7, 1, 2, 3, 5, 6, 8, 1, 2, 3], [True] * 3 + [False] * 3
    sample = Sample("a", 0, token_ids, [0.0] * 12, [0] * 12, "stop", "", drawn=said * 2)
    assert sample.repetition == 0
