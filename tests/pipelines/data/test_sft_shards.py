"""The phases of fine-tuning's data: conversations of files become the same shards, however the work is divided."""

import json
import pickle
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from rich.progress import Progress

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from cluster.recipe.recipe import Recipe
from cluster.run.folder import SCRATCH
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID
from pipelines.data.pack_chats import PackPhase, shard_parts, write_order
from pipelines.data.render_chats import RenderPhase, fit
from pipelines.data.source_rows import source_splits
from pipelines.sft_data import QUARANTINE, WORK, _Preparation, make_shards
from tests.tiny import write_tiny_model

CONTEXT, COUNT = 64, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, seed=0, end_id=4)
    return folder


def conversations() -> list[list[dict[str, str]]]:
    chance = random.Random(3)
    talks = []
    for number in range(COUNT):
        turns = [("user", f"Question {number}?"), ("assistant", f"Answer {number}. " * chance.randint(1, 3))]
        talks.append([{"role": role, "content": text} for role, text in turns * chance.randint(1, 2)])
    return talks


def source(path: Path, *more: dict) -> ChatSource:
    rows = [*({"messages": talk} for talk in conversations()), *more]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ChatSource(kind="files", path=str(path))


def rendered(chats: ChatSource, model: Path, folder: Path, size: int) -> tuple[RenderPhase, list[dict]]:
    phase = RenderPhase(tuple(source_splits(chats, size)), folder, model, CONTEXT, seed=1)
    tasks = [phase.only(index) for index in range(len(phase.splits))]
    assert [task.output(0) for task in tasks] == [phase.output(index) for index in range(len(tasks))]
    return phase, [task(0) for task in tasks]


def shards(chats: ChatSource, model: Path, folder: Path, size: int, shard_tokens: int) -> dict[str, bytes]:
    phase, reports = rendered(chats, model, folder / "rendered", size)
    write_order([report["conversations"] for report in reports], 5, folder)
    parts = shard_parts(COUNT, sum(report["tokens"] for report in reports), 6, shard_tokens)
    pack = PackPhase(tuple(parts), folder, phase.folder, folder, CONTEXT, 0)
    for index in range(len(parts)):
        pack.only(index)(0)
    return {part.name: pack.path(index).read_bytes() for index, part in enumerate(parts)}


def documents(path: Path) -> list[tuple[list[int], list[bool]]]:
    """Unpacks the conversations of packed rows."""
    found = []
    for row in parquet.read_table(path).to_pylist():
        ids, numbers, mask = (np.array(row[name]) for name in ("input_ids", "document_ids", "loss_mask"))
        assert len(ids) == len(numbers) == len(mask) == CONTEXT
        assert not mask[numbers == PAD_DOCUMENT_ID].any()
        own = [numbers == number for number in range(numbers.max() + 1)]
        found += [(ids[one].tolist(), mask[one].tolist()) for one in own]
    return sorted(found)


@pytest.mark.parametrize("shard_tokens", [1 << 20, 400])
def test_shards_do_not_depend_on_how_the_sources_are_cut_and_hold_each_conversation_once(
    shard_tokens: int, model: Path, tmp_path: Path
) -> None:
    chats, chat = source(tmp_path / "talk.jsonl"), Chat.of(model)
    found = [shards(chats, model, tmp_path / str(size), size, shard_tokens) for size in (1 << 20, 900)]
    assert found[0] == found[1]
    assert len(found[0]) == 2 if shard_tokens > 400 else len(found[0]) > 4
    assert len(list((tmp_path / "900" / "rendered").iterdir())) > 5
    # The order that Python's own shuffle of the conversations gives.
    talks = [fit(chat, talk, context=CONTEXT)[0] for talk in conversations()]
    random.Random("sft 5").shuffle(talks)
    for name, part in (("held_out", talks[:6]), ("train", talks[6:])):
        expected = sorted((row.token_ids, row.loss_mask) for row in chain.from_iterable(part))
        assert documents(tmp_path / "900" / name) == expected


def test_the_arguments_of_a_task_do_not_grow_with_the_number_of_tasks(model: Path, tmp_path: Path) -> None:
    (split,) = source_splits(source(tmp_path / "talk.jsonl"))
    render = RenderPhase((split,) * 10_000, tmp_path, model, CONTEXT, seed=1)
    pack = PackPhase(tuple(shard_parts(10**8, 10**11, 10, 10**7)), tmp_path, tmp_path, tmp_path, CONTEXT, 0)
    assert len(pack.shards) > 9999
    for phase in (render, pack):
        assert len(pickle.dumps(phase.only(9999))) < 2000
    assert (render.only(9999).output(0), pack.only(9999).path(0)) == (render.output(9999), pack.path(9999))


