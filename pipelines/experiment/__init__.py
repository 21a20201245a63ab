"""Experiments with the corpus: small models, trained on variants of it, tell which sources and filters help.

variants -> a corpus each (`run.py`) -> small models (`small_models.py`) -> intervals of the differences (`compare.py`)
"""
