"""Files of other machines: credentials that are not shown, and requests that are repeated."""

from types import SimpleNamespace

import pyarrow.fs
import pytest

from cluster.errors import StorageError, UserError
from cluster.run.storage import remote as storage
from cluster.run.storage.remote import filesystem_of, requested, without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:se%2Fcret@bucket/texts/*.txt?region=x&secret_key=y", "s3://bucket/texts/*.txt"),
        ("cannot open 'https://token@host/a.jsonl?sig=1': no", "cannot open 'https://host/a.jsonl': no"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net/a"),
        ("hf://datasets/o/n@main/data/train.jsonl", "hf://datasets/o/n@main/data/train.jsonl"),
        ("write to a@b.com, or see http://x.org/?q=1", "write to a@b.com, or see http://x.org/"),
        ("/home/me/what?.txt", "/home/me/what?.txt"),
    ],
)
def test_credentials_are_removed_from_uris(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_a_request_is_repeated_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    answers: list[object] = [PermissionError("403"), ConnectionResetError("reset"), b"data"]

    def answer() -> object:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert requested("s3://bucket/a", answer) == b"data"
    answers = [PermissionError("403 for s3://KEY:secret@bucket/a")] * 3
    with pytest.raises(StorageError, match=r"^cannot read s3://bucket/a: PermissionError: 403 for s3://bucket/a \("):
        requested("s3://KEY:secret@bucket/a", answer)
    assert not answers
    answers = [FileNotFoundError("a"), b"data"]
    with pytest.raises(FileNotFoundError, match="there is no file s3://bucket/a"):
        requested("s3://bucket/a", answer)
    assert len(answers) == 1


def test_a_store_that_fails_while_its_uri_is_read_is_named_without_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def from_uri(uri: str) -> None:
        raise OSError(f"When resolving region for bucket of {uri}: could not resolve host")

    monkeypatch.setattr(pyarrow.fs, "FileSystem", SimpleNamespace(from_uri=from_uri))
    with pytest.raises(UserError, match=r"cannot open s3://nowhere/x\.jsonl: .*could not resolve host") as found:
        filesystem_of("s3://user:secret@nowhere/x.jsonl")
    assert "secret" not in str(found.value)
