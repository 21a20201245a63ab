"""Training that starts from a model of one's own."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from actors.model.chat import Chat
from actors.model.chat_template import CHAT_TEMPLATE, SPECIAL_TOKENS
from actors.model.language import load, start
from cluster.failures import UserError
from cluster.recipe import Model
from pipelines.corpus.encode import encode_documents
from pipelines.corpus.tokenizer import document_end, save_tokenizer_of
from tests.tiny import write_tiny_model

CONTEXT = 64


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model with a chat template of its own."""
    write_tiny_model(tmp_path / "own", seed=1, end_id=4, context=CONTEXT)
    return tmp_path / "own"


def without_template(model: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    return model


def test_the_corpus_is_written_with_the_models_own_tokens(own: Path, tmp_path: Path):
    save_tokenizer_of(str(own), tmp_path / "tokenizer", CONTEXT)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(own)
    assert ours.chat_template == theirs.chat_template != CHAT_TEMPLATE
    text = "The capital of Peru is Lima."
    (encoded,) = encode_documents(tmp_path / "tokenizer" / "tokenizer.json", [text])
    assert encoded.tolist() == theirs.encode(text, add_special_tokens=False)
    assert document_end(tmp_path / "tokenizer") == theirs.pad_token_id


def test_a_base_model_gets_a_template_and_a_place_for_its_tokens(own: Path, tmp_path: Path):
    model = without_template(own)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(model)
    save_tokenizer_of(str(model), tmp_path / "tokenizer", CONTEXT)
    chat = Chat.of(tmp_path / "tokenizer")
    rendered = chat.conversation([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    assert rendered.token_ids[0] == chat.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[2])
    assert rendered.token_ids[-1] == chat.end_of_turn_id == chat.tokenizer.convert_tokens_to_ids("<|end|>")

    before = load(model).get_input_embeddings().weight
    started = start(Model(start_from=str(model), context=CONTEXT), chat.tokenizer)
    after = started.get_input_embeddings().weight
    assert len(after) == len(chat.tokenizer) == len(before) + 1
    assert torch.equal(after[: len(before)], before)


def test_a_context_beyond_the_models_is_refused(own: Path):
    tokenizer = AutoTokenizer.from_pretrained(own)
    with pytest.raises(UserError, match=r"context 128 is more than the 64 positions"):
        start(Model(start_from=str(own), context=128), tokenizer)


def test_pickled_weights_are_refused(own: Path):
    torch.save(load(own).state_dict(), own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(own)
