"""Identities of prompts and samples, and figures of one sample."""

import pytest
import xxhash

from actors.types import Prompt, RolloutId, Sample, prompt_id


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    # One of the runs 5-6-7, 6-7-5, 7-5-6 and 5-6-7 is a repetition; of three times 5-5-5, two are.
    [([], 0), ([5, 6], 0), ([5, 6, 7], 0), ([5, 6, 7, 5, 6, 7], 1 / 4), ([5] * 5, 2 / 3)],
)
def test_repetition_is_the_share_of_runs_that_stood_before(token_ids: list[int], expected: float) -> None:
    sample = Sample(RolloutId(0, "a", 0), token_ids, [0.0] * len(token_ids), [0] * len(token_ids), "stop", "")
    assert sample.repetition == pytest.approx(expected)


def test_messages_of_the_environment_do_not_count_as_repetition() -> None:
    # The policy's turns 5-6-7 and 5-6-8, and the environment's three tokens twice.
    token_ids, said = [5, 6, 7, 1, 2, 3, 5, 6, 8, 1, 2, 3], [True] * 3 + [False] * 3
    sample = Sample(RolloutId(0, "a", 0), token_ids, [0.0] * 12, [0] * 12, "stop", "", loss_mask=said * 2)
    assert sample.repetition == 0


def test_a_draw_is_seeded_by_epoch_and_name_whatever_the_id() -> None:
    name = 'chats.jsonl: [{"role": "user", "content": "hi"}]'
    prompt = Prompt(prompt_id(name), [1], name, epoch=3)
    assert prompt.draw_seed(7) == xxhash.xxh3_64_intdigest(f"7:3:{name}".encode()) >> 2
    assert Prompt("other", [1], name, epoch=3).draw_seed(7) == prompt.draw_seed(7)
    assert Prompt(name, [1]).draw_seed(7) == xxhash.xxh3_64_intdigest(f"7:{name}".encode()) >> 2
    assert (str(prompt.turn), len(prompt.id)) == (f"3:{prompt_id(name)}", 16)
    assert RolloutId(3, prompt.id, 5).turn == prompt.turn
