"""The built-in tasks: their items, and that cheap tricks do not pass them."""

import re
from collections import Counter

import pytest

from pipelines.evaluate.tasks.built_in import BUILT_IN
from pipelines.evaluate.tasks.built_in.grammar import PAIRS, PHENOMENA, minimal_pairs
from pipelines.evaluate.tasks.built_in.instructions import INSTRUCTIONS, instructions
from pipelines.evaluate.tasks.loading import load_tasks, parse_tasks


@pytest.mark.parametrize("name", BUILT_IN)
def test_items_have_ids_of_their_own_and_right_options(name: str):
    task = BUILT_IN[name]()
    assert task.name == name
    assert len({item.id for item in task.items}) == len(task.items)
    for item in task.items:
        assert len(set(item.options)) == len(item.options)
        assert item.check or all(0 <= index < len(item.options) for index in item.right)
    twins = Counter(item.twin for item in task.items if item.twin)
    assert set(twins.values()) <= {2}
    assert {item.id for item in BUILT_IN[name]().items} == {item.id for item in task.items}


def test_minimal_pairs_are_ten_phenomena_of_different_sentences():
    task = minimal_pairs()
    assert Counter(item.group for item in task.items) == dict.fromkeys(PHENOMENA, PAIRS)
    assert len({item.options for item in task.items}) == 10 * PAIRS
    assert task.chance == 0.5


def test_no_length_and_no_word_tells_the_grammatical_sentence():
    by_group: dict[str, list[tuple[str, str]]] = {}
    for item in minimal_pairs().items:
        by_group.setdefault(item.group, []).append((item.options[0], item.options[1]))
    for name, pairs in by_group.items():
        assert all(abs(len(good.split()) - len(bad.split())) <= 1 for good, bad in pairs), name
        # A preference for one of the words that differ wins at most 65 of 100 pairs, but where one is wrong by rule.
        if name in ("verb_form", "negative_polarity", "word_order"):
            continue
        wins: Counter[str] = Counter()
        for good, bad in pairs:
            wins.update(set(good.split()) - set(bad.split()))
            wins.subtract(set(bad.split()) - set(good.split()))
        assert max(map(abs, wins.values())) <= 0.3 * PAIRS, (name, wins.most_common(2))


@pytest.mark.parametrize("said", ["", " ", "{}", ". . .", "Tell me about the sea."])
def test_no_instruction_is_kept_by_an_answer_without_content(said: str):
    kept = {name for name, (_, check) in INSTRUCTIONS.items() if check(said)}
    allowed = {"at_most_words", "one_sentence", "no_comma"} if said.startswith("Tell") else set()
    assert kept == allowed


@pytest.mark.parametrize(
    ("name", "kept", "broken"),
    [
        ("at_most_words", "The sea is deep and blue.", "word " * 11),
        ("at_least_words", "word " * 15, "word " * 14),
        ("one_sentence", "The sea is blue.", "It is blue. It is deep."),
        ("two_sentences", "It is blue. It is deep!", "It is blue."),
        ("capitals", "THE SEA.", "The SEA."),
        ("small_letters", "the sea.", "The sea."),
        ("keyword", "It is Very deep.", "It is everywhere."),
        ("no_comma", "It is deep and very blue.", "Yes, it is deep and very blue."),
        ("forbidden", "My sea is deep and blue.", "It is in the sea now."),
        ("ending", "It is blue. Thank you.", "Thank you. It is blue."),
        ("bullets", "- deep\n- blue", "- deep"),
        ("json", '{"sea": "blue"}', "{sea: blue}"),
    ],
)
def test_checkers_tell_whether_an_instruction_is_kept(name: str, kept: str, broken: str):
    check = INSTRUCTIONS[name][1]
    assert check(kept)
    assert not check(broken)


def test_tasks_are_named_on_the_command_line():
    assert [task.name for task in load_tasks(parse_tasks("cloze, truth"))] == ["cloze", "truth"]
    assert [task.name for task in load_tasks(["built_in"])] == list(BUILT_IN)
    assert all(re.search(r"Tell me about .+\. ", item.prompt) for item in instructions().items)
