"""The compare page's server: its stream and its records, and that it names the models only after the vote."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from cluster.feedback import COMPARED, Feedback, open_feedback
from cluster.keys import KeyRing
from serve.gateway import GatewaySettings
from serve.pages.compare import all_ballots
from tests.serve.conftest import Server
from tests.serve.pages.test_label import signed_in
from tests.serve.support.local import asking
from tests.serve.support.scripted import Scripted, comparing

GOOD, POOR, BASE = (
    Scripted("alpha", "a long good answer"),
    Scripted("beta", "poor"),
    Scripted("raw", "more", chat=False),
)
REWARD = Scripted("reward", chat=False, score=True)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Feedback]:
    with open_feedback(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def client(database: Feedback, *models: Scripted) -> TestClient:
    return TestClient(comparing(database, *models), base_url="http://localhost")


RANKS = {"left": [1, 2], "right": [2, 1], "tie": [1, 1], "bad": None}


def ask(http: Any, headers: dict[str, str], url: str = "", sides: int = 2) -> list[dict[str, Any]]:
    reply = http.post(f"{url}/compare/answers", json={"prompt": "Why?", "sides": sides}, headers=headers)
    assert reply.status_code == 200, reply.text
    return [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n") if line]


def vote(http: TestClient, headers: dict[str, str], name: str, what: str) -> httpx.Response:
    return http.post("/compare/vote", json={"comparison": name, "ranks": RANKS[what], "seconds": 4.5}, headers=headers)


def test_answers_are_passed_on_whole(database: Feedback) -> None:
    # Characters that end a line for Python's `splitlines`, and not in a stream of events.
    odd = "one\u0085two\u2028three"
    *pieces, _ = ask(client(database, Scripted("alpha", odd), POOR), signed_in(database, "ann"))
    assert f"{odd} " in ["".join(piece["text"] for piece in pieces if piece["side"] == side) for side in (0, 1)]


def test_models_are_named_after_the_vote_and_not_before(database: Feedback) -> None:
    http, ann = client(database, GOOD, POOR, BASE), signed_in(database, "ann")
    *pieces, end = ask(http, ann)
    assert all(word not in json.dumps([*pieces, end]) for word in ("alpha", "beta", "raw", "weights"))
    texts = ["".join(piece["text"] for piece in pieces if piece["side"] == side) for side in (0, 1)]
    assert sorted(texts) == ["a long good answer ", "poor "]
    left_is_good = texts[0] == "a long good answer "
    reply = vote(http, ann, end["comparison"], "left" if left_is_good else "right")
    assert reply.json() == {"models": ["alpha", "beta"] if left_is_good else ["beta", "alpha"]}
    prompt = database.prompt(end["comparison"])
    assert prompt
    assert prompt.messages == [{"role": "user", "content": "Why?"}]
    assert {row.model: (row.text, row.weights) for row in prompt.completions} == {
        "alpha": ("a long good answer ", "weights of alpha"),
        "beta": ("poor ", "weights of beta"),
    }
    (ranking,) = database.rankings()
    best = next(row.id for row in prompt.completions if row.model == "alpha")
    assert (ranking.annotator, ranking.ranks[str(best)], sorted(ranking.ranks.values()), ranking.seconds) == (
        "ann",
        1,
        [1, 2],
        4.5,
    )
    # A repeated request is the same vote; a different one would no longer be blind.
    assert vote(http, ann, end["comparison"], "left" if left_is_good else "right").status_code == 200
    assert vote(http, ann, end["comparison"], "tie").status_code == 409
    assert len(database.judgements()) == 1
    # The label page does not assign it to anybody.
    assert database.open_tasks("ben", people=5) == []


def test_sides_are_drawn_anew_and_every_vote_becomes_what_it_says(database: Feedback) -> None:
    http, ann = client(database, GOOD, POOR), signed_in(database, "ann")
    lefts = set()
    for what in ("left", "right", "tie", "bad") * 3:
        name = ask(http, ann)[-1]["comparison"]
        lefts.add(vote(http, ann, name, what).json()["models"][0])
        row = database.judgement(name, "ann")
        assert row
        ranks = [row.ranks.get(str(key)) for key in row.presented]
        assert ranks == (RANKS[what] or [None, None])
        assert row.all_bad == (what == "bad")
    assert lefts == {"alpha", "beta"}
    ballots, bad = all_ballots(database)
    assert ([vote.won for (vote,) in ballots], bad) == ([1.0, 0.0, 0.5] * 3, 3)
    figures = http.get("/compare/figures", headers=ann).json()
    assert (figures["votes"], figures["bad"]) == (9, 3)
    assert {row["model"] for row in figures["raw"]["models"]} == {"alpha", "beta"}
    assert figures["controlled"]["length"]
    database.exclude("ann")
    assert all_ballots(database) == ([], 0)
    assert http.get("/compare/figures", headers=ann).status_code == 403


def test_base_models_are_compared_where_there_are_not_two_others(database: Feedback) -> None:
    ann = signed_in(database, "ann")
    name = ask(client(database, GOOD, BASE, REWARD), ann)[-1]["comparison"]
    prompt = database.prompt(name)
    assert prompt
    assert {row.model for row in prompt.completions} == {"alpha", "raw"}
    alone = client(database, GOOD, REWARD).post("/compare/answers", json={"prompt": "Why?"}, headers=ann)
    assert (alone.status_code, alone.json()["detail"]) == (409, "comparing takes 2 models, and 1 is served")


def test_three_models_at_once_are_ranked_and_give_three_votes(database: Feedback) -> None:
    http, ann = client(database, GOOD, POOR, BASE, REWARD), signed_in(database, "ann")
    assert http.get("/compare/models", headers=ann).json() == {"most": 3}
    *pieces, end = ask(http, ann, sides=3)
    assert {piece["side"] for piece in pieces} == {0, 1, 2}
    body = {"comparison": end["comparison"], "ranks": [2, 1, 3]}
    names = http.post("/compare/vote", json=body, headers=ann).json()["models"]
    assert sorted(names) == ["alpha", "beta", "raw"]
    ((first, second, third),), _ = all_ballots(database)
    assert [one.models for one in (first, second, third)] == [tuple(names[:2]), (names[0], names[2]), tuple(names[1:])]
    assert [one.won for one in (first, second, third)] == [0, 1, 1]
    rated = http.get("/compare/figures", headers=ann).json()["raw"]["models"]
    assert [row["model"] for row in rated] == [names[1], names[0], names[2]]
    refused = http.post("/compare/answers", json={"prompt": "Why?", "sides": 4}, headers=ann)
    assert (refused.status_code, refused.json()["detail"]) == (409, "comparing takes 4 models, and 3 are served")


def test_a_policy_on_trial_is_compared_with_the_live_one_and_not_rated(database: Feedback) -> None:
    live, canary, trial = Scripted("policy", "old"), Scripted("canary", "new"), [False]
    app = comparing(database, live, canary, GOOD, on_trial=lambda: trial[0])
    http, headers = TestClient(app, base_url="http://localhost"), signed_in(database, "ann")
    assert http.get("/compare/models", headers=headers).json() == {"most": 2}
    shown = []
    for trial[0] in (False, True):
        for _ in range(12):
            *_, last = ask(http, headers)
            prompt = database.prompt(last["comparison"])
            assert prompt
            shown.append({side.model for side in prompt.completions})
            http.post("/compare/vote", json={"comparison": last["comparison"], "ranks": [1, 2]}, headers=headers)
    assert all("canary" not in pair for pair in shown[:12])
    assert {"policy", "canary"} in shown[12:]
    ballots, _ = all_ballots(database)
    assert {model for ballot in ballots for vote in ballot for model in vote.models} == {"policy", "alpha"}


def test_an_answer_that_fails_stores_nothing_and_names_no_model(database: Feedback) -> None:
    http, ann = client(database, GOOD, Scripted("beta", error="the prompt is too long")), signed_in(database, "ann")
    assert ask(http, ann)[-1] == {"error": "the prompt is too long"}
    assert database.prompts() == []


@pytest.mark.anyio
async def test_answers_take_places_in_the_queue_and_count_for_the_key(tmp_path: Path) -> None:
    ben = KeyRing(tmp_path).add("ben", ["label"], None, 12, by="test")
    settings = GatewaySettings(tmp_path, f"sqlite:///{tmp_path / 'feedback.db'}", "never")
    question: dict[str, Any] = {"json": {"prompt": "Why?"}}
    async with asking(settings, GOOD, ben, GOOD.name, {POOR.name: POOR}) as http:
        replies = [await http.post("/compare/answers", **question) for _ in range(2)]
    # Either model read 3 tokens and wrote 5.
    assert [reply.status_code for reply in replies] == [200, 429]
    first, _ = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert (first["key"], first["prompt_tokens"], first["completion_tokens"]) == ("ben", 6, 10)
    async with asking(replace(settings, max_concurrent=0), GOOD, ben, GOOD.name, {POOR.name: POOR}) as http:
        full = await http.post("/compare/answers", **question)
    assert full.text.strip() == 'data: {"error": "a model cannot answer just now; try again"}'


def test_votes_are_for_those_who_asked(database: Feedback) -> None:
    http, ann, ben = client(database, GOOD, POOR), signed_in(database, "ann"), signed_in(database, "ben")
    name = ask(http, ann)[-1]["comparison"]
    assert vote(http, ben, name, "left").status_code == 404
    assert vote(http, ann, f"{COMPARED}nothing", "left").status_code == 404
    for wrong in ({}, {"ranks": [1]}, {"ranks": [1, 2, 3]}, {"ranks": [0, 1]}, {"ranks": [1, 2], "vote": "left"}):
        assert http.post("/compare/vote", json={"comparison": name, **wrong}, headers=ann).status_code == 422
    assert http.post("/compare/answers", json={"prompt": "Why?"}).status_code == 401
    assert http.get("/compare/figures").status_code == 401
    assert database.judgements() == []


@pytest.mark.slow
def test_two_served_models_answer_side_by_side(server: Server) -> None:
    with open_feedback(server.feedback_url) as database, httpx.Client(timeout=120) as http:
        headers = signed_in(database, "ann")
        *pieces, end = ask(http, headers, server.url)
        assert {piece["side"] for piece in pieces} == {0, 1}
        prompt = database.prompt(end["comparison"])
        assert prompt
        assert len({row.model for row in prompt.completions} & set(server.folders)) == 2
        assert [row.text for row in sorted(prompt.completions, key=lambda row: row.index)] == [
            "".join(piece["text"] for piece in pieces if piece["side"] == side) for side in (0, 1)
        ]


def test_personal_data_of_a_comparison_is_replaced_before_it_is_stored(database: Feedback, tmp_path: Path) -> None:
    http, headers = client(database, Scripted("alpha", "Write to ann@example.org"), POOR), signed_in(database, "ann")
    body = {"prompt": "I am ann@example.org, who are you?", "sides": 2}
    reply = http.post("/compare/answers", json=body, headers=headers)
    # Who asked sees what was written.
    assert "ann@example.org" in reply.text
    (stored,) = database.prompts(prefix=COMPARED)
    assert [one["content"] for one in stored.messages] == ["I am <EMAIL_1>, who are you?"]
    assert sorted(one.text.strip() for one in stored.completions) == ["Write to <EMAIL_1>", "poor"]
    assert not any(b"ann@example.org" in path.read_bytes() for path in tmp_path.glob("feedback.db*"))


def test_a_comparison_without_personal_data_is_stored_as_it_was_written(database: Feedback) -> None:
    odd = "one\x1etwo\u2028three"
    http = client(database, Scripted("alpha", odd), Scripted("beta", odd))
    ask(http, signed_in(database, "ann"))
    (stored,) = database.prompts(prefix=COMPARED)
    assert [one.text.strip() for one in stored.completions] == [odd, odd]
