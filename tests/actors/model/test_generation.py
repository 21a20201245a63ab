"""Continuations of held-out texts at checkpoints."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from actors.model.attention.packed import PAD_DOCUMENT_ID
from actors.model.causal_lm import load
from actors.model.generation import OPENING_TOKENS, Opening, continuation_metrics, continuations, openings
from actors.model.microbatch import DataParallelRank
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.lm import LanguageObjective
from tests.tiny import tiny_tokenizer, write_tiny_model

WORKER = DataParallelRank(0, 1, 1, "float32", torch.device("cpu"))
TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_tiny_model(made, seed=1, end_id=4)
    torch.set_num_threads(1)
    return made


def test_a_conversation_is_cut_at_its_first_trained_turn():
    rows = pa.table(
        {
            "input_ids": [[2, 30, 4, 3, 31, 4, 2, 32, 3, 33, 4, 0], [2, 40, 3, 41, 0, 0, 0, 0, 0, 0, 0, 0]],
            "document_ids": [[0] * 11 + [PAD_DOCUMENT_ID], [0] * 4 + [PAD_DOCUMENT_ID] * 8],
            "loss_mask": [[n in (4, 5, 9, 10) for n in range(12)], [n == 3 for n in range(12)]],
        }
    )
    expected = [Opening([2, 30, 4, 3], [31, 4], is_prompt=True), Opening([2, 40, 3], [41], is_prompt=True)]
    assert openings([rows, rows], 3) == [*expected, expected[0]]
    assert openings([rows], 9) == expected


def test_a_text_without_turns_is_cut_early_on():
    long, short = list(range(5, 45)), [50, 51, 52, 53]
    rows = pa.table({"input_ids": [long + short], "document_ids": [[0] * 40 + [1] * 4]})
    cut = OPENING_TOKENS
    assert openings([rows], 2) == [Opening(long[:cut], long[cut:], False), Opening([50, 51], [52, 53], False)]


def greedy(model: torch.nn.Module, token_ids: list[int], end: int) -> list[int]:
    """Continues one text alone, one token at a time, without a cache."""
    written: list[int] = []
    while len(written) < TOKENS:
        with torch.no_grad():
            token = int(model(torch.tensor([token_ids + written])).logits[0, -1].argmax())
        if token == end:
            break
        written.append(token)
    return written


def test_texts_of_all_lengths_are_continued_as_each_alone_and_training_does_not_notice(folder: Path):
    unwrapped_model = load(folder)
    model = WithLoss(unwrapped_model, LanguageObjective()).train()
    given = [Opening(ids, [], True) for ids in ([2, 20, 4, 3], [2, 30, 40, 50, 60, 70, 4, 3], [9])]
    first = greedy(unwrapped_model, given[0].token_ids, end=-1)
    # As if the model ended with the third token that it writes.
    end, chance = first[2], torch.get_rng_state()
    settings = unwrapped_model.generation_config.to_dict()
    written = continuations(model, given, TOKENS, end, WORKER)
    assert written == [greedy(unwrapped_model, opening.token_ids, end) for opening in given]
    assert written[0] == first[: first.index(end)]
    assert model.training
    assert torch.equal(torch.get_rng_state(), chance)
    assert unwrapped_model.generation_config.to_dict() == settings


def test_answers_are_compared_but_for_case_spaces_and_the_end_of_the_turn():
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    wanted = ids("The capital is Lima.<|end|>")
    given = [Opening(ids(f"<|user|>{n}<|end|><|assistant|>"), wanted, True) for n in range(4)]
    written = [ids(text) for text in ("The capital is Lima.", " the  capital is LIMA.", "Lima.", "")]
    found = continuation_metrics(tokenizer, given, written, shown=2)
    assert found["held_out_exact"] == 0.5
    assert found["samples"] == [
        {"given": "0", "written": "The capital is Lima.", "wanted": "The capital is Lima."},
        {"given": "1", "written": "the  capital is LIMA.", "wanted": "The capital is Lima."},
    ]
    text = Opening(ids("The capital"), wanted, is_prompt=False)
    assert "held_out_exact" not in continuation_metrics(tokenizer, [text], [wanted], shown=1)
    assert continuation_metrics(tokenizer, [], [], shown=1) == {"samples": []}
