import gzip
import json
import re
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from actors.model.chat import Chat
from actors.model.tokenizer import REASONING
from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from pipelines.data.chat_formats import first_conversations, read_conversations
from pipelines.data.prompts import read_prompts
from pipelines.data.render_chats import fit
from pipelines.data.turns import Messages
from tests.demo_recipe import DEMO_CHATS, DEMO_PROMPTS
from tests.helpers import SHARED
from tests.tiny import write_tiny_model

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]
TOOL_TALK = [
    {"role": "user", "content": "What is the time?"},
    {"role": "assistant", "content": "clock()"},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]
# The same conversation in the layout of ShareGPT.
SHAREGPT = [
    {"from": speaker, "value": turn["content"]}
    for speaker, turn in zip(("human", "gpt", "tool", "gpt"), TOOL_TALK, strict=True)
]

CALLS = [
    {"role": "user", "content": "When?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
    },
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]

SFT = SHARED / "sft"


def _file(path: Path, *rows: Any) -> list[ChatSource]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [ChatSource(kind="files", path=str(path))]


def _turns(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": TALK}, TALK),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, _turns("Add.\n1 and 2", "3")),
        ({"instruction": "Add.", "input": "", "output": "3"}, _turns("Add.", "3")),
        ({"prompt": "Hello", "response": "Hi."}, _turns("Hello", "Hi.")),
        ({"question": "Who?", "answer": "She.", "story": "a"}, _turns("Who?", "She.")),
        ({"conversations": SHAREGPT}, TOOL_TALK),
        ({"messages": TOOL_TALK}, TOOL_TALK),
        ({"messages": json.dumps(TALK)}, TALK),
        ({"messages": TALK[1:], "system": "Be brief."}, TALK),
        ({"conversations": SHAREGPT, "system": "Be brief."}, [TALK[0], *TOOL_TALK]),
        ({"system_prompt": "Be brief.", "question": "Hello", "response": "Hi."}, TALK[:3]),
        ({"prompt": "Hello", "completion": "Hi.", "system": None}, TALK[1:3]),
        ({"prompt": TALK[:2], "completion": TALK[2:3]}, TALK[:3]),
        ({"system": "Be brief.", "history": [["Hello", "Hi."]], "instruction": "Bye", "output": "See you."}, TALK),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
                    {"role": "assistant", "content": "Hi."},
                ]
            },
            TALK[1:3],
        ),
        ({"messages": [TALK[1], {**TALK[2], "reasoning": "Greet."}]}, [TALK[1], {**TALK[2], REASONING: "Greet."}]),
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, *TALK[1:3]]},
            [{"role": "developer", "content": "Be brief."}, *TALK[1:3]],
        ),
        ({"messages": CALLS}, CALLS),
        (
            {
                "messages": [
                    CALLS[0],
                    {
                        "role": "assistant",
                        "content": None,
                        "function_call": {"name": "clock", "arguments": '{"zone": "UTC"}'},
                    },
                    CALLS[2],
                    CALLS[3],
                ]
            },
            CALLS,
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "When?"},
                    {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "UTC"}}'},
                    {"from": "observation", "value": "12:00"},
                    {"from": "gpt", "value": "Noon."},
                ]
            },
            CALLS,
        ),
    ],
)
def test_every_layout_of_conversations_is_read(row: dict[str, Any], expected: Messages, tmp_path: Path) -> None:
    assert read_conversations(_file(tmp_path / "talk.jsonl", row), 1).messages == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hello"}, [{"role": "user", "content": "Hello"}]),
        ({"prompt": [{"role": "user", "content": "Hello"}]}, [{"role": "user", "content": "Hello"}]),
        ({"messages": TALK}, TALK[:4]),
        ({"conversations": SHAREGPT}, TOOL_TALK[:3]),
        ({"question": "Who?"}, [{"role": "user", "content": "Who?"}]),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, [{"role": "user", "content": "Add.\n1 and 2"}]),
        ({"system": "Be brief.", "history": [["Hello", "Hi."]], "prompt": "Bye"}, TALK[:4]),
        ({"prompt": TALK[:2], "tools": []}, TALK[:2]),
    ],
)
def test_every_layout_of_prompts_is_read(row: dict[str, Any], expected: Messages, tmp_path: Path) -> None:
    (found,) = read_prompts(_file(tmp_path / "prompts.jsonl", row), 1)
    assert found.messages == expected
    assert found.metadata == {}


