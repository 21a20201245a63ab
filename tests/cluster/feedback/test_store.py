import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlmodel import create_engine

from cluster.errors import UserError
from cluster.feedback import (
    COMPARED,
    GOLD,
    Completion,
    Feedback,
    FeedbackCounts,
    FeedbackPrompt,
    Ranking,
    is_person,
    open_feedback,
)

WRITER = """
import sys
from cluster.feedback import Ranking, FeedbackPrompt, open_feedback
url, annotator = sys.argv[1:]
with open_feedback(url) as feedback:
    for prompt in feedback.prompts("train"):
        best, worst = prompt.completions
        ranks = {str(best.id): 1, str(worst.id): 2}
        feedback.add_prompts([FeedbackPrompt(id=f"{annotator}-{prompt.id}", messages=[], split="held_out")])
        for _ in range(2):
            feedback.add_ranking(Ranking(prompt_id=prompt.id, annotator=annotator, ranks=ranks))
"""


def fill(feedback: Feedback, prompts: int = 2) -> list[int]:
    names = [f"p{number}" for number in range(prompts)]
    feedback.add_prompts([FeedbackPrompt(id=name, messages=[{"role": "user", "content": name}]) for name in names])
    return feedback.add_completions(
        [
            Completion(prompt_id=name, index=index, text=f"hi {index}", token_ids=[5, 4], model="sft", weights="abc")
            for name in names
            for index in range(2)
        ]
    )


def test_a_rerun_adds_nothing_twice(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        ids = fill(feedback)
        assert fill(feedback) == ids
        ranking = {
            "prompt_id": "p0",
            "annotator": "ann",
            "ranks": {str(ids[0]): 1, str(ids[1]): 1},
            "presented": ids[:2],
        }
        assert feedback.add_ranking(Ranking(**ranking))
        assert not feedback.add_ranking(Ranking(**ranking))
    with open_feedback(feedback_url) as feedback:
        assert feedback.counts() == FeedbackCounts(prompts=2, completions=4, rankings=1, skipped=0)
        assert [completion.token_ids for completion in feedback.prompts()[0].completions] == [[5, 4], [5, 4]]


def test_skips_close_a_task_and_are_not_rankings(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        fill(feedback)
        feedback.add_ranking(Ranking(prompt_id="p0", annotator="ann", skipped="not my field"))
        assert feedback.open_tasks("ann", people=1) == [("p1", 0)]
        assert feedback.open_tasks("ben", people=1) == [("p1", 0), ("p0", 0)]
        assert feedback.rankings() == []
        assert feedback.counts().skipped == 1


def test_a_prompt_whose_completions_are_all_equal_is_no_task(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        fill(feedback)
        same = {"text": "Same.", "token_ids": [], "model": "sft", "weights": "abc"}
        feedback.add_prompts([FeedbackPrompt(id="same", messages=[])])
        feedback.add_completions([Completion(prompt_id="same", index=index, **same) for index in range(4)])
        assert feedback.open_tasks("ann", people=1) == [("p1", 0), ("p0", 0)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": {"99": 1}},
        {"ranks": {"1": 0, "2": 1}},
        {},
        {"ranks": {"1": 1, "2": 2}, "all_bad": True},
        {"ranks": {"1": 1}, "presented": [1, 2]},
        {"ranks": {"1": 1, "2": 2}, "marks": {"1": {"kind": True}}},
    ],
)
def test_an_invalid_ranking_refuses_the_whole_batch(feedback_url: str, wrong: dict[str, object]) -> None:
    with open_feedback(feedback_url) as feedback:
        fill(feedback)
        good = Ranking(prompt_id="p1", annotator="ann", ranks={"3": 1, "4": 2})
        with pytest.raises(UserError, match="ranking of p0"):
            feedback.add_rankings([good, Ranking(prompt_id="p0", annotator="ann", **wrong)])
        assert feedback.counts().rankings == 0


@pytest.mark.slow
def test_two_processes_write_at_once(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        fill(feedback, prompts=15)
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, feedback_url, name]) for name in ("ann", "ben")]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert feedback.counts().rankings == 30
        assert len({(ranking.prompt_id, ranking.annotator) for ranking in feedback.rankings()}) == 30


