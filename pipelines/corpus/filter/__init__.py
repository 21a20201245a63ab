"""Filters documents by quality: `signals` measures them, with `ngrams` for repetition, and `rules` bounds the signals.

`histograms` counts documents by signal for the report, and `cache` keeps measured documents on disk, so that a build
with other bounds need not read the sources again.
"""
