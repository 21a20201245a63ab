import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from pipelines.data import source_rows as source_rows_module
from pipelines.data.chat_formats import conversation_of
from pipelines.data.prompts import prompt_of
from pipelines.data.row_files import BadRow
from pipelines.data.source_rows import check_first_rows, file_rows, source_rows, source_splits, split_rows

LINES = [
    *(json.dumps({"prompt": "Grüße " * number, "response": "x"}, ensure_ascii=False) for number in range(7)),
    "",
    "{",
    '{"prompt": "a"}\r',
    "\ufeff{}",
    "[1]",
]


def files(folder: Path) -> list[ChatSource]:
    text = "\n".join(LINES)
    for name, content in (
        ("end.jsonl", text + "\n"),
        ("open.jsonl", text),
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n\n"),
    ):
        (folder / name).write_text(content, encoding="utf-8", newline="")
    rows = [{"prompt": str(number)} for number in range(10)]
    (folder / "list.json").write_text(json.dumps(rows))
    (folder / "table.csv").write_text("prompt,response\n" + "".join(f"{number},x\n" for number in range(10)))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=3)
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), folder / "none.parquet")
    return [ChatSource(kind="files", path=str(path)) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("size", [1, 40, 100, 1 << 20])
def test_parts_of_a_file_have_its_rows_and_places_once_and_in_order(size: int, tmp_path: Path) -> None:
    for source in files(tmp_path):
        splits = list(source_splits(source, size))
        found = [row for split in splits for row in split_rows(split, 1)]
        assert found == list(source_rows(source, 1)), source.path
        if size == 1 and str(source.path).endswith(("end.jsonl", "rows.parquet")):
            assert len(splits) > 3


def test_no_part_of_lines_is_larger_than_its_size_and_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(1000)))
    splits = list(source_splits(ChatSource(kind="files", path=str(tmp_path / "a.jsonl")), 100))
    assert all(split.span and 100 <= split.span[1] - split.span[0] <= 100 + 18 for split in splits[:-1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chats.csv", 'prompt,response\nWas heißt "rot"?,red\n"Say, what?","He said ""no"",\nand left."\n'),
        (
            "windows.csv",
            '\ufeffprompt,response\r\nWas heißt "rot"?,red\r\n"Say, what?","He said ""no"",\nand left."\r\n',
        ),
        ("german.csv", 'prompt;response\nWas heißt "rot"?;red\n"Say, what?";"He said ""no"",\nand left."\n'),
        ("tabs.TSV", 'prompt\tresponse\nWas heißt "rot"?\tred\nSay, what?\t"He said ""no"",\nand left."\n'),
    ],
)
def test_tables_are_read_with_quotation_marks_and_line_breaks(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert [row for row, _ in file_rows(str(tmp_path / name))] == [
        {"prompt": 'Was heißt "rot"?', "response": "red"},
        {"prompt": "Say, what?", "response": 'He said "no",\nand left.'},
    ]


def test_a_row_of_a_table_that_cannot_be_read_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "chats.csv"
    path.write_bytes(b'prompt,response\na,b\nc,d,e\n\n"f"g,h\n\xff,i\nj,"k\nl"\n')
    rows = list(file_rows(str(path)))
    bad = [row.reason for row, _ in rows if isinstance(row, BadRow)]
    assert [row for row, _ in rows if isinstance(row, dict)] == [
        {"prompt": "a", "response": "b"},
        {"prompt": "j", "response": "k\nl"},
    ]
    assert bad[0] == f"{path} line 3 has 3 fields and the first line 2; put texts in quotation marks"
    assert bad[1].startswith(f"{path} line 5 is not valid CSV")
    assert bad[2].startswith(f"{path} line 6 is not UTF-8; fix the row, or all of the file: it may be in another ")
    assert "`iconv -f cp1252 -t utf-8`" in bad[2]
    path.write_text('prompt,response\na,b\nc,"d\ne,f\ng,h\n')
    with pytest.raises(UserError, match="line 3: a quotation mark of this row is never closed"):
        list(file_rows(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chats.txt", "What is spelt?\n", "chats.txt is in no format that rows are read from: .jsonl, .csv"),
        ("chats.jsonl.zst", "", "is in no format"),
        ("folder", None, "is a folder: name the files in it, such as "),
        ("chats.csv", "question,reply\na,b\n", 'line 2 has none of "messages"'),
        ("chats.csv", "question,reply\na,b\n", "; its columns are question, reply"),
        (
            "chats.json",
            '{"data": []}',
            "is not a list of objects but one object with the fields data: write the rows as",
        ),
        ("chats.jsonl", '{\n"prompt": "a"}', "line 1 is not valid JSON"),
        ("chats.jsonl", '{\n"prompt": "a"}', "write one whole object on each line"),
        ("chats.jsonl", '{"prompt": "a", "response": null}', 'line 1: "response" is empty; fill it in'),
        ("chats.csv", "prompt,response\na,b\n".encode("utf-16"), "chats.csv is not UTF-8; it is in UTF-16: convert it"),
        ("chats.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), "chats.jsonl is not UTF-8; it is in UTF-16"),
        ("chats.json", '[{"prompt": "é"}]'.encode("latin-1"), "is not UTF-8 at byte 13; it may be in another encoding"),
        (
            "chats.jsonl",
            '{"prompt": "é"}'.encode("latin-1"),
            "line 1 is not UTF-8 at byte 12; fix the line, or all of",
        ),
        ("chats.jsonl", "{\n[]\n", "line 1 is not valid JSON"),
        ("chats.jsonl", '{"prompt": ""}\n', 'line 1 has none of "messages"'),
        ("chats.csv", "prompt,prompt\na,b\n", "the first line must name the columns, each differently"),
    ],
)
def test_files_without_a_conversation_are_refused_before_a_run(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as found:
        check_first_rows([ChatSource(kind="files", path=str(path))], conversation_of)
    assert message in str(found.value)


def test_one_readable_row_lets_a_file_pass_the_check_of_its_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{\n{"prompt": "a", "response": "b"}\n')
    sources = [ChatSource(kind="files", path=str(path)), ChatSource(kind="function", function="gone:gone")]
    check_first_rows(sources, conversation_of)
    check_first_rows(sources, prompt_of)


def hangs(seed: int) -> Iterator[dict[str, str]]:
    yield {"prompt": "one", "response": "row"}
    time.sleep(60)


def test_a_function_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_rows_module, "SOURCE_SECONDS", 0.05)
    with pytest.raises(UserError, match=rf"^source {__name__}:hangs took longer than 0.05 s$"):
        list(source_rows(ChatSource(kind="function", function=f"{__name__}:hangs"), 1))
