import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.failures import UserError
from cluster.recipe import Conversations
from pipelines.chat_data import Messages, conversations, prompts

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


def _file(path: Path, *rows: Any) -> list[Conversations]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [Conversations(kind="files", path=str(path))]


def _turns(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": TALK}, TALK),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, _turns("Add.\n1 and 2", "3")),
        ({"instruction": "Add.", "input": "", "output": "3"}, _turns("Add.", "3")),
        ({"prompt": "Hello", "response": "Hi."}, _turns("Hello", "Hi.")),
    ],
)
def test_layouts_of_conversations(row: dict[str, Any], expected: Messages, tmp_path: Path) -> None:
    assert conversations(_file(tmp_path / "talk.jsonl", row), 1, 0.5) == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hello"}, [{"role": "user", "content": "Hello"}]),
        ({"prompt": [{"role": "user", "content": "Hello"}]}, [{"role": "user", "content": "Hello"}]),
        ({"messages": TALK}, TALK[:4]),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, [{"role": "user", "content": "Add.\n1 and 2"}]),
    ],
)
def test_layouts_of_prompts(row: dict[str, Any], expected: Messages, tmp_path: Path) -> None:
    (found,) = prompts(_file(tmp_path / "prompts.jsonl", row), 1)
    assert found.messages == expected
    assert found.metadata == {}


def test_parquet_and_gzip_hold_the_same_as_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello", "response": "Hi."}, {"prompt": "Grüße", "response": "Ja."}]
    plain = conversations(_file(tmp_path / "talk.jsonl", *rows), 1, 0.5)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "talk.parquet")
    with gzip.open(tmp_path / "talk.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name in ("talk.parquet", "talk.jsonl.gz"):
        assert conversations([Conversations(kind="files", path=str(tmp_path / name))], 1, 0.5) == plain


def test_equal_prompts_of_a_file_are_one(tmp_path: Path) -> None:
    assert len(prompts(_file(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}), 1)) == 2


def test_other_fields_of_a_prompts_row_are_kept_for_reward_functions(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2", "answer": 4, "source": None, "key": "the guide's own"}
    assert [prompt.metadata for prompt in prompts(_file(tmp_path / "a.jsonl", row), seed=1)] == [{"answer": "4"}]


def test_guide_prompts_carry_what_the_labeller_needs() -> None:
    found = prompts([Conversations(kind="guide")], 1)
    assert {prompt.metadata["kind"] for prompt in found} == {
        "capital",
        "harmful",
        "harmless",
        "misconception",
        "truth",
    }
    assert all("key" in prompt.metadata for prompt in found)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "Hello", "resp', "is not valid JSON"),
        ('["a", "list"]', "is not a JSON object"),
        ('{"text": "no turns"}', 'has none of "messages"'),
        ('{"messages": []}', "messages should be a list of turns"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "a turn needs a role"),
        ('{"messages": [{"role": "user", "content": 7}]}', "a content that is text"),
        ('{"prompt": "Hello", "response": null}', "a content that is text"),
    ],
)
def test_broken_lines_are_named_by_file_and_line(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text('{"prompt": "Hello", "response": "Hi."}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        conversations([Conversations(kind="files", path=str(path))], 1, 0.5)
    assert f"{path} line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is no table")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "Hello"}\n' * 999)[:40])
    for path in (broken, cut, tmp_path / "absent.jsonl"):
        with pytest.raises(UserError, match=path.name):
            prompts([Conversations(kind="files", path=str(path))], 1)


def test_a_prompt_without_a_user_turn_is_refused(tmp_path: Path) -> None:
    rows = {"messages": [{"role": "assistant", "content": "Hi."}]}
    with pytest.raises(UserError, match="line 1 has no user turn"):
        prompts(_file(tmp_path / "p.jsonl", rows), 1)
