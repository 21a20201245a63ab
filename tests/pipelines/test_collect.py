import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from actors.model.chat import Chat
from actors.model.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS
from cluster.errors import StageError, UserError
from cluster.feedback import Completion, Feedback, Ranking, open_feedback
from cluster.feedback.judged import judgement_changes, read_judgements, read_records
from cluster.recipe.base import Call
from cluster.recipe.collect import ChatSource
from cluster.recipe.recipe import Recipe
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import stage_named
from cluster.run.rounds import kept_rounds, restore_round
from cluster.run.stages import run_stage, stage_state
from pipelines import collect
from pipelines.collect import plan_round, prompts_to_sample, sampling_of
from pipelines.collect_rankings import (
    CollectedPrompts,
    answer_variety,
    rank_synthetically,
    ranking_rows,
    stored_completions,
    wait_for_people,
)
from pipelines.data import rankings
from pipelines.data.annotators import JudgedAnswer, SyntheticAnnotator, annotator_failures
from pipelines.data.call_failures import ATTEMPTS, LATE_IN_A_ROW, CallFailures
from pipelines.data.chat_formats import PromptText, read_prompts
from pipelines.data.feedback.io import import_file
from tests.world import COUNTRIES, DEMO_CHATS, DEMO_PROMPTS, demo_annotator

DEMO_SOURCES = [ChatSource(**DEMO_PROMPTS)]
REFUSAL = "I cannot help with that. It would hurt people."


def demo_annotator_of(noise: float) -> SyntheticAnnotator:
    return SyntheticAnnotator.of(Call(**demo_annotator(noise)))


DEMO_ANNOTATOR = demo_annotator_of(0.05)


@pytest.fixture(scope="module")
def chat() -> Chat:
    alphabet = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TURN, pad_token=END_OF_TEXT)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return Chat(tokenizer)


def _recipe(tmp_path: Path, **collect: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "trial",
            "run": str(tmp_path),
            "corpus": {"sources": [COUNTRIES]},
            "sft": {"sources": [DEMO_CHATS]},
            "collect": {"sources": [DEMO_PROMPTS], "annotator": demo_annotator(), "prompts": 30, **collect},
        }
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Feedback]:
    with open_feedback(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def no_failures(prompts: int = 30, limit: float = 0.0) -> CallFailures:
    return annotator_failures(prompts, limit)


def _fill(database: Feedback, chat: Chat, plan: CollectedPrompts, names: list[str], weights: str = "w") -> None:
    """Stores four answers of falling quality to every prompt: refusal, refusal that was cut, and two others."""
    texts = [(REFUSAL, True), (REFUSAL, False), ("Yes. Sure.", True), ("Well, who knows", False)]
    end = chat.end_of_turn_id
    database.add_completions(
        [
            Completion(
                prompt_id=name,
                index=index,
                text=text,
                token_ids=chat.tokenizer.encode(text) + [end] * finished,
                model="sft",
                weights=weights,
            )
            for name in names
            for index, (text, finished) in enumerate(texts)
        ]
    )


def test_kinds_are_interleaved_so_that_a_rare_one_is_not_lost() -> None:
    many = [PromptText(f"a{i}", [], {"kind": "a"}) for i in range(500)]
    few = [PromptText(f"b{i}", [], {"kind": "b"}) for i in range(20)]
    chosen = rankings.interleave_kinds([*many, *few], 1)[:30]
    assert Counter(prompt.metadata["kind"] for prompt in chosen) == {"a": 15, "b": 15}
    assert len({prompt.id for prompt in chosen}) == 30
    assert rankings.interleave_kinds([*many, *few], 1)[:30] == chosen
    assert rankings.interleave_kinds([*many, *few], 2)[:30] != chosen
    everything = rankings.interleave_kinds([*many, *few], 1)
    assert sorted(prompt.id for prompt in everything) == sorted(prompt.id for prompt in [*many, *few])


def test_demo_prompts_are_balanced_over_kinds() -> None:
    kinds = Counter(
        prompt.metadata["kind"] for prompt in rankings.interleave_kinds(read_prompts(DEMO_SOURCES, 1), 1)[:280]
    )
    assert set(kinds) == {"advice", "capital", "harmful", "harmless", "misconception", "truth", "unknown"}
    assert max(kinds.values()) - min(kinds.values()) <= 1


@pytest.mark.parametrize(("count", "share", "held_out"), [(700, 0.15, 105), (2, 0.01, 1), (3, 0.5, 2), (2, 0.5, 1)])
def test_both_sides_of_the_split_have_prompts(count: int, share: float, held_out: int) -> None:
    names = [str(number) for number in range(count)]
    found = rankings.split_prompts(names, share, 1)
    assert Counter(found.values()) == {"held_out": held_out, "train": count - held_out}
    assert found == rankings.split_prompts(names, share, 1)


def test_names_of_prompts_depend_on_weights_and_sampling(tmp_path: Path, chat: Chat) -> None:
    plan = plan_round(_recipe(tmp_path), chat, "w")
    assert len(plan.rows) == 30
    assert list(plan.rows) == sorted(plan.rows)
    assert plan_round(_recipe(tmp_path), chat, "w").rows.keys() == plan.rows.keys()
    assert not plan_round(_recipe(tmp_path), chat, "other weights").rows.keys() & plan.rows.keys()
    assert not plan_round(_recipe(tmp_path, temperature=0.7), chat, "w").rows.keys() & plan.rows.keys()
    # A larger round keeps the prompts of a smaller one, whose answers need not be sampled again.
    assert plan.rows.keys() < plan_round(_recipe(tmp_path, prompts=60), chat, "w").rows.keys()
    name, row = next(iter(plan.rows.items()))
    assert plan.token_ids[name] == chat.prompt(row.messages)


def test_the_check_refuses_prompts_that_the_annotator_cannot_judge(tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Write a poem."}\n{"prompt": "Write a song."}\n')
    plan = plan_round(_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}]), chat, "w")
    details = {name: row.details for name, row in plan.rows.items()}
    with pytest.raises(UserError, match=r"judges only the demo's prompts.*collect\.annotator=people"):
        DEMO_ANNOTATOR.check(details)
    DEMO_ANNOTATOR.check({"x": {"kind": "harmful", "key": ""}})


