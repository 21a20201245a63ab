"""Tokenizers as they lie with a model."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# What transformers calls a tokenizer that is its tokenizer.json and no more, before and since version 5.
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, or of a model by its name at the Hub.

    `AutoTokenizer` imports torch and the names of every model: 7 s of processor time in each process. A tokenizer that
    has no class of its own, such as those of the corpus stage, is loaded without.

    Raises:
        OSError, ValueError: there is none.
    """
    settings = Path(model) / "tokenizer_config.json"
    if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") in PLAIN:
        return PreTrainedTokenizerFast.from_pretrained(str(model))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model))
