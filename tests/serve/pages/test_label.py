"""The label page's server: the tasks that it assigns and the judgements that it stores."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from cluster.feedback import COMPARED, GOLD, Completion, Feedback, FeedbackPrompt, Ranking, open_feedback
from cluster.keys import KeyRing
from cluster.run.folder import RunFolder
from serve.http.limits import MIN_BODY_BYTES
from serve.pages.label import label_app, label_router
from serve.pages.label_tasks import REPEAT_AFTER
from serve.pages.render import page
from tests.helpers import free_port
from tests.serve.support.labeling import fill, label_server

SUBMISSIONS = 1_000
AT_ONCE = 64


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Feedback]:
    with open_feedback(sqlite_url) as opened:
        fill(opened, 3, ["a", "b", "c", "d"])
        yield opened


@pytest.fixture
def client(database: Feedback) -> TestClient:
    app = FastAPI()
    app.include_router(label_router(database, people=1))
    return TestClient(app)


def signed_in(database: Feedback, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {database.add_annotator(name)}"}


def test_nothing_is_shown_without_a_token(client: TestClient, database: Feedback) -> None:
    for headers in ({}, {"Authorization": "Bearer guess"}, {"Authorization": "Basic guess"}):
        assert client.get("/label/next", headers=headers).status_code == 401
        assert client.get("/label/task", params={"prompt": "p000"}, headers=headers).status_code == 401
        assert client.post("/label/judgement", json={}, headers=headers).status_code == 401
    assert client.get("/label").text == page("label.html", frozenset({"label_page"})).body.decode()


def test_people_get_different_prompts_in_orders_of_their_own_and_never_learn_the_model(
    client: TestClient, database: Feedback
) -> None:
    people = [signed_in(database, name) for name in ("ann", "ben", "cat", "dan")]
    replies = [client.get("/label/next", headers=headers) for headers in people]
    tasks = [reply.json()["task"] for reply in replies]
    assert [task and task["prompt"] for task in tasks] == ["p002", "p001", "p000", None]
    assert replies[0].json()["progress"] == {"done": 0, "left": 3, "seconds": None}
    assert all("secret" not in reply.text and '"index"' not in reply.text for reply in replies)
    assert client.get("/label/next", headers=people[0]).json()["task"] == tasks[0]
    orders = set()
    for headers in people:
        task = client.get("/label/task", params={"prompt": "p000"}, headers=headers).json()
        assert {answer["text"] for answer in task["answers"]} == {"a", "b", "c", "d"}
        orders.add(tuple(answer["text"] for answer in task["answers"]))
    assert len(orders) > 1


def test_equal_texts_are_shown_once(client: TestClient, database: Feedback) -> None:
    database.add_prompts([FeedbackPrompt(id="twice", messages=[{"role": "user", "content": "Q"}])])
    database.add_completions(
        [
            Completion(prompt_id="twice", index=index, text=text, token_ids=[], model="m", weights="abc")
            for index, text in enumerate(["a", "b", "a", "b"])
        ]
    )
    headers = signed_in(database, "ann")
    task = client.get("/label/next", headers=headers).json()["task"]
    assert (task["prompt"], sorted(answer["text"] for answer in task["answers"])) == ("twice", ["a", "b"])
    judgement = {"prompt": "twice", "answers": [answer["id"] for answer in task["answers"]], "ranks": [1, 2]}
    assert client.post("/label/judgement", json=judgement, headers=headers).status_code == 204
    assert sorted(database.judgements()[0].ranks.values()) == [1, 2]


def test_a_judgement_is_stored_as_given_once_and_can_be_taken_back(client: TestClient, database: Feedback) -> None:
    headers = signed_in(database, "ann")
    task = client.get("/label/next", headers=headers).json()["task"]
    answers = [answer["id"] for answer in task["answers"]]
    judgement = {
        "prompt": task["prompt"],
        "answers": answers,
        "ranks": [4, 2, 2, 3],
        "marks": {str(answers[0]): {"honest": False}},
        "better": "e",
        "seconds": 7.5,
    }
    for _ in range(2):
        assert client.post("/label/judgement", json=judgement, headers=headers).status_code == 204
    (row,) = database.judgements()
    assert row.ranks == dict(zip(map(str, answers), [3, 1, 1, 2], strict=True))
    assert (row.presented, row.annotator, row.seconds, row.better) == (answers, "ann", 7.5, "e")
    assert row.marks == {str(answers[0]): {"honest": False}}
    after = client.get("/label/next", headers=headers).json()
    assert after["task"]["prompt"] != task["prompt"]
    assert after["progress"] == {"done": 1, "left": 2, "seconds": 7.5}
    back = client.get("/label/task", params={"prompt": task["prompt"]}, headers=headers).json()
    assert (back["answers"], back["judgement"]["ranks"]) == (task["answers"], row.ranks)
    skip = {"prompt": task["prompt"], "answers": answers, "skipped": "unsure"}
    assert client.post("/label/judgement", json=skip, headers=headers).status_code == 204
    (row,) = database.judgements()
    assert (row.skipped, row.ranks) == ("unsure", {})


def test_the_last_judgements_can_be_opened_again(client: TestClient, database: Feedback) -> None:
    headers = signed_in(database, "ann")
    assert client.get("/label/recent", headers=headers).json() == []
    for said in ({"ranks": [1, 2, 2, 3]}, {"all_bad": True}, {"skipped": "unsure"}):
        task = client.get("/label/next", headers=headers).json()["task"]
        answers = [answer["id"] for answer in task["answers"]]
        client.post("/label/judgement", json={"prompt": task["prompt"], "answers": answers} | said, headers=headers)
    recent = client.get("/label/recent", headers=headers).json()
    assert [one["said"] for one in recent] == ["skipped", "all bad", "1 2 2 3"]
    assert all(one["asked"] == f"Q {one['prompt']}" for one in recent)
    assert client.get("/label/recent", headers=signed_in(database, "ben")).json() == []
    # Comparisons of the compare page are not tasks of this page.
    database.add_prompts([FeedbackPrompt(id=f"{COMPARED}1", messages=[])])
    assert client.get("/label/task", params={"prompt": f"{COMPARED}1"}, headers=headers).status_code == 404


def test_a_page_that_is_behind_does_not_overwrite_and_a_repeated_save_changes_nothing(
    client: TestClient, database: Feedback
) -> None:
    headers = signed_in(database, "ann")
    task = client.get("/label/next", headers=headers).json()["task"]
    said = {"prompt": task["prompt"], "answers": [answer["id"] for answer in task["answers"]], "seen": None}

    def save(**more: object) -> int:
        return client.post("/label/judgement", json=said | more, headers=headers).status_code

    # No reply may have come: it is sent again.
    assert [save(ranks=[1, 2, 3, 4]), save(ranks=[1, 2, 3, 4])] == [204, 204]
    assert save(ranks=[4, 3, 2, 1]) == 409
    (row,) = database.judgements()
    assert list(row.ranks.values()) == [1, 2, 3, 4]
    shown = client.get("/label/task", params={"prompt": task["prompt"]}, headers=headers).json()["judgement"]
    assert save(ranks=[4, 3, 2, 1], seen=shown["created"]) == 204
    assert save(all_bad=True, seen=shown["created"]) == 409
    # The reply to a save was lost, and another page judged since: the repeated request is known by its id.
    shown = client.get("/label/task", params={"prompt": task["prompt"]}, headers=headers).json()["judgement"]
    assert save(ranks=[2, 1, 3, 4], seen=shown["created"], save="first-save") == 204
    assert save(ranks=[2, 1, 3, 4], seen=shown["created"], save="first-save") == 204
    assert save(ranks=[1, 2, 4, 3], seen=shown["created"], save="other-save") == 409
    assert database.judgements()[0].save_id == "first-save"
    # A request without `seen` overwrites, as that of a person who chose to.
    del said["seen"]
    assert save(all_bad=True) == 204
    assert database.judgements()[0].all_bad


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": [1, 2]},
        {"ranks": [0, 1, 2, 3]},
        {"ranks": [5, 5, 5, 5]},
        {"ranks": [1, 2, 3], "answers": [1, 2, 3]},
        {"ranks": [1, 2, 3, 4], "again": True},
        {"ranks": [1, 2, 3, 4], "prompt": "p999"},
        {},
        {"ranks": [1, 1, 1, 1], "all_bad": True},
        {"all_bad": True, "answers": [1, 2, 3, 99]},
        {"all_bad": True, "marks": {"1": {"kind": True}}},
        {"all_bad": True, "seconds": -1},
        {"all_bad": True, "annotator": "ben"},
    ],
)
def test_impossible_judgements_are_refused(client: TestClient, database: Feedback, wrong: dict[str, object]) -> None:
    headers = signed_in(database, "ann")
    reply = client.post("/label/judgement", json={"prompt": "p000", "answers": [1, 2, 3, 4], **wrong}, headers=headers)
    assert reply.status_code == 422
    assert database.judgements() == []


def test_a_vote_of_the_compare_page_cannot_be_changed_by_the_label_page(client: TestClient, database: Feedback) -> None:
    headers, name = signed_in(database, "ann"), f"{COMPARED}1"
    database.add_prompts([FeedbackPrompt(id=name, messages=[], details={"compare": "ann"})])
    sides = [
        Completion(prompt_id=name, index=side, text=model, token_ids=[], model=model, weights="0")
        for side, model in enumerate(("sft", "policy"))
    ]
    keys = database.add_completions(sides)
    database.add_ranking(Ranking(prompt_id=name, annotator="ann", ranks=dict(zip(map(str, keys), (1, 2), strict=True))))
    reply = client.post("/label/judgement", json={"prompt": name, "answers": keys, "ranks": [2, 1]}, headers=headers)
    assert (reply.status_code, "there is no prompt" in reply.text) == (422, True)
    (vote,) = database.judgements()
    assert list(vote.ranks.values()) == [1, 2]


@pytest.mark.anyio
async def test_the_label_server_has_the_middleware_of_the_gateway(tmp_path: Path, database: Feedback) -> None:
    key = KeyRing(tmp_path).add("ben", ["label"], 2, None, by="test")
    app = label_app(RunFolder(tmp_path), database, "0.0.0.0", people=1)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://people.example") as http:
        page = await http.get("/label")
        assert (page.status_code, page.headers["x-frame-options"]) == (200, "DENY")
        for body in (b" " * (MIN_BODY_BYTES + 1), pieces(MIN_BODY_BYTES + 1)):
            large = await http.post("/label/judgement", content=body, headers={"Content-Type": "application/json"})
            assert (large.status_code, large.json()["error"]["code"]) == (413, 413)
        signed = {"Authorization": f"Bearer {key}"}
        assert [(await http.get("/label/next", headers=signed)).status_code for _ in range(3)] == [200, 200, 429]
    rows = (tmp_path / "label-access.jsonl").read_text().splitlines()
    assert [json.loads(row)["status"] for row in rows] == [200, 413, 413, 200, 200, 429]
    # Without keys on this machine alone, a page from elsewhere is not let in.
    (tmp_path / "other").mkdir()
    app = label_app(RunFolder(tmp_path / "other"), database, "127.0.0.1", people=1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://evil.example") as http:
        assert (await http.get("/label")).status_code == 403


def test_guests_may_judge_while_there_is_no_key_and_no_token(database: Feedback) -> None:
    opened = [True]
    app = FastAPI()
    app.include_router(label_router(database, is_open=lambda: opened[0]))
    http, guest = TestClient(app), {"Authorization": "Bearer guest"}
    assert http.get("/label/guest").json() == {"guest": True}
    assert http.get("/label/next", headers=guest).json()["annotator"] == "guest"
    assert http.get("/label/next").status_code == 401
    opened[0] = False
    assert http.get("/label/next", headers=guest).status_code == 401
    opened[0] = True
    database.add_annotator("ann")
    assert http.get("/label/guest").json() == {"guest": False}
    assert http.get("/label/next", headers=guest).status_code == 401


async def pieces(count: int) -> AsyncIterator[bytes]:
    yield b" " * count


def test_agreement_is_shown_with_a_token_and_others_figures_to_admins_alone(
    client: TestClient, database: Feedback
) -> None:
    assert client.get("/label/agreement").status_code == 401
    headers = signed_in(database, "ann")
    empty = client.get("/label/agreement", headers=headers).json()
    assert (empty["counts"]["rankings"], empty["agreement"][0]["pairwise"]) == (0, None)
    for name, ranks in (("ann", [1, 2, 3, 4]), ("ben", [1, 2, 4, 3]), ("code (noise 0)", [4, 3, 2, 1])):
        keyed = {str(key): rank for key, rank in zip((1, 2, 3, 4), ranks, strict=True)}
        database.add_ranking(Ranking(prompt_id="p000", annotator=name, ranks=keyed, seconds=3.0))
    own = client.get("/label/agreement", headers=headers).json()
    assert [row["annotator"] for row in own["agreement"]] == [None, "ann"]
    assert own["reliability"].keys() == {"ann"}
    assert "ben" not in json.dumps(own)
    app = FastAPI()
    app.include_router(label_router(database, is_admin=lambda token: headers["Authorization"].endswith(token)))
    everyone, ann, ben = TestClient(app).get("/label/agreement", headers=headers).json()["agreement"]
    assert [row["annotator"] for row in (everyone, ann, ben)] == [None, "ann", "ben"]
    assert everyone["pairwise"]["value"] == pytest.approx(5 / 6)
    assert everyone["tau"]["value"] == pytest.approx(2 / 3)
    assert ann["seconds"] == [3.0, 3.0, 3.0]
    # The prompts on which people differ, without names.
    assert own["disputed"] == [
        {"prompt": "p000", "asked": "Q p000", "alike": pytest.approx(5 / 6), "people": 2},
    ]
    assert client.get("/label/quality").text == page("quality.html", frozenset({"label_page"})).body.decode()


@pytest.mark.slow
def test_gold_items_and_repeats_are_mixed_in_and_look_like_other_tasks(database: Feedback, tmp_path: Path) -> None:
    fill(database, 160, ["a", "b", "c", "d"])
    prompts = {prompt.id: [row.id for row in prompt.completions] for prompt in database.prompts()}
    gold = [name for name in sorted(prompts) if name < "p040"]
    expected = [
        Ranking(prompt_id=name, annotator=GOLD, ranks=dict(zip(map(str, prompts[name]), (1, 2, 3, 4), strict=True)))
        for name in gold
    ]
    database.add_rankings(expected)
    app = FastAPI()
    app.include_router(label_router(database, people=1))
    client, headers = TestClient(app), signed_in(database, "ann")
    seen: list[str] = []
    for turn in range(100):
        reply = client.get("/label/next", headers=headers).json()
        task = reply["task"]
        assert reply["progress"]["done"] == turn
        # Neither a repeated request nor a restart skips a check.
        assert client.get("/label/next", headers=headers).json()["task"] == task
        assert task["judgement"] is None
        assert task["again"] == (task["prompt"] in seen)
        answers = [answer["id"] for answer in task["answers"]]
        assert sorted(answers) == prompts[task["prompt"]]
        if task["again"]:
            assert seen.index(task["prompt"]) < len(seen) - REPEAT_AFTER
            first = database.judgement(task["prompt"], "ann")
            assert first
            assert first.presented != answers
        # Always by id, but on every second prompt of the first pass with the first two the wrong way round.
        order = sorted(answers)
        if not task["again"] and len(seen) % 2:
            order[:2] = reversed(order[:2])
        body = {"prompt": task["prompt"], "answers": answers, "ranks": [order.index(key) + 1 for key in answers]}
        sent = client.post("/label/judgement", json=body | {"again": task["again"]}, headers=headers)
        assert sent.status_code == 204
        seen.append(task["prompt"])
    on_gold, twice = sum(name in gold for name in set(seen)), len(seen) - len(set(seen))
    assert 3 <= on_gold <= 20
    assert 1 <= twice <= 12
    assert len(database.judgements("ann")) == 100 - twice
    assert len(database.repeats("ann")) == twice
    reply = client.get("/label/agreement", headers=headers).json()
    assert (reply["counts"]["rankings"], [row["annotator"] for row in reply["agreement"]]) == (
        100 - twice,
        [None, "ann"],
    )
    found = reply["reliability"]["ann"]
    assert (found["gold_items"], found["repeats"]) == (on_gold, twice)
    assert 5 / 6 < found["gold"]["value"] < 1
    assert GOLD not in reply["reliability"]


def test_an_excluded_annotator_cannot_judge_and_their_prompts_open_again(
    client: TestClient, database: Feedback
) -> None:
    headers, others = signed_in(database, "ann"), signed_in(database, "ben")
    task = client.get("/label/next", headers=headers).json()["task"]
    body = {"prompt": task["prompt"], "answers": [answer["id"] for answer in task["answers"]], "ranks": [1, 2, 3, 4]}
    assert client.post("/label/judgement", json=body, headers=headers).status_code == 204
    assert task["prompt"] not in [name for name, _ in database.open_tasks("ben", people=1)]
    database.exclude("ann")
    reply = client.get("/label/next", headers=headers)
    assert (reply.status_code, "ann is excluded" in reply.text) == (403, True)
    assert (task["prompt"], 0) in database.open_tasks("ben", people=1)
    assert (database.rankings(), len(database.judgements())) == ([], 1)
    found = client.get("/label/agreement", headers=others).json()
    assert (found["excluded"], found["counts"]["rankings"]) == ([], 0)
    database.exclude("ann", excluded=False)
    assert len(database.rankings()) == 1


@pytest.mark.slow
def test_every_acknowledged_judgement_survives_a_kill_and_none_is_there_twice(
    tmp_path: Path, feedback_url: str
) -> None:
    (tmp_path / "feedback.url").write_text(f"{feedback_url}\n")
    with open_feedback(feedback_url) as database:
        fill(database, SUBMISSIONS // 4, ["a", "b"])
        tokens = {name: database.add_annotator(name) for name in ("ann", "ben", "cat", "dan")}
        answers = {prompt.id: [row.id for row in prompt.completions] for prompt in database.prompts()}
    todo = [(name, prompt) for prompt in answers for name in tokens]
    port = free_port()

    async def send(url: str, jobs: list[tuple[str, str]], enough: int) -> set[tuple[str, str]]:
        stored, waiting = set(), iter(jobs)

        async def one_person(client: httpx.AsyncClient) -> None:
            for name, prompt in waiting:
                body = {"prompt": prompt, "answers": answers[prompt], "ranks": [1, 2]}
                headers = {"Authorization": f"Bearer {tokens[name]}"}
                try:
                    reply = await client.post(f"{url}/label/judgement", json=body, headers=headers)
                except httpx.TransportError:
                    assert enough < len(jobs), "the server dropped a request"
                    return
                assert reply.status_code == 204, reply.text
                stored.add((name, prompt))

        async def killer(people: asyncio.Future[object]) -> None:
            while len(stored) < enough and not people.done():
                await asyncio.sleep(0.005)

        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            people = asyncio.gather(*(one_person(client) for _ in range(AT_ONCE)))
            await killer(people)
            if enough < len(jobs):
                server.__exit__(None, None, None)
            await people
        return stored

    def there() -> list[tuple[str, str]]:
        with open_feedback(feedback_url) as database:
            return [(row.annotator, row.prompt_id) for row in database.rankings()]

    server = label_server(tmp_path, port)
    acknowledged = asyncio.run(send(server.__enter__(), todo, SUBMISSIONS // 2))
    assert SUBMISSIONS // 2 <= len(acknowledged) < SUBMISSIONS
    assert acknowledged <= set(there())
    assert len(there()) == len(set(there()))
    # A request without a response is repeated, and so are some with one.
    again = [job for job in todo if job not in acknowledged] + sorted(acknowledged)[:50]
    with label_server(tmp_path, port) as url:
        asyncio.run(send(url, again, len(again)))
    assert sorted(there()) == sorted(todo)