def test_parquet_and_gzip_read_as_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello", "response": "Hi."}, {"prompt": "Grüße", "response": "Ja."}]
    plain = read_conversations(_file(tmp_path / "talk.jsonl", *rows), 1)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "talk.parquet")
    with gzip.open(tmp_path / "talk.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name in ("talk.parquet", "talk.jsonl.gz"):
        assert read_conversations([ChatSource(kind="files", path=str(tmp_path / name))], 1) == plain


def test_a_json_list_reads_as_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello", "response": "Hi."}, {"question": "Who?", "answer": "She."}]
    (tmp_path / "talk.json").write_text(json.dumps(rows, indent=1))
    source = [ChatSource(kind="files", path=str(tmp_path / "talk.json"))]
    assert read_conversations(source, 1) == read_conversations(_file(tmp_path / "talk.jsonl", *rows), 1)
    for text, complaint in (("[{]", "as JSON"), ('{"a": 1}', "not a list"), ("[1]", "row 0 is not a JSON object")):
        (tmp_path / "talk.json").write_text(text)
        with pytest.raises(UserError, match=complaint):
            read_prompts(source, 1)


def test_layouts_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": TALK}, {"instruction": "Add.", "output": "3"}, {"conversations": SHAREGPT}, {"messages": TALK}]
    found = read_conversations([*_file(tmp_path / "talk.jsonl", *rows), ChatSource(**DEMO_CHATS)], 1)
    demo = len(found.messages) - 4
    assert demo > 4_000
    assert found.layouts == {"messages": 2 + demo, "instruction/output": 1, "conversations": 1}


def endless_conversations(seed: int) -> Iterator[dict[str, Any]]:
    """Yields conversations without end."""
    return ({"prompt": f"Question {number}?", "response": f"Answer {seed}."} for number in count())


def test_first_conversations_read_no_further_and_take_from_every_source(tmp_path: Path) -> None:
    endless = ChatSource(kind="function", function=f"{__name__}:endless_conversations")
    files = _file(tmp_path / "talk.jsonl", {"messages": []}, {"messages": TALK}, {"messages": TOOL_TALK})
    found = first_conversations([endless, *files], 1, 3)
    assert [turns[0]["content"] for turns in found] == ["Question 0?", "Question 1?", "Be brief."]
    assert found[2] == TALK
    assert len(first_conversations([endless], 1, 8)) == 8


def test_sources_without_conversations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hold no conversation: .*empty\.jsonl"):
        read_conversations(_file(tmp_path / "empty.jsonl"), 1)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared conversations are not here")
@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("instructions.json", "instruction/output", 1100), ("fairytaleqa-test.jsonl.gz", "question/answer", 1007)],
)
def test_real_conversations(name: str, layout: str, count: int) -> None:
    found = read_conversations([ChatSource(kind="files", path=str(SFT / name))], 1)
    assert found.layouts == {layout: count}
    assert all([turn["role"] for turn in talk] == ["user", "assistant"] for talk in found.messages)


def test_a_long_conversation_is_cut_between_turns(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", seed=0, end_id=4)
    chat = Chat.of(tmp_path / "model")
    whole = [turn for number in range(4) for turn in _turns(f"Question {number}?", f"Answer {number}.")]
    lengths = [len(chat.conversation(whole[:end]).token_ids) for end in (2, 4, 6, 8)]
    # One token short of three exchanges; the long one does not fit at all.
    context = lengths[2] - 1
    assert fit(chat, whole, context=context) == ([chat.conversation(whole[:4])], True)
    assert fit(chat, whole, context=lengths[3]) == ([chat.conversation(whole)], False)
    assert fit(chat, _turns("Why? " * context, "So."), context=context) == ([], True)


def test_the_time_to_fit_a_long_conversation_grows_with_its_length_alone(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", seed=0, end_id=4)
    chat = Chat.of(tmp_path / "model")
    whole = [turn for number in range(60) for turn in _turns(f"Question {number}? " * 20, f"Answer {number}. " * 20)]
    started = time.process_time()
    (row,), cut = fit(chat, whole, context=4096)
    # A loop over its ends, each of which rendered every beginning, took 24 s.
    assert time.process_time() - started < 3
    assert cut
    assert row.token_ids == chat.conversation(whole).token_ids[: len(row.token_ids)]
    assert row.loss_mask[-1]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": None}])
def test_turns_that_are_not_to_be_trained_are_read_as_such(mark: dict[str, Any], tmp_path: Path) -> None:
    turns = [TALK[1], {**TALK[2], **mark}, TALK[3], {**TALK[4], "weight": 1}]
    (found,) = read_conversations(_file(tmp_path / "talk.jsonl", {"messages": turns, "system": "Be brief."}), 1).items
    assert found.messages == TALK
    assert found.untrained == (2,)


def test_tools_are_read_as_a_list_and_as_json(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "clock"}}]
    rows = [{"messages": CALLS, "tools": tools}, {"messages": CALLS, "tools": json.dumps(tools)}]
    found = read_conversations(_file(tmp_path / "talk.jsonl", *rows), 1)
    assert [one.tools for one in found.items] == [tools, tools]
    assert not found.ignored
    with pytest.raises(UserError, match="line 1 has tools, which prompts are not sampled with"):
        read_prompts(_file(tmp_path / "talk.jsonl", *rows), 1)