def test_a_newer_schema_is_refused(feedback_url: str) -> None:
    open_feedback(feedback_url).close()
    engine = create_engine(feedback_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99'"))
    engine.dispose()
    with pytest.raises(UserError, match="schema 99"):
        open_feedback(feedback_url)


def test_an_unopenable_database_is_named() -> None:
    with pytest.raises(UserError, match=r"/nowhere/x\.db"):
        open_feedback("sqlite:////nowhere/x.db")


OLD_SCHEMA = """
CREATE TABLE meta ("key" VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE prompt (id VARCHAR NOT NULL, messages JSON NOT NULL, details JSON NOT NULL, split VARCHAR NOT NULL,
    PRIMARY KEY (id));
CREATE TABLE completion (id {id} NOT NULL, prompt_id VARCHAR NOT NULL, "index" INTEGER NOT NULL,
    text VARCHAR NOT NULL, token_ids JSON NOT NULL, model VARCHAR NOT NULL, weight_version INTEGER NOT NULL,
    weights VARCHAR NOT NULL, sampling JSON NOT NULL, PRIMARY KEY (id), UNIQUE (prompt_id, weights, "index"),
    FOREIGN KEY(prompt_id) REFERENCES prompt (id));
CREATE TABLE ranking (id {id} NOT NULL, prompt_id VARCHAR NOT NULL, labeller VARCHAR NOT NULL, ranks JSON NOT NULL,
    skipped VARCHAR, presented JSON NOT NULL, seconds FLOAT NOT NULL, created FLOAT NOT NULL, PRIMARY KEY (id),
    UNIQUE (prompt_id, labeller), FOREIGN KEY(prompt_id) REFERENCES prompt (id));
INSERT INTO meta VALUES ('schema', '1');
INSERT INTO prompt VALUES ('p0', '[]', '{{}}', 'train');
INSERT INTO completion VALUES (1, 'p0', 0, 'a', '[]', 'sft', 0, 'abc', '{{}}'),
    (2, 'p0', 1, 'b', '[]', 'sft', 0, 'abc', '{{}}');
INSERT INTO ranking (prompt_id, labeller, ranks, presented, seconds, created)
    VALUES ('p0', 'ann', '{{"1": 1, "2": 2}}', '[2, 1]', 3.5, 0.0)
"""


def test_a_database_of_the_first_schema_is_migrated_without_loss(feedback_url: str) -> None:
    engine = create_engine(feedback_url)
    number = "INTEGER" if engine.dialect.name == "sqlite" else "SERIAL"
    with engine.begin() as connection:
        for statement in OLD_SCHEMA.format(id=number).split(";"):
            connection.exec_driver_sql(statement)
    engine.dispose()
    for _ in range(2):
        with open_feedback(feedback_url) as feedback:
            (ranking,) = feedback.rankings()
            assert (ranking.ranks, ranking.seconds, ranking.all_bad, ranking.marks) == (
                {"1": 1, "2": 2},
                3.5,
                False,
                {},
            )
            feedback.save_ranking(Ranking(prompt_id="p0", annotator="ben", all_bad=True, better="c"))
            assert feedback.counts() == FeedbackCounts(prompts=1, completions=2, rankings=1, skipped=0, all_bad=1)


def test_text_of_any_content_is_stored(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        (first, second) = fill(feedback, prompts=1)
        text = "a\0b % {} \u202e' \U0001f600"
        answer = Completion(prompt_id="p0", index=2, text=text, token_ids=[0], model="sft", weights="abc")
        (key,) = feedback.add_completions([answer])
        ranks = {str(first): 1, str(second): 2, str(key): 3}
        feedback.save_ranking(Ranking(prompt_id="p0", annotator="ann", ranks=ranks, better=text))
        stored = {feedback.prompts()[0].completions[2].text, feedback.judgements()[0].better}
        # PostgreSQL's text holds every character but one.
        assert stored == {text if feedback_url.startswith("sqlite") else text.replace("\0", "\ufffd")}


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(UserError, match=r"cannot open .*127\.0\.0\.1:9/x") as refused:
        open_feedback("postgresql://ann:secret@127.0.0.1:9/x")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("password", ["p@ss:word", "p@ssword", "p@ss/word"])
def test_a_url_with_an_unquoted_password_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(UserError, match="an @ in the password as %40") as refused:
        open_feedback(f"postgresql://ann:{password}@db.invalid/x")
    assert "word@db" not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(UserError, match="cannot read the URL"):
        open_feedback("no URL")


def test_a_saved_ranking_replaces_the_whole_earlier_one_and_is_idempotent(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        ids = fill(feedback)[:2]
        first = {"prompt_id": "p0", "annotator": "ann", "presented": ids, "seconds": 2.0}
        ranks = {str(ids[0]): 1, str(ids[1]): 2}
        marks = {str(ids[0]): {"helpful": True, "harmless": False}}
        for _ in range(2):
            feedback.save_ranking(Ranking(**first, ranks=ranks, marks=marks, better="mine"))
        (stored,) = feedback.judgements("ann")
        assert (stored.ranks, stored.marks, stored.better, stored.presented) == (ranks, marks, "mine", ids)
        feedback.save_ranking(Ranking(**first, skipped="not my field"))
        (stored,) = feedback.judgements()
        assert (stored.ranks, stored.marks, stored.better, stored.skipped) == ({}, {}, None, "not my field")


def test_only_one_of_several_concurrent_replacements_of_a_judgement_is_stored(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback, ThreadPoolExecutor(8) as pages:
        ids = fill(feedback, prompts=1)

        def save(page: int) -> bool:
            ranks = {str(ids[0]): 1 + page % 2, str(ids[1]): 2 - page % 2}
            return feedback.replace_ranking(Ranking(prompt_id="p0", annotator="ann", ranks=ranks, seconds=page), None)

        saved = list(pages.map(save, range(8)))
        (stored,) = feedback.judgements()
        # The same judgement from another page is no conflict, and changes nothing.
        assert saved == [page % 2 == stored.seconds % 2 for page in range(8)]


def test_a_prompt_stays_open_until_enough_people_have_judged_it(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        ids = fill(feedback, prompts=1)
        ranks = {str(ids[0]): 1, str(ids[1]): 1}
        feedback.add_ranking(Ranking(prompt_id="p0", annotator="code (noise 0.05)", ranks=ranks))
        feedback.add_ranking(Ranking(prompt_id="p0", annotator="ann", skipped="unsure"))
        assert feedback.open_tasks("ben", people=2) == [("p0", 0)]
        feedback.add_ranking(Ranking(prompt_id="p0", annotator="ben", all_bad=True))
        assert feedback.open_tasks("cat", people=1) == []
        assert feedback.open_tasks("cat", people=2) == [("p0", 1)]
        assert feedback.open_tasks("ben", people=2) == []


def test_repeats_are_stored_apart_and_excluded_annotators_are_left_out(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        ids = fill(feedback, prompts=3)
        for number, name in enumerate(("p0", "p1", "p2")):
            ranks = {str(key): rank for key, rank in zip(ids[2 * number : 2 * number + 2], (1, 2), strict=True)}
            feedback.save_ranking(Ranking(prompt_id=name, annotator="ann", ranks=ranks))
        assert feedback.repeatable_tasks("ann", after=1) == ["p0", "p1"]
        for rank in (2, 1):
            ranks = {str(ids[0]): rank, str(ids[1]): 1}
            feedback.save_repeat(Ranking(prompt_id="p0", annotator="ann", ranks=ranks, seconds=3.0))
        (repeat,) = feedback.repeats("ann")
        assert (repeat.ranks, repeat.seconds) == ({str(ids[0]): 1, str(ids[1]): 1}, 3.0)
        assert feedback.judgement("p0", "ann").ranks == {str(ids[0]): 1, str(ids[1]): 2}
        assert feedback.repeatable_tasks("ann", after=1) == ["p1"]
        assert feedback.repeats("ben") == []
        for excluded in (True, True, False, False):
            feedback.exclude("ann", excluded)
            assert feedback.excluded() == (["ann"] if excluded else [])
            assert len(feedback.rankings()) == (0 if excluded else 3)
            assert len(feedback.open_tasks("ben", people=1)) == (3 if excluded else 0)
        with pytest.raises(UserError, match="no annotator nobody"):
            feedback.exclude("nobody")


def test_gold_items_are_everyones_tasks_and_compared_prompts_are_no_tasks(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        ids = fill(feedback)
        feedback.add_ranking(Ranking(prompt_id="p0", annotator=GOLD, ranks={str(ids[0]): 1, str(ids[1]): 2}))
        feedback.add_prompts(
            [FeedbackPrompt(id=f"{COMPARED}x", messages=[]), FeedbackPrompt(id="compared", messages=[])]
        )
        for name in (f"{COMPARED}x", "compared"):
            feedback.add_completions(
                [
                    Completion(prompt_id=name, index=i, text=str(i), token_ids=[], model="m", weights="")
                    for i in range(2)
                ]
            )
        assert [name for name, _ in feedback.open_tasks("ann", people=1)] == ["compared", "p1"]
        assert [prompt.id for prompt in feedback.prompts(prefix=COMPARED)] == [f"{COMPARED}x"]
        assert feedback.gold_tasks("ann") == ["p0"]
        feedback.add_ranking(Ranking(prompt_id="p0", annotator="ann", all_bad=True))
        assert (feedback.gold_tasks("ann"), feedback.gold_tasks("ben")) == ([], ["p0"])
        assert not is_person(GOLD)


def test_only_the_hash_of_a_token_is_stored(feedback_url: str) -> None:
    with open_feedback(feedback_url) as feedback:
        token = feedback.add_annotator("ann")
        assert feedback.annotator_of(token) == "ann"
        assert feedback.annotator_of("another") is None
        with pytest.raises(UserError, match="an annotator already"):
            feedback.add_annotator("ann")
        renewed = feedback.add_annotator("ann", renew=True)
        assert (feedback.annotator_of(token), feedback.annotator_of(renewed)) == (None, "ann")
        with pytest.raises(UserError, match="no annotator's name"):
            feedback.add_annotator("code (noise 1)")
    engine = create_engine(feedback_url)
    with engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM annotator")).all())
    engine.dispose()
    assert "ann" in stored
    assert token not in stored
    assert renewed not in stored
