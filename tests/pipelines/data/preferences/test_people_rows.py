"""Votes, thumbs, better answers and "all bad" become rows, each once, with its source and its share of a judgement."""

from collections import Counter
from pathlib import Path

import pytest

from actors.model.chat import Chat
from cluster.feedback import COMPARED, Completion, Feedback, FeedbackPrompt, Ranking, Thumb, open_feedback
from cluster.recipe.training import RewardModel
from pipelines.data.feedback.io import export_file, exportable
from pipelines.data.preferences.people_rows import people_rows, source_figures
from pipelines.data.preferences.rankings import judgement_weight, read_rankings, read_unpaired, write_rankings
from tests.tiny import tiny_tokenizer

TEXTS = ["Lima.", "Rome.", "No."]


def ask(database: Feedback, name: str, question: str, texts: list[str], split: str = "train") -> list[str]:
    """Stores a prompt with answers; returns their ids."""
    messages = [{"role": "user", "content": question}]
    database.add_prompts([FeedbackPrompt(id=name, messages=messages, split=split)])
    given = [
        Completion(prompt_id=name, index=place, text=text, token_ids=[], model=f"m{place}", weights="w")
        for place, text in enumerate(texts)
    ]
    return list(map(str, database.add_completions(given)))


def ranks(ids: list[str], *given: int) -> dict[str, int]:
    return dict(zip(ids, given, strict=True))


def numbers(ids: list[str]) -> list[int]:
    return [int(one) for one in ids]


def thumb(question: str, answer: str, good: bool, request: str) -> Thumb:
    asked = [{"role": "user", "content": question}]
    return Thumb(request=request, caller="ann", model="policy", weights="w", messages=asked, answer=answer, good=good)


def test_votes_thumbs_better_answers_and_rankings_become_rows(tmp_path: Path) -> None:
    chat = Chat(tiny_tokenizer())
    with open_feedback(f"sqlite:///{tmp_path / 'feedback.db'}") as database:
        ranked = ask(database, "w 1", "Capital of Peru?", TEXTS, "held_out")
        bad = ask(database, "w 2", "Capital of Chad?", TEXTS)
        voted = ask(database, f"{COMPARED}1", "Capital of Peru?", TEXTS[:2])
        tied = ask(database, f"{COMPARED}2", "Hi?", TEXTS[:2])
        worst = ask(database, f"{COMPARED}3", "Oh?", TEXTS[:2])
        long = ask(database, f"{COMPARED}4", "Why?", ["x" * 900, "y"])
        database.add_rankings(
            [
                Ranking(prompt_id="w 1", annotator="ann", ranks=ranks(ranked, 1, 3, 2), better="It is Lima."),
                Ranking(prompt_id="w 2", annotator="ann", all_bad=True, better="N'Djamena.", presented=numbers(bad)),
                Ranking(prompt_id=f"{COMPARED}1", annotator="ben", ranks=ranks(voted, 2, 1)),
                Ranking(prompt_id=f"{COMPARED}2", annotator="ben", ranks=ranks(tied, 1, 1)),
                Ranking(prompt_id=f"{COMPARED}3", annotator="ben", all_bad=True, presented=numbers(worst)),
                Ranking(prompt_id=f"{COMPARED}4", annotator="ben", ranks=ranks(long, 1, 2)),
            ]
        )
        database.save_thumb(thumb("Capital of Peru?", "Lima.", True, "r1"))
        database.save_thumb(thumb("Capital of Peru?", "Rome.", False, "r2"))
        judged = database.peoples_judgements()
        # The counts are those of an export.
        for kind, number in exportable(database).items():
            assert export_file(database, kind, tmp_path / f"{kind}.jsonl").rows == number > 0
        made = people_rows(database, judged, {"w 1", "w 2"}, chat, 128, held_out_share=0.2)
    rows = made.rows
    assert Counter(row["source"] for row in rows) == {"votes": 4, "thumbs": 2, "better": 4, "all_bad": 3}
    # The same words are on one side of the split, wherever they were asked.
    peru = chat.prompt([{"role": "user", "content": "Capital of Peru?"}])
    assert {row["split"] for row in rows if row["prompt_token_ids"] == peru} == {"held_out"}
    votes = [row for row in rows if row["source"] == "votes"]
    assert [row["ranks"] for row in votes if row["good"] is None] == [[2, 1], [1, 1]]
    # The rows of one "all bad" weigh as one judgement.
    for source in ("votes", "all_bad"):
        parts = [row for row in rows if row["source"] == source and row["good"] is not None]
        assert sum(row["share"] for row in parts) == pytest.approx(1)
        assert {row["good"] for row in parts} == {False}
    better = [row for row in rows if row["source"] == "better"]
    assert [row["texts"] for row in better] == [["It is Lima.", "Lima."], *(["N'Djamena.", text] for text in TEXTS)]
    assert [row["share"] for row in better] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    assert [row["messages"][-1]["content"] for row in made.better] == ["It is Lima.", "N'Djamena."]
    # Every judgement is named with its rows; one that is too long for the model, with none.
    assert sorted(made.used.values()) == [0, 1, 1, 1, 1, 1, 2, 6]
    assert sum(made.used.values()) == len(rows)
    # Agreement: the vote contradicts the ranking, the thumbs agree with it.
    shared = {**better[0], "source": "rankings", "texts": TEXTS, "answers": [[1], [2], [3]], "ranks": [1, 3, 2]}
    figures = source_figures([*rows, shared])
    assert (figures["votes"]["agreement"]["value"], figures["votes"]["agreement"]["n"]) == (0.0, 1)
    assert (figures["thumbs"]["agreement"]["value"], figures["thumbs"]["agreement"]["n"]) == (1.0, 1)
    assert figures["all_bad"] == {"rows": 3, "agreement": None}
    # A reader of rankings gets no unpaired answers.
    write_rankings(rows, tmp_path / "rankings.parquet")
    assert len(read_rankings(tmp_path / "rankings.parquet")) == 2 + 4
    assert {row["source"] for row in read_unpaired(tmp_path / "rankings.parquet", "train")} >= {"all_bad"}


def test_a_weight_is_the_annotators_times_the_sources_times_the_share() -> None:
    settings = RewardModel.model_validate({"annotator_weights": {"ann": 3.0}, "source_weights": {"thumbs": 0}})
    row = {"annotator": "ann", "source": "all_bad", "share": 0.25}
    assert judgement_weight(row, settings) == pytest.approx(3 * 0.5 * 0.25)
    assert judgement_weight({**row, "source": "thumbs"}, settings) == 0
    # Tables of earlier versions name no source.
    assert judgement_weight({"annotator": "code (a:b)"}, settings) == 1
    assert judgement_weight({"annotator": "ann"}, settings) == 3
