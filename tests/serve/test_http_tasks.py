"""Evaluation tasks over HTTP: the same log-probabilities as transformers, from a server of this project."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import UserError
from pipelines.evaluate.tasks.http_model import HttpModel
from pipelines.evaluate.tasks.models import Request
from tests.serve.conftest import Server


def test_a_served_model_is_scored_as_transformers_scores_it(server: Server):
    folder = server.folders["policy"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    requests = [Request("The capital of Peru is", f" {city}", False) for city in ("Lima.", "the sea.")]
    expected = []
    for request in requests:
        before = len(tokenizer(request.prompt)["input_ids"])
        ids = tokenizer(request.prompt + request.continuation)["input_ids"]
        with torch.inference_mode():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(table[n - 1, ids[n]].item() for n in range(before, len(ids))))
    served = HttpModel.of(server.url, "policy")
    assert served.log_likelihoods(requests) == pytest.approx(expected, abs=1e-3)
    answers = served.answers(["What is the capital of Peru?", "Who?"], True, 8)
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)


def test_a_model_that_is_not_served_is_named(server: Server):
    with pytest.raises(UserError, match=r"has the models .*: name one with --model"):
        HttpModel.of(server.url, "gone")
