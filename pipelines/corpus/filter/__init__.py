"""Filters documents by quality: `signals` measures them, with `ngrams` for repetition, and `rules` bounds the signals.

`stop_words` has the words of Gopher's rule, and `classifier` scores quality as the recipe's examples teach it.
`histograms` counts documents by signal for the report, and `cache` keeps measured documents on disk, so that a build
with other bounds need not read the sources again.
"""
