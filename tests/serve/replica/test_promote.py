"""Promotions under load: clients notice only the version that the answers name."""

import json
import threading
from dataclasses import dataclass, field
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.keys import KeyRing, new_key
from cluster.run.folder import RunFolder
from cluster.run.server_client import write_server
from cluster.run.versions import Versions
from pipelines.rlhf.setup import promote_unfinished
from serve.gateway import GatewaySettings
from serve.transport.messages import PromotionResult
from tests.cluster.run.test_versions import make
from tests.helpers import free_port, wait_until
from tests.serve.conftest import ADMIN, CONTEXT, TOKEN, Server, finish_model
from tests.serve.support.local import Parrot, asking, prompt
from tests.tiny import write_tiny_model

MODEL = "policy"
# Stands for a character whose last bytes are missing: vLLM withholds it.
UNFINISHED = "\ufffd"
ASK = {"model": MODEL, "prompt": "The capital of", "temperature": 0, "max_tokens": 24, "ignore_eos": True}


@dataclass
class Answers:
    """The answers that clients got: the version in the header, the text, and the comments in the stream.

    `begun` is set as soon as there is a header.
    """

    got: list[tuple[str, str, list[str]]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def whole(self) -> list[tuple[str, str]]:
        """Returns versions and texts of the answers that a single version generated."""
        return [(weights, text) for weights, text, comments in self.got if not comments]


def stream(url: str, answers: Answers, **options: object) -> None:
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=ASK | {"stream": True} | options, timeout=60) as reply:
            assert reply.status_code == 200, reply.read()
            answers.begun.set()
            # Not `iter_lines`: it also ends a line at U+0085 and its like, which JSON leaves as they are.
            lines = [line for line in reply.read().decode().split("\n") if line]
        assert "data: [DONE]" in lines[-2:]
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(choice["text"] for event in events for choice in event["choices"])
        comments = [line for line in lines if line.startswith(":")]
        answers.got.append((reply.headers["x-triptych-weights"], text.rstrip(UNFINISHED), comments))
    except (httpx.HTTPError, AssertionError, KeyError) as error:
        answers.failed.append(repr(error))


def greedy(folder: Path) -> str:
    """Returns the greedy answer of transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.encode(ASK["prompt"], add_special_tokens=False)
    # No token ends it.
    greedily = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    out = model.generate(torch.tensor([ids]), generation_config=greedily)[0, len(ids) :]
    return tokenizer.decode(out, skip_special_tokens=True).rstrip(UNFINISHED)


@pytest.mark.slow
def test_weights_change_under_load_and_back(server: Server) -> None:
    run = server.run
    expected = {run.require(MODEL).weights: greedy(run.path(MODEL))}
    (old,) = expected
    finish_model(run, MODEL, seed=3, end_id=4)
    new = run.require(MODEL).weights
    expected[new] = greedy(run.path(MODEL))
    assert expected[old] != expected[new]

    answers, long, stop = Answers(), Answers(), threading.Event()

    def ask_until_stopped() -> None:
        while not stop.is_set():
            stream(server.url, answers)

    clients = [threading.Thread(target=ask_until_stopped) for _ in range(3)]
    clients += [threading.Thread(target=stream, args=(server.url, long), kwargs={"max_tokens": 1500})]
    for client in clients:
        client.start()
    assert long.begun.wait(60)
    for action in ("promote", "rollback", "promote", "rollback"):
        done = httpx.post(f"{server.url}/admin/{action}", headers=ADMIN, json={"model": MODEL}, timeout=60).json()
        assert done["seconds"] < 1
        seen = len(answers.whole())
        # Up to one answer of each client may have been generated before.
        wait_until(lambda seen=seen: len(answers.whole()) > seen + 3, 60, f"an answer after a {action}")
    stop.set()
    for client in clients:
        client.join()

    assert answers.failed == long.failed == []
    assert set(answers.whole()) == set(expected.items())
    ((began, _, comments),) = long.got
    assert comments == [": X-Triptych-Weights: " + ", ".join([old, new, old, new, old][: comments[0].count(",") + 1])]
    assert began == old

    after = httpx.post(f"{server.url}/v1/completions", json=ASK, timeout=60)
    assert after.headers["x-triptych-weights"] == old
    assert after.json()["choices"][0]["text"].rstrip(UNFINISHED) == expected[old]
    pinned = [httpx.post(f"{server.url}/v1/completions", json=ASK | {"model": f"latest@{w[:8]}"}) for w in (old, new)]
    assert [reply.status_code for reply in pinned] == [200, 404]
    assert pinned[0].headers["x-triptych-model"] == pinned[0].json()["model"] == MODEL
    # Other tests compare the server with the run.
    finish_model(run, MODEL, seed=2, end_id=4)
    assert run.require(MODEL).weights == old


@pytest.mark.slow
def test_the_only_answer_goes_on_when_weights_change_under_it(server: Server) -> None:
    run, long, before = server.run, Answers(), server.run.require(MODEL).weights
    finish_model(run, MODEL, seed=3, end_id=4)
    client = threading.Thread(target=stream, args=(server.url, long), kwargs={"max_tokens": 800})
    client.start()
    assert long.begun.wait(60)
    done = httpx.post(f"{server.url}/admin/promote", headers=ADMIN, json={"model": MODEL}, timeout=60).json()
    client.join()
    finish_model(run, MODEL, seed=2, end_id=4)
    httpx.post(f"{server.url}/admin/rollback", headers=ADMIN, json={"model": MODEL}, timeout=60).raise_for_status()
    assert done["mixed_answers"] == 1
    assert (long.failed, [weights for weights, _, _ in long.got]) == ([], [before])


@pytest.mark.slow
def test_training_promotes_by_itself(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    run, before = server.run, server.run.require(MODEL).weights
    where = write_server(run, server.url, TOKEN)

    def weights() -> str:
        return httpx.post(f"{server.url}/v1/completions", json=ASK, timeout=60).headers["x-triptych-weights"]

    try:
        promote_unfinished(run, 4, lambda folder: write_tiny_model(folder, 5, 4, context=CONTEXT))
        assert weights() != before
        assert weights() == Versions(run, MODEL).live().weights
        # Weights of another shape: the server keeps the old ones, and the training goes on.
        promote_unfinished(run, 9, lambda folder: write_tiny_model(folder, 6, 4, context=CONTEXT // 2))
        assert "the policy of step 9 was not promoted: config.json changed too" in caplog.text
        assert len(list(Versions(run, MODEL).folder.glob("*/"))) == len(Versions(run, MODEL).kept())
        httpx.post(f"{server.url}/admin/promote", headers=ADMIN, json={"model": MODEL, "version": before}, timeout=60)
        assert weights() == before
    finally:
        where.unlink()


@pytest.mark.parametrize("left", ["nothing", "an address", "an address that something else has taken"])
def test_without_a_server_the_next_one_starts_with_what_was_promoted(served: RunFolder, left: str) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        if left != "nothing":
            taken = left != "an address"
            write_server(served, f"http://127.0.0.1:{other.server_port if taken else free_port()}", "token")
        thread.start()
        promote_unfinished(served, 4, lambda folder: (folder / "model.safetensors").write_text("newer") and None)
        other.shutdown()
        thread.join()
    live = Versions(served, "policy").start()
    assert (live.folder / "model.safetensors").read_text() == "newer"


class Changeable(Parrot):
    """A model whose promotion succeeds, or fails with an error."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__()
        self.error, self.asked = error, list[str]()

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        assert (folder / "model.safetensors").exists()
        self.asked.append(weights)
        return PromotionResult(0.25, 0 if self.error else 2, self.error)


