"""Log-probabilities and answers of the engines against transformers, and a whole evaluation of a model folder."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.orchestrator.fleet import Fleet
from cluster.runtime.plan import Allocation
from pipelines.cli.main import main
from pipelines.evaluate.tasks.built_in.cloze import cloze
from pipelines.evaluate.tasks.built_in.texts import bits_per_byte
from pipelines.evaluate.tasks.built_in.twins import sycophancy, truth
from pipelines.evaluate.tasks.items import EvaluationTask, Item
from pipelines.evaluate.tasks.measure import run_task
from pipelines.evaluate.tasks.models import EngineModel, Request
from tests.tiny import write_tiny_model

CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(path, seed=5, end_id=4, context=CONTEXT)
    return path


@pytest.fixture(scope="module")
def engines(folder: Path, ray_session: None) -> Iterator[Fleet]:
    with Fleet(folder, 1, Allocation(cpus=1, gpus=0, threads=1), CONTEXT, seed=1, deadline=300) as fleet:
        yield fleet


class Reference:
    """Transformers' own log-probabilities, without any code of the project."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def nats(self, before: list[int], ids: list[int]) -> float:
        with torch.inference_mode():
            table = self.model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
        return sum(table[len(before) + n - 1, token].item() for n, token in enumerate(ids))

    def encoded(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def bare(self, prompt: str, continuation: str) -> float:
        whole, before = self.encoded(prompt + continuation), self.encoded(prompt)
        return self.nats([0, *before], whole[len(before) :])

    def chat(self, prompt: str, continuation: str) -> float:
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.nats(self.encoded(text), self.encoded(continuation.strip()))


@pytest.mark.slow
def test_log_likelihoods_are_those_of_transformers(folder: Path, engines: Fleet):
    reference, model = Reference(folder), EngineModel.of(engines, folder, CONTEXT, 300, chats=True)
    items = [item for make in (cloze, sycophancy, truth) for item in make().items[:6]]
    requests = [
        Request(item.prompt, option, chat) for item in items for option in item.options for chat in (False, True)
    ]
    expected = [
        (reference.chat if request.chat else reference.bare)(request.prompt, request.continuation)
        for request in requests
    ]
    assert model.log_likelihoods(requests) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_accuracy_is_that_of_log_probabilities_computed_by_transformers(folder: Path, engines: Fleet):
    reference, task = Reference(folder), cloze()
    right = [
        max(range(4), key=lambda n, item=item: reference.bare(item.prompt, item.options[n])) in item.right
        for item in task.items
    ]
    found = run_task(task, EngineModel.of(engines, folder, CONTEXT, 300, chats=False))
    assert [bool(result.value) for result in found.results] == right


@pytest.mark.slow
def test_every_token_of_a_text_longer_than_the_context_is_scored_once(folder: Path, engines: Fleet):
    reference = Reference(folder)
    text = next(item.options[0] for item in bits_per_byte().items)
    ids = [0, *reference.encoded(text)]
    assert len(ids) > 2 * CONTEXT
    pieces = [ids[start : start + CONTEXT] for start in range(0, len(ids) - 1, CONTEXT - 1)]
    nats = sum(reference.nats(piece[:1], piece[1:]) for piece in pieces)
    task = EvaluationTask("text", "Text", "bits", [Item("0", "", (text,))])
    (result,) = run_task(task, EngineModel.of(engines, folder, CONTEXT, 300, chats=False)).results
    assert result.value == pytest.approx(-nats / math.log(2), abs=1e-2)
    assert result.size == len(text.encode())


@pytest.mark.slow
def test_items_that_do_not_fit_the_context_are_left_out_and_named(folder: Path, engines: Fleet):
    model = EngineModel.of(engines, folder, CONTEXT, 300, chats=True)
    task = EvaluationTask(
        "mixed", "Mixed", "accuracy", [Item("short", "a", (" b", " c")), Item("long", "word " * 99, (" b", " c"))]
    )
    found = run_task(task, model)
    assert ([result.id for result in found.results], found.too_long) == (["short"], ["long"])
    items = [Item("short", "a", check=bool), Item("long", "word " * 99, check=bool)]
    asked = EvaluationTask("asked", "Asked", "checked", items, chat=True, max_tokens=4)
    assert run_task(asked, model).too_long == ["long"]


@pytest.mark.slow
def test_answers_are_greedy_and_end_where_the_model_ends_them(folder: Path, engines: Fleet):
    reference = Reference(folder)
    text = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([reference.encoded(text)])
    with torch.inference_mode():
        out = reference.model.generate(ids, do_sample=False, max_new_tokens=12, attention_mask=torch.ones_like(ids))
    expected = reference.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    model = EngineModel.of(engines, folder, CONTEXT, 300, chats=True)
    assert model.answers(["Who?"], True, 12) == [expected]


@pytest.mark.slow
def test_an_evaluation_writes_its_figures_and_goes_on_where_it_ended(
    folder: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture
):
    command = ["evaluate", str(folder), "--tasks", "cloze", "--actors", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    figures = json.loads((tmp_path / "out" / "tasks.json").read_text())
    harness = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert harness["results"]["cloze"]["acc,none"] == figures["cloze"]["models"]["tiny"]["value"]
    assert harness["n-samples"]["cloze"] == {"original": 48, "effective": 48}
    rows = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    assert rows[0]["expected"] == "legs"
    assert len(rows[0]["models"]["tiny"]["nats"]) == 4
    with pytest.raises(SystemExit):
        main(command)
    assert "1 of 1 tasks were finished before" in capsys.readouterr().out
