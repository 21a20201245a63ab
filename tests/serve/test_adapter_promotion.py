"""Other versions of an adapter, loaded while it is served: what answers, what is refused, and what is left in place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.cli.main import main
from serve.replica.lora import CONFIG, adapter_checksum
from tests.serve.conftest import ADMIN, Server, write_adapter

# Longer than a block of the prefix cache.
PROMPT = "The capital of Peru is Lima, and the capital of France is Paris, and that of Spain"


@pytest.fixture
def other(server: Server, tmp_path: Path) -> Iterator[Path]:
    """Another adapter; what was live is live again afterwards."""
    before = live(server)
    write_adapter(server.folders["base"], tmp_path / "other", seed=2)
    yield tmp_path / "other"
    assert post(server, {"model": "terse", "version": before}).status_code == 200


def post(server: Server, body: dict[str, Any], url: str | None = None) -> httpx.Response:
    return httpx.post(f"{url or server.url}/admin/promote", headers=ADMIN, json=body, timeout=60)


def live(server: Server) -> str:
    return str(httpx.get(f"{server.url}/admin/versions", headers=ADMIN).json()["terse"]["live"])


def answer(server: Server, folder: Path) -> list[int]:
    """Returns twelve tokens by PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(server.folders["base"])
    base = AutoModelForCausalLM.from_pretrained(server.folders["base"], dtype=torch.float32)
    ids = tokenizer.encode(PROMPT)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    written = PeftModel.from_pretrained(base, folder).generate(input_ids=torch.tensor([ids]), **options)
    return list(written[0, len(ids) :].tolist())


def served(client: openai.OpenAI) -> tuple[list[int], str]:
    body = {"return_token_ids": True, "ignore_eos": True}
    raw = client.completions.with_raw_response.create(
        model="terse", prompt=PROMPT, max_tokens=12, temperature=0, extra_body=body
    )
    return raw.parse().model_dump()["choices"][0]["token_ids"], raw.headers["x-triptych-weights"]


def test_another_adapter_answers_from_then_on_and_every_answer_is_of_one(
    client: openai.OpenAI, server: Server, other: Path
) -> None:
    first = server.folders["terse"]
    before, after = answer(server, first), answer(server, other)
    assert before != after
    # In the prefix cache are now blocks of the version that is replaced.
    assert served(client) == (before, adapter_checksum(first))
    ask = {"model": "terse", "prompt": PROMPT, "temperature": 0, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(**ask, max_tokens=900).choices[0].text
    stream = client.completions.create(**ask, max_tokens=900, stream=True)
    begun = next(stream).choices[0].text
    # By the gateway that asks another one to do it.
    done = post(server, {"model": "terse", "adapter": str(other)}, server.other_url)
    assert done.status_code == 200, done.text
    assert done.json()["mixed_answers"] == 0
    assert (done.json()["from"], done.json()["to"]) == (adapter_checksum(first), adapter_checksum(other))
    assert served(client) == (after, adapter_checksum(other))
    assert begun + "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == text
    assert live(server) == adapter_checksum(other)
    back = httpx.post(f"{server.url}/admin/rollback", headers=ADMIN, json={"model": "terse"}, timeout=60)
    assert back.status_code == 200
    assert served(client) == (before, adapter_checksum(first))


def test_an_adapter_that_does_not_fit_leaves_the_served_one(
    client: openai.OpenAI, server: Server, tmp_path: Path
) -> None:
    before = served(client)
    write_adapter(server.folders["base"], tmp_path / "wide", rank=64)
    wide = post(server, {"model": "terse", "adapter": str(tmp_path / "wide")})
    assert wide.status_code == 500
    assert "terse still has its old weights: " in wide.json()["error"]["message"]
    assert served(client) == before
    assert live(server) == before[1]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "terse", "adapter": "/nowhere/at/all"}, 409, CONFIG),
        ({"model": "terse", "adapter": "relative"}, 400, "absolute path"),
        ({"model": "terse", "adapter": 3}, 400, "absolute path"),
        ({"model": "policy", "adapter": "/nowhere"}, 400, "policy is no adapter"),
        ({"model": "terse", "adapter": "/nowhere", "version": "ab"}, 400, "not both"),
        ({"model": "terse", "version": "zz"}, 409, "names 0 versions of terse"),
    ],
)
def test_what_cannot_be_promoted_is_refused_with_the_reason(
    server: Server, body: dict[str, Any], status: int, words: str
) -> None:
    before = live(server)
    refused = post(server, body)
    assert (refused.status_code, live(server)) == (status, before)
    assert words in refused.json()["error"]["message"]


def test_the_command_takes_a_version_or_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["promote", str(tmp_path), "terse", "--version", "ab", "--adapter", "there"])
    assert ended.value.code == 2
    assert "give --version or --adapter, and not both" in capsys.readouterr().err