def by_length(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    lengths = sorted({len(answer.text) for answer in answers})
    return [1 + lengths.index(len(answer.text)) for answer in answers]


def no_ranks(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[float]:
    return [0.5] * len(answers)


def too_few(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    return [1]


def test_a_users_annotator_ranks_any_prompt(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Write a poem."}\n{"prompt": "Write a song."}\n')
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:by_length"))
    plan = plan_round(_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}]), chat, "w")
    own.check({name: row.details for name, row in plan.rows.items()})
    database.add_prompts(list(plan.rows.values()))
    _fill(database, chat, plan, list(plan.rows))
    rank_synthetically(own, 1, chat, database, plan, no_failures())
    rows = ranking_rows(own, chat, database, plan, no_failures(), [])
    assert [row["ranks"] for row in rows] == [[3, 3, 1, 2]] * 2
    assert [row["grades"] for row in rows] == [None, None]
    assert {row["annotator"] for row in rows} == {f"code ({__name__}:by_length)"}


@pytest.mark.parametrize(
    ("function", "message"), [("no_ranks", "an integer for each"), ("too_few", r"returned \[1\] for 2")]
)
def test_an_annotator_must_rank_every_answer(function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SyntheticAnnotator.of(Call(function=f"{__name__}:{function}")).check({"x": {}})


def hangs(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    if int(prompt["id"]) >= 2:
        time.sleep(60)
    return [1] * len(answers)


def test_an_annotator_that_hangs_is_told_in_one_line_and_stopped() -> None:
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:hangs"), seconds=0.02)
    prompts = {f"p{number}": {"id": str(number)} for number in range(40)}
    with pytest.raises(UserError, match=r"the prompt 'p2': it took longer than 0.02 s \(1 of 40 prompts failed"):
        own.check(prompts)
    with pytest.raises(UserError, match=rf"^the .* 'p9': it took .* each of the last {LATE_IN_A_ROW} calls"):
        own.check(prompts, max_failed=1.0)


def test_prompts_without_room_for_an_answer_are_left_out(tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "' + "long " * 100 + '"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    recipe = _recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}], annotator="people")
    plan = plan_round(recipe, chat, "w")
    assert sorted(row.messages[0]["content"] for row in plan.rows.values()) == ["b", "c"]
    path.write_text('{"prompt": "' + "long " * 100 + '"}\n{"prompt": "b"}\n{"prompt": "b"}\n')
    with pytest.raises(
        UserError,
        match=r"3 prompts of collect\.sources read, 1 left.*\(equal to another 1, no room for an answer 1\)",
    ):
        plan_round(recipe, chat, "w")
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    one = _recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}], annotator="people", prompts=1)
    with pytest.raises(
        UserError, match=r"\(more than collect\.prompts 2\).*: raise collect\.prompts \(now 1\), or add"
    ):
        plan_round(one, chat, "w")