def test_fields_that_nothing_reads_are_counted(tmp_path: Path) -> None:
    turns = [TALK[1], {**TALK[2], "lang": "en"}]
    rows = [{"messages": turns, "topic": "a"}, {"prompt": "a", "response": "b", "topic": "c", "input": "d"}]
    assert read_conversations(_file(tmp_path / "talk.jsonl", *rows), 1).ignored == {
        "topic": 2,
        "turn.lang": 1,
        "input": 1,
    }


def test_equal_prompts_of_a_file_are_merged(tmp_path: Path) -> None:
    assert len(read_prompts(_file(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}), 1)) == 2


def test_other_fields_of_a_row_are_metadata(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2", "answer": 4, "source": None, "key": "four"}
    assert [prompt.metadata for prompt in read_prompts(_file(tmp_path / "a.jsonl", row), seed=1)] == [
        {"answer": "4", "key": "four"}
    ]


def test_demo_prompts_have_the_annotators_metadata() -> None:
    found = read_prompts([ChatSource(**DEMO_PROMPTS)], 1)
    assert {prompt.metadata["kind"] for prompt in found} == {
        "advice",
        "capital",
        "harmful",
        "harmless",
        "misconception",
        "truth",
        "unknown",
    }
    assert all("key" in prompt.metadata for prompt in found)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "Hello", "resp', "is not valid JSON"),
        ('["a", "list"]', "is not a JSON object"),
        ('{"text": "no turns"}', 'has none of "messages"'),
        ('{"messages": []}', "messages must be a list of turns"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "a turn needs a role"),
        ('{"messages": [{"role": "user", "content": 7}]}', "a content that is text"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "a part of the kind image"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}', "a call of a tool needs a name"),
        ('{"messages": [{"role": "user", "content": "a", "train": true}]}', "train asks to train a turn of the role"),
        ('{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}', "weight is 0.5, and only 0 and 1"),
        (
            '{"messages": [{"role": "system", "content": "a"}], "system": "b"}',
            "a field for the system's turn",
        ),
        ('{"conversations": [{"from": "martian", "value": "x"}]}', r"needs a role \(human, gpt.* not 'martian'"),
        ('{"conversations": "hello"}', "'hello' must be a list or an object"),
        ('{"question": "Who?"}', '"question" with "answer"'),
        ('{"prompt": "Hello", "response": null}', '"response" is empty; fill it in or remove the row \\(its columns'),
        ('{"prompt": "Hello", "response": 7}', "a content that is text"),
        ('{"prompt": "Hello", "response": "a\\ud800b"}', r"half of a surrogate pair \('\\ud800'\)"),
        ('{"instruction": "a", "output": "b", "history": ["c"]}', "history must be a list of pairs"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "has no assistant turn to learn from"),
        ('{"prompt": "Hello", "response": " "}', "an answer is empty, which would teach the model to say nothing"),
    ],
)
def test_rows_that_cannot_be_read_are_returned_with_file_and_line(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text('{"prompt": "Hello", "response": "Hi."}\n\n' + line + "\n", encoding="utf-8")
    found = read_conversations([ChatSource(kind="files", path=str(path))], 1)
    assert found.messages == [_turns("Hello", "Hi.")]
    (bad,) = found.bad
    assert re.search(complaint, bad.reason)
    assert bad.place == f"{path} line 3"
    assert bad.reason.startswith(bad.place)
    assert "\n" not in bad.reason
    assert json.loads(json.dumps(bad.excerpt).encode()) == bad.excerpt


def test_a_prompt_that_cannot_be_read_is_refused_with_file_and_line(tmp_path: Path) -> None:
    for line in ('{"prompt": 7}', '{"prompt": "a\\udfff"}', '{"prompt": "a", "key": "\\udfff"}', "{"):
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' + line, encoding="utf-8")
        with pytest.raises(UserError, match="line 2") as caught:
            read_prompts([ChatSource(kind="files", path=str(tmp_path / "p.jsonl"))], 1)
        assert "\n" not in str(caught.value)


def test_errors_name_damaged_and_missing_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is no table")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "Hello"}\n' * 999)[:40])
    for path in (broken, cut, tmp_path / "absent.jsonl"):
        with pytest.raises(UserError, match=path.name):
            read_prompts([ChatSource(kind="files", path=str(path))], 1)


@pytest.mark.parametrize("row", [{"messages": [{"role": "assistant", "content": "Hi."}]}, {"prompt": "\n"}])
def test_a_prompt_without_a_user_turn_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="line 1 has no user turn"):
        read_prompts(_file(tmp_path / "p.jsonl", row), 1)
