"""Text to train on: gathered, cleaned, deduplicated, tokenised and packed."""

from pipelines.corpus.stage import run

__all__ = ["run"]