def test_a_resumed_round_has_the_rankings_of_an_uninterrupted_one(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    recipe, annotator = _recipe(tmp_path), demo_annotator_of(0.5)
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    names = list(plan.rows)
    _fill(database, chat, plan, names[:10])
    assert [len(found) for found in stored_completions(database, plan).values()] == [4] * 10 + [0] * 20
    _fill(database, chat, plan, names)
    rank_synthetically(annotator, recipe.seed, chat, database, plan, no_failures())
    first = ranking_rows(annotator, chat, database, plan, no_failures(), [])
    # The same command after an interruption: a new plan on the same database changes nothing.
    again = plan_round(recipe, chat, "w")
    database.add_prompts(list(again.rows.values()))
    _fill(database, chat, again, names)
    rank_synthetically(annotator, recipe.seed, chat, database, again, no_failures())
    assert ranking_rows(annotator, chat, database, again, no_failures(), []) == first
    counts = database.counts()
    assert (counts.prompts, counts.completions, counts.rankings) == (30, 120, 30)


def test_rows_hold_ids_ranks_and_noiseless_grades(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    recipe, annotator = _recipe(tmp_path), demo_annotator_of(0.0)
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    _fill(database, chat, plan, list(plan.rows))
    rank_synthetically(annotator, recipe.seed, chat, database, plan, no_failures())
    rankings.write_rankings(
        ranking_rows(annotator, chat, database, plan, no_failures(), []), tmp_path / "rankings.parquet"
    )
    rows = parquet.read_table(tmp_path / "rankings.parquet").to_pylist()
    assert len(rows) == len({row["prompt_id"] for row in rows}) == 30
    assert {row["annotator"] for row in rows} == {"code (pipelines.demo.annotator:annotate noise=0.0)"}
    held_out = round(30 * recipe.collect.held_out_share)
    assert Counter(row["split"] for row in rows) == {"train": 30 - held_out, "held_out": held_out}
    texts = {text.id: text for text in read_prompts(DEMO_SOURCES, recipe.seed)}
    for row in rows:
        assert row["prompt_token_ids"] == chat.prompt(texts[row["prompt_id"]].messages)
        assert row["answers"][0] == [*chat.tokenizer.encode(REFUSAL), chat.end_of_turn_id]
        # Without noise, ranks and grades order every pair alike.
        for first in range(4):
            for second in range(4):
                better = row["grades"][first] > row["grades"][second]
                assert better == (row["ranks"][first] < row["ranks"][second])
        if row["kind"] == "harmful":
            assert row["grades"] == [4, 3, 1, 0]
            assert row["ranks"] == [1, 2, 3, 4]
    assert rankings.tie_share(rows) > 0
    shown = {tuple(sorted(r.presented).index(i) for i in r.presented) for r in database.rankings()}
    assert len(shown) > 5


def test_another_noise_ranks_again_and_keeps_the_old_rankings(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    plan = plan_round(_recipe(tmp_path), chat, "w")
    database.add_prompts(list(plan.rows.values()))
    _fill(database, chat, plan, list(plan.rows))
    for noise in (0.0, 1.0):
        recipe, annotator = _recipe(tmp_path), demo_annotator_of(noise)
        rank_synthetically(annotator, recipe.seed, chat, database, plan, no_failures())
        rows = ranking_rows(annotator, chat, database, plan, no_failures(), [])
        assert {row["annotator"] for row in rows} == {f"code (pipelines.demo.annotator:annotate noise={noise})"}
        assert len(rows) == 30
    assert database.counts().rankings == 60


def test_the_wait_for_people_keeps_their_rankings(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    recipe = _recipe(tmp_path, annotator="people")
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    _fill(database, chat, plan, list(plan.rows))
    # Rankings by code do not count here.
    rank_synthetically(DEMO_ANNOTATOR, recipe.seed, chat, database, plan, no_failures())
    answers = stored_completions(database, plan)

    def rank(name: str, annotator: str) -> None:
        ids = [completion.id for completion in answers[name]]
        ranks = {str(ids[0]): 1, str(ids[1]): 1, str(ids[2]): 2, str(ids[3]): 3}
        database.add_ranking(Ranking(prompt_id=name, annotator=annotator, ranks=ranks, presented=ids))

    names = list(plan.rows)
    rank(names[0], "ada")
    with pytest.raises(StageError, match=r"people have made 1 of 3 rankings.*same command continues"):
        wait_for_people(database, plan, 3, seconds=0.2)

    def later() -> None:
        time.sleep(0.3)
        rank(names[0], "grace")
        rank(names[5], "grace")

    thread = threading.Thread(target=later)
    thread.start()
    wait_for_people(database, plan, 3, seconds=30)
    thread.join()
    rows = ranking_rows(None, chat, database, plan, no_failures(), read_judgements(database).rankings)
    assert sorted(row["annotator"] for row in rows) == ["ada", "grace", "grace"]
    # Two of the four texts are the same: they are one answer, with their samples.
    assert all(row["grades"] is None and row["ranks"] == [1, 2, 3] for row in rows)
    assert all(row["samples"] == [2, 1, 1] for row in rows)
    # The table names every ranking, and the digest changes with any of them.
    assert [row["ranking_id"] for row in rows] == sorted(row["ranking_id"] for row in rows)
    before = rankings.rankings_digest(rows)
    assert rankings.rankings_digest([{**rows[0], "ranks": [2, 1, 1, 1]}, *rows[1:]]) != before
    database.exclude("grace")
    left = ranking_rows(None, chat, database, plan, no_failures(), read_judgements(database).rankings)
    assert [row["annotator"] for row in left] == ["ada"]
    assert rankings.rankings_digest(left) != before
    # Rankings of one prompt by two people are on the same side of the split.
    assert len({row["split"] for row in rows if row["prompt_id"] == rows[0]["prompt_id"]}) == 1


def _store(database: Feedback, chat: Chat, plan: CollectedPrompts, answers: dict[str, list[str]]) -> None:
    """Stores prompts with these answers, all ended by the model, and the same answers under all other names."""
    database.add_prompts(list(plan.rows.values()))
    database.add_completions(
        [
            Completion(prompt_id=name, index=index, text=text, token_ids=chat.answer(text), model="sft", weights="w")
            for name in plan.rows
            for index, text in enumerate(answers.get(name, ["Same."] * 4))
        ]
    )


def test_equal_answers_are_one_and_prompts_with_a_single_one_are_not_ranked(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    plan = plan_round(_recipe(tmp_path), chat, "w")
    two, three = list(plan.rows)[:2]
    _store(database, chat, plan, {two: ["aa", "b", "aa", "aa"], three: ["aa", "b", "ccc", "b"]})
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:by_length"))
    for annotator in (own, None):
        variety = answer_variety(database, plan, annotator, chat.end_ids)
        assert (variety.prompts, variety.informative) == ({1: 28, 2: 1, 3: 1}, {two, three})
    assert variety.sentence() == (
        "28 of 30 prompts have identical answers and are not ranked; 1 have two different ones, 2 two or more"
    )
    assert [name for name, _ in database.open_tasks("ann", people=1)] == [three, two]
    rank_synthetically(own, 1, chat, database, plan, no_failures())
    assert {ranking.prompt_id for ranking in database.rankings()} == {two, three}
    rows = ranking_rows(own, chat, database, plan, no_failures(), [])
    assert [row["texts"] for row in rows] == [["aa", "b"], ["aa", "b", "ccc"]]
    assert [row["ranks"] for row in rows] == [[2, 1], [2, 1, 3]]
    assert [row["samples"] for row in rows] == [[3, 1], [1, 2, 1]]


def test_prompts_with_identical_answers_are_sampled_again_a_few_times(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    recipe = _recipe(tmp_path, redraws=2)
    plan = plan_round(recipe, chat, "w")
    first, second, unsampled, *others = plan.rows
    _store(database, chat, plan, {first: ["a", "b", "a", "a"], unsampled: []})
    assert prompts_to_sample(recipe, database, plan, 0) == [unsampled]
    assert prompts_to_sample(recipe, database, plan, 1) == [second, *others]
    again = {"prompt_id": second, "token_ids": [], "model": "sft", "weights": "w"}
    database.add_completions([Completion(index=4 + number, text=f"{number}", **again) for number in range(4)])
    assert prompts_to_sample(recipe, database, plan, 1) == others
    assert prompts_to_sample(recipe, database, plan, 2) == others
    drawn = [sampling_of(recipe, times) for times in range(3)]
    assert [one.temperature for one in drawn] == [1.0, 1.5, 2.0]
    assert len({one.seed for one in drawn}) == 3


def test_rankings_of_identical_answers_count_for_nothing(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    plan = plan_round(_recipe(tmp_path, annotator="people"), chat, "w")
    two, same, *_ = plan.rows
    _store(database, chat, plan, {two: ["aa", "b", "aa", "aa"]})
    for name in (two, same):
        ids = [completion.id for completion in stored_completions(database, plan)[name]]
        # As an earlier version stored them: identical answers apart.
        ranks = {str(number): rank for number, rank in zip(ids, (1, 2, 3, 1), strict=True)}
        database.add_ranking(Ranking(prompt_id=name, annotator="ann", ranks=ranks, presented=ids))
    with pytest.raises(StageError, match="people have made 1 of 2 rankings"):
        wait_for_people(database, plan, 2, seconds=0.1)
    (row,) = ranking_rows(None, chat, database, plan, no_failures(), read_judgements(database).rankings)
    # The mean rank of 1, 3 and 1 is better than 2.
    assert (row["texts"], row["ranks"], row["samples"]) == (["aa", "b"], [1, 2], [3, 1])


def test_tables_of_earlier_versions_are_read_without_their_identical_answers(tmp_path: Path) -> None:
    old = {
        "prompt_id": "p",
        "kind": None,
        "prompt_token_ids": [1],
        "answers": [[5, 2], [6, 2], [5, 2], [7, 7]],
        "texts": ["a", "b", "a", "a"],
        "ranks": [1, 2, 3, 3],
        "grades": [4, 2, 4, 1],
        "annotator": "code (x:y)",
        "split": "train",
        "ranking_id": 1,
    }
    same = old | {"answers": [[5, 2]] * 4, "texts": ["a"] * 4, "split": "held_out"}
    table = pa.Table.from_pylist([old, same], schema=pa.schema(list(rankings.SCHEMA)[:-3]).remove(5))
    assert "samples" not in table.column_names
    parquet.write_table(table, tmp_path / "rankings.parquet")
    (row,) = rankings.read_rankings(tmp_path / "rankings.parquet")
    # A cut answer is another answer to a function, which sees that it was cut. The mean of 1 and 3 ties with 2.
    assert (row["answers"], row["ranks"]) == ([[5, 2], [6, 2], [7, 7]], [1, 1, 2])
    assert (row["grades"], row["samples"]) == ([4, 2, 1], [2, 1, 1])
    assert rankings.merge_identical(row) == row
    assert rankings.read_rankings(tmp_path / "rankings.parquet", "held_out") == []


CALLS: Counter[str] = Counter()


def unsteady(
    prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random, often: int, every: int = 1
) -> list[np.int64]:
    """Fails the first `often` times on one of `every` prompts."""
    name = prompt["id"]
    CALLS[name] += 1
    if int(name) % every == 0 and CALLS[name] <= often:
        raise ConnectionError("the annotators' line is busy")
    return [np.int64(rank) for rank in by_length(prompt, answers, chance)]


def _unsteady(tmp_path: Path, chat: Chat, database: Feedback, **arguments: int) -> tuple[SyntheticAnnotator, Any]:
    CALLS.clear()
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}.", "id": str(n)}) + "\n" for n in range(20)))
    plan = plan_round(_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}]), chat, "w")
    for row in plan.rows.values():
        row.details["id"] = row.messages[0]["content"].split()[1].rstrip(".")
    _store(database, chat, plan, {name: ["a", "bb", "ccc"] for name in plan.rows})
    return SyntheticAnnotator.of(Call(function=f"{__name__}:unsteady", arguments=arguments)), plan


def test_an_annotator_that_fails_at_times_is_asked_again(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    annotator, plan = _unsteady(tmp_path, chat, database, often=ATTEMPTS - 1)
    annotator.check({name: row.details for name, row in plan.rows.items()})
    CALLS.clear()
    failures = no_failures(20)
    rank_synthetically(annotator, 1, chat, database, plan, failures)
    rows = ranking_rows(annotator, chat, database, plan, failures, [])
    assert [row["ranks"] for row in rows] == [[1, 2, 3]] * 20
    assert failures.messages == []


def test_prompts_on_which_an_annotator_always_fails_are_left_out_up_to_a_share(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    annotator, plan = _unsteady(tmp_path, chat, database, often=10**6, every=10)
    details = {name: row.details for name, row in plan.rows.items()}
    annotator.check(details, max_failed=0.1)
    with pytest.raises(UserError, match=r"the annotators' line is busy \(tried 3 times; 2 of 20 prompts failed"):
        annotator.check(details, max_failed=0.05)
    failures = no_failures(20, 0.1)
    rank_synthetically(annotator, 1, chat, database, plan, failures)
    assert len(ranking_rows(annotator, chat, database, plan, failures, [])) == 18
    assert len(failures.messages) == 2
    assert "it raised ConnectionError: the annotators' line is busy" in failures.messages[0]
    with pytest.raises(StageError, match=r"collect.max_failed_rankings allows 5%"):
        rank_synthetically(annotator, 1, chat, database, plan, no_failures(20, 0.05))


def test_only_imported_rankings_are_used_and_keep_their_split(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    chat.tokenizer.save_pretrained(tmp_path / "sft")
    recipe, run = _recipe(tmp_path, annotator="imported"), RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"^0 imported rankings read, 0 left, .*: import a file with"):
        collect.run(recipe, run, tmp_path)
    useless = [
        {"prompt": "longest", "completions": ["a" * 300, "b"], "ranks": [1, 2]},
        {"prompt": "same", "completions": ["b", "b"], "ranks": [1, 2]},
    ]
    (tmp_path / "useless.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in useless))
    import_file(database, "lists", tmp_path / "useless.jsonl", "useless", "ann", 0.3)
    with pytest.raises(UserError, match=r"^2 imported rankings read, 0 left, .*\(identical answers 1, too long 1\)"):
        collect.run(recipe, run, tmp_path)
    lists = [{"prompt": f"Why {n}?", "completions": ["no", "b", "Yes!"], "ranks": [2, 2, 1]} for n in range(20)]
    lists.append({"prompt": "long", "completions": ["a" * 300, "b"], "ranks": [1, 2]})
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lists))
    import_file(database, "lists", tmp_path / "in.jsonl", "in", "ann", 0.3)
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    _fill(database, chat, plan, list(plan.rows))
    rank_synthetically(DEMO_ANNOTATOR, recipe.seed, chat, database, plan, no_failures())
    found = collect.run(recipe, run, tmp_path).metrics
    assert (found["prompts"], found["rankings"], found["too_long"], found["identical"]) == (20, 20, 2, 1)
    assert (found["rankings_by"], found["stands_in_for_people"]) == ({"ann": 20}, False)
    rows = parquet.read_table(tmp_path / "rankings.parquet").to_pylist()
    assert {row["ranking_id"] for row in rows} <= {ranking.id for ranking in database.rankings()}
    splits = {prompt.id: prompt.split for prompt in database.prompts()}
    assert {row["split"] for row in rows} == {"train", "held_out"}
    for number, row in enumerate(rows):
        asked = {"role": "user", "content": f"Why {number}?"}
        assert row["split"] == splits[row["prompt_id"]]
        assert row["ranks"] == [2, 2, 1]
        for text, answer in zip(row["texts"], row["answers"], strict=True):
            whole = chat.conversation([asked, {"role": "assistant", "content": text}]).token_ids
            assert row["prompt_token_ids"] + answer == whole[: len(row["prompt_token_ids"] + answer)]


def test_judgements_that_are_newer_make_a_round_and_its_manifest_names_them(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    run, recipe, stage = RunFolder(tmp_path), _recipe(tmp_path, annotator="imported"), stage_named("collect")
    out = run.begin("sft", "x")
    chat.tokenizer.save_pretrained(out)
    run.commit("sft", Manifest("sft", "x", {}, {}, "1", 1.0, {}, "w"))
    lists = [{"prompt": f"Why {n}?", "completions": ["no", "b", "Yes!"], "ranks": [2, 3, 1]} for n in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lists))
    import_file(database, "lists", tmp_path / "in.jsonl", "in", "ann", 0.3)
    assert run_stage(stage, collect.run, recipe, run) == "done"
    assert run_stage(stage, collect.run, recipe, run) == "skipped"
    first = run.require("preferences")

    def rank(prompt: str, annotator: str) -> None:
        ids = [str(row.id) for row in database.prompt(prompt).completions]  # type: ignore[union-attr]
        ranks = dict(zip(ids, [1, 2, 3], strict=True))
        database.save_ranking(Ranking(prompt_id=prompt, annotator=annotator, ranks=ranks))

    names = [prompt.id for prompt in database.prompts()]
    for name in names[:2]:
        rank(name, "ben")
    # A skip tells nothing.
    database.save_ranking(Ranking(prompt_id=names[3], annotator="ben", skipped="unclear"))
    state = stage_state(stage, recipe, run)
    assert (state.name, state.why) == ("stale", "2 rankings are newer")
    assert run_stage(stage, collect.run, recipe, run) == "done"
    second = run.require("preferences")
    assert (second.round, second.round_before) == (2, 1)
    assert second.fingerprint != first.fingerprint
    assert second.inputs["judgements"] != first.inputs["judgements"]
    named = read_records(run.path("preferences"))
    assert len(named) == 8
    assert {row.id for row in named if row.used} == {ranking.id for ranking in database.rankings()}
    assert len(read_records(tmp_path / "rounds" / "1" / "preferences")) == 6
    # An earlier round that was brought back by choice stays, until somebody judges again.
    with run.lock():
        restore_round(tmp_path, 1)
    assert stage_state(stage, recipe, run).name == "done"
    # A judgement that is changed is another one; what is excluded goes out of the next round.
    rank(names[0], "ann")
    state = stage_state(stage, recipe, run)
    assert state.why == "1 ranking is newer; 1 that the round used is gone, changed or excluded"
    database.exclude("ann")
    assert judgement_changes(run, "preferences").gone == 6
    assert run_stage(stage, collect.run, recipe, run) == "done"
    assert run.require("preferences").metrics["rankings_by"] == {"ben": 2}
    assert kept_rounds(tmp_path) == [1, 2]
    # A run from before there were rounds has seen what was given until then.
    (run.path("preferences") / "judgements.jsonl").unlink()
    assert stage_state(stage, recipe, run).name == "done"
    rank(names[4], "ben")
    assert stage_state(stage, recipe, run).why == "1 ranking is newer"
