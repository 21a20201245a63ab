"""Prompts to rank: their order and split."""

from collections import Counter

import pytest

from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from pipelines.data.prompts import PromptText, interleave_kinds, prompt_of, read_prompts, split_prompts
from tests.demo_recipe import DEMO_PROMPTS

DEMO_SOURCES = [ChatSource(**DEMO_PROMPTS)]


def test_kinds_are_interleaved_so_that_a_rare_one_is_not_lost() -> None:
    many = [PromptText(f"a{i}", [], {"kind": "a"}) for i in range(500)]
    few = [PromptText(f"b{i}", [], {"kind": "b"}) for i in range(20)]
    chosen = interleave_kinds([*many, *few], 1)[:30]
    assert Counter(prompt.metadata["kind"] for prompt in chosen) == {"a": 15, "b": 15}
    assert len({prompt.id for prompt in chosen}) == 30
    assert interleave_kinds([*many, *few], 1)[:30] == chosen
    assert interleave_kinds([*many, *few], 2)[:30] != chosen
    everything = interleave_kinds([*many, *few], 1)
    assert sorted(prompt.id for prompt in everything) == sorted(prompt.id for prompt in [*many, *few])


def test_demo_prompts_are_balanced_over_kinds() -> None:
    kinds = Counter(prompt.metadata["kind"] for prompt in interleave_kinds(read_prompts(DEMO_SOURCES, 1), 1)[:240])
    assert set(kinds) == {"advice", "capital", "harmful", "harmless", "misconception", "truth", "unknown"}
    assert max(kinds.values()) - min(kinds.values()) <= 1


@pytest.mark.parametrize(("count", "share", "held_out"), [(700, 0.15, 105), (2, 0.01, 1), (3, 0.5, 2), (2, 0.5, 1)])
def test_both_sides_of_the_split_have_prompts(count: int, share: float, held_out: int) -> None:
    names = [str(number) for number in range(count)]
    found = split_prompts(names, share, 1)
    assert Counter(found.values()) == {"held_out": held_out, "train": count - held_out}
    assert found == split_prompts(names, share, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": None, "kind": "a"},
            'row 1: "prompt" is empty; fill it in or remove the row (its columns are prompt ',
        ),
        ({"prompt": 5}, "a content that is text, and it has 5"),
        ({"messages": {"role": "user"}}, "each an object with a role and a content, not {'role': 'user'}"),
        ({"instruction": None}, 'row 1: "instruction" is empty'),
        ({"text": "a", "kind": "b"}, "'question'; its columns are text, kind"),
    ],
)
def test_a_row_without_a_prompt_is_refused_with_its_columns(row: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError) as found:
        prompt_of(row, "row 1")
    assert message in str(found.value)