@pytest.fixture
def served(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    make(run, "aaa")
    Versions(run, "policy").start()
    return run


@pytest.mark.anyio
async def test_changes_by_admins_are_recorded_and_shown(served: RunFolder) -> None:
    model, token = Changeable(), KeyRing(served.root).add("ann", ["admin", "chat"], None, None, by="test")
    settings = GatewaySettings(served.root, weights={"policy": "aaa"})
    make(served, "bbb")
    async with asking(settings, model, token, name="policy") as client:
        done = await client.post("/admin/promote", json={"model": "policy"})
        assert done.json() == {"model": "policy", "from": "aaa", "to": "bbb", "seconds": 0.25, "mixed_answers": 2}
        assert (await client.get("/admin/versions")).json() == {"policy": {"live": "bbb", "kept": ["aaa", "bbb"]}}
        reply = await client.post("/v1/completions", json=prompt("a") | {"model": "policy"})
        assert reply.headers["x-triptych-weights"] == "bbb"
        assert 'triptych_model_info{model="policy",weights="bbb"} 1.0' in (await client.get("/metrics")).text
        assert (await client.post("/admin/rollback", json={"model": "policy"})).json()["to"] == "aaa"
        assert (await client.post("/admin/promote", json={"model": "policy", "version": "b"})).json()["to"] == "bbb"
        for path, body, status in (
            ("/admin/promote", {"model": "policy", "version": "../x"}, 409),
            ("/admin/promote", {"model": "policy", "version": 7}, 400),
            ("/admin/promote", {"model": "../policy"}, 404),
            ("/admin/rollback", {}, 404),
        ):
            assert (await client.post(path, json=body)).status_code == status, body
        make(served, "ccc", config='{"hidden_size": 8}')
        refused = await client.post("/admin/promote", json={"model": "policy"})
        assert (refused.status_code, "config.json changed too" in refused.text) == (409, True)
    assert model.asked == ["bbb", "aaa", "bbb"]
    rows = [json.loads(line) for line in (served.root / "audit.jsonl").read_text().splitlines()][1:]
    assert [(row["by"], row["action"], row["to"]) for row in rows] == [
        ("ann", "promote", "bbb"),
        ("ann", "rollback", "aaa"),
        ("ann", "promote", "bbb"),
    ]


@pytest.mark.anyio
async def test_weights_that_did_not_arrive_are_not_live(served: RunFolder) -> None:
    make(served, "bbb")
    owner, token = new_key("owner", ("admin",))
    async with asking(
        GatewaySettings(served.root, owner=owner), Changeable("mlp differed"), token, name="policy"
    ) as client:
        done = await client.post("/admin/promote", json={"model": "policy"})
    assert (done.status_code, done.json()["error"]["type"]) == (500, "PromotionError")
    assert Versions(served, "policy").live().weights == "aaa"
    assert json.loads((served.root / "audit.jsonl").read_text())["error"] == "mlp differed"


@pytest.mark.anyio
async def test_the_owner_of_the_server_is_authorized(served: RunFolder) -> None:
    owner, token = new_key("owner", ("admin",))
    KeyRing(served.root).add("ann", ["chat"], None, None, by="test")
    async with asking(GatewaySettings(served.root, owner=owner), Changeable(), token, name="policy") as client:
        assert (await client.get("/admin/versions")).status_code == 200
        wrong = {"Authorization": f"Bearer {token}x"}
        assert (await client.get("/admin/versions", headers=wrong)).status_code == 401
