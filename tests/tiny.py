"""Tiny random models with a real tokenizer: folders as the stages leave them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
# The smallest configuration of any architecture.
SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 4}
TEXT = [
    "The capital of Peru is Lima. What is the capital of Peru?",
    "She sells sea shells; the shells she sells are surely seashells.",
    "How do I stop coughing? Drink water, rest, and see a doctor if it lasts.",
] * 20


def tiny_tokenizer(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer, the special tokens first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(seed: int, vocabulary: int, **settings: Any) -> LlamaForCausalLM:
    """Makes a random Llama of 0.1M parameters, to whose configuration the settings are added."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SIZES, **settings))


def write_tiny_model(folder: Path, seed: int, end_id: int, context: int = 64) -> None:
    """Writes a tiny Llama that generates text.

    Args:
        folder: where to write it.
        seed: of the weights.
        end_id: the token that ends generation: 4 for a model tuned to chat, 0 for one that continues text.
        context: positions.
    """
    tokenizer = tiny_tokenizer()
    model = tiny_llama(
        seed,
        len(tokenizer),
        max_position_embeddings=context,
        tie_word_embeddings=True,
        # Wide enough that greedy decoding does not settle on one token.
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=0,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_reward_model(folder: Path, mean: float, deviation: float, seed: int = 3) -> None:
    """Writes a random reward model, and the scale of its rewards."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, initializer_range=0.5, **SIZES)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "normalization.json").write_text(json.dumps({"mean": mean, "deviation": deviation}))
