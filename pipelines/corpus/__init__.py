"""Text to train on: gathered, cleaned, deduplicated, tokenized and packed."""

from pipelines.corpus.stage import run

__all__ = ["run"]