def test_conversations_that_the_template_cannot_write_are_kept_with_their_place(model: Path, tmp_path: Path) -> None:
    calls = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    long = [{"role": "user", "content": "Why? " * 99}, {"role": "assistant", "content": "So."}]
    chats = source(tmp_path / "talk.jsonl", {"messages": calls}, {"messages": long}, {"text": "no turns"})
    phase, reports = rendered(chats, model, tmp_path / "rendered", 900)
    assert [sum(report[name] for report in reports) for name in ("conversations", "too_long", "bad")] == [COUNT, 1, 2]
    bad = [line for index in range(len(reports)) if (path := phase.bad_file(index)).exists() for line in path.open()]
    first, second = map(json.loads, bad)
    place = f"{tmp_path / 'talk.jsonl'} line {COUNT + 1}"
    assert first["place"] == place
    assert first["reason"].startswith(f"{place}: a conversation that begins 'What?' has a tool's turn")
    assert second["place"] == f"{tmp_path / 'talk.jsonl'} line {COUNT + 3}"


def recipe(chats: ChatSource, run: Path, **settings: object) -> Recipe:
    sft = {"sources": [chats.model_dump()], "held_out_share": 0.1, **settings}
    prompts = {"sources": [{"path": str(chats.path)}]}
    text = {"sources": [{"path": str(chats.path)}]}
    model = {"context": CONTEXT}
    return Recipe.model_validate(
        {"name": "t", "run": str(run), "model": model, "corpus": text, "sft": sft, "collect": prompts}
    )


def test_finished_tasks_are_not_done_again_and_the_shards_are_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    monkeypatch.setattr("pipelines.data.source_rows.source_splits.__defaults__", (900,))
    settings, out = (
        recipe(source(tmp_path / "talk.jsonl", {"text": "none"}), tmp_path, max_bad_share=0.1),
        tmp_path / "sft",
    )
    with Progress(disable=True) as progress:
        preparation = _Preparation(settings, model, tmp_path / "none", out, progress)
        metrics = preparation.make()
        files = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        made = {path: path.stat().st_mtime_ns for path in files}
        lost = [out / "shards" / "train" / "shard-00000.parquet", *(out / SCRATCH / WORK / "rendered").glob("*1.arrow")]
        assert len(lost) > 1
        for path in lost:
            path.unlink()
        assert preparation.make() == metrics
    assert {path: path.read_bytes() for path in files} == files
    written = {
        path for path in files if path.suffix in (".arrow", ".parquet") and path.stat().st_mtime_ns != made[path]
    }
    assert written == set(lost)
    assert metrics["conversations"] == COUNT
    assert (metrics["bad"], metrics["layouts"]) == (1, {"messages": COUNT})
    assert len((out / QUARANTINE).read_text().splitlines()) == 1
    # Complete shards are not made again: the intermediate files are gone.
    assert make_shards(settings, model, tmp_path / "none", out) == metrics
    (tmp_path / "talk.jsonl").unlink()
    assert make_shards(settings, model, tmp_path / "none", out) == metrics
    assert not (out / SCRATCH / WORK).exists()


def test_too_many_bad_rows_are_refused_and_read_again_once_they_are_mended(
    model: Path, tmp_path: Path, ray_session: None
) -> None:
    settings, out = recipe(source(tmp_path / "talk.jsonl", {"text": "none"}), tmp_path), tmp_path / "sft"
    with pytest.raises(UserError, match=rf"line {COUNT + 1} has none of .*1 of {COUNT + 1} rows in sft.sources cannot"):
        make_shards(settings, model, tmp_path / "none", out)
    assert (out / QUARANTINE).exists()
    source(tmp_path / "talk.jsonl")
    assert make_shards(settings, model, tmp_path / "none", out)["conversations"] == COUNT
    assert not (out / QUARANTINE).exists()


def test_too_few_conversations_are_refused_with_what_became_of_all(
    model: Path, tmp_path: Path, ray_session: None
) -> None:
    chats = source(tmp_path / "talk.jsonl")
    long = {"question": "q " * CONTEXT, "answer": "a"}
    rows = [{"question": "q", "answer": "a"}, {"text": "none"}, *[long] * 3]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = (
        r"^5 conversations of sft\.sources read, 1 left, and 2 needed, one to train on and one to hold out "
        r"\(cannot be used 1, too long 3\); most are lost to 'too long': "
        rf"raise model\.context \(now {CONTEXT} tokens\), or add conversations$"
    )
    with pytest.raises(UserError, match=whole):
        make_shards(recipe(chats, tmp_path, max_bad_share=0.5), model, tmp_path / "none", tmp_path / "sft")
