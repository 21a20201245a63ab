import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import create_engine

from cluster.failures import UserError
from cluster.feedback import Completion, Counts, Feedback, Prompt, Ranking, open_feedback

WRITER = """
import sys
from cluster.feedback import Ranking, Prompt, open_feedback
url, labeller = sys.argv[1:]
with open_feedback(url) as feedback:
    for prompt in feedback.prompts("train"):
        best, worst = prompt.completions
        ranks = {str(best.id): 1, str(worst.id): 2}
        feedback.add_prompts([Prompt(id=f"{labeller}-{prompt.id}", messages=[], split="held_out")])
        for _ in range(2):
            feedback.add_ranking(Ranking(prompt_id=prompt.id, labeller=labeller, ranks=ranks))
"""


def fill(feedback: Feedback, prompts: int = 2) -> list[int]:
    names = [f"p{number}" for number in range(prompts)]
    feedback.add_prompts([Prompt(id=name, messages=[{"role": "user", "content": name}]) for name in names])
    return feedback.add_completions(
        [
            Completion(prompt_id=name, index=index, text="hi", token_ids=[5, 4], model="sft", weights="abc")
            for name in names
            for index in range(2)
        ]
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'feedback.db'}"


def test_a_rerun_adds_nothing_twice(url: str) -> None:
    with open_feedback(url) as feedback:
        ids = fill(feedback)
        assert fill(feedback) == ids
        ranking = {
            "prompt_id": "p0",
            "labeller": "ann",
            "ranks": {str(ids[0]): 1, str(ids[1]): 1},
            "presented": ids[:2],
        }
        assert feedback.add_ranking(Ranking(**ranking))
        assert not feedback.add_ranking(Ranking(**ranking))
    with open_feedback(url) as feedback:
        assert feedback.counts() == Counts(prompts=2, completions=4, rankings=1, skipped=0)
        assert [completion.token_ids for completion in feedback.prompts()[0].completions] == [[5, 4], [5, 4]]


def test_skips_count_as_seen_and_are_no_rankings(url: str) -> None:
    with open_feedback(url) as feedback:
        fill(feedback)
        feedback.add_ranking(Ranking(prompt_id="p0", labeller="ann", skipped="not my field"))
        assert [prompt.id for prompt in feedback.prompts_without_ranking("ann")] == ["p1"]
        assert [prompt.id for prompt in feedback.prompts_without_ranking("ben")] == ["p0", "p1"]
        assert feedback.rankings() == []
        assert feedback.counts().skipped == 1


@pytest.mark.parametrize("wrong", [{"ranks": {"99": 1}}, {"ranks": {"1": 0, "2": 1}}, {}])
def test_wrong_rankings_are_refused_and_nothing_of_the_batch_stays(url: str, wrong: dict[str, object]) -> None:
    with open_feedback(url) as feedback:
        fill(feedback)
        good = Ranking(prompt_id="p1", labeller="ann", ranks={"3": 1, "4": 2})
        with pytest.raises(UserError, match="ranking of p0"):
            feedback.add_rankings([good, Ranking(prompt_id="p0", labeller="ann", **wrong)])
        assert feedback.counts().rankings == 0


def test_two_processes_write_at_once(url: str) -> None:
    with open_feedback(url) as feedback:
        fill(feedback, prompts=15)
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, name]) for name in ("ann", "ben")]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert feedback.counts().rankings == 30
        assert len({(ranking.prompt_id, ranking.labeller) for ranking in feedback.rankings()}) == 30


def test_another_schema_is_refused(url: str) -> None:
    open_feedback(url).close()
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99'"))
    with pytest.raises(UserError, match="schema 99"):
        open_feedback(url)


def test_a_place_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(UserError, match=r"/nowhere/x\.db"):
        open_feedback("sqlite:////nowhere/x.db")
