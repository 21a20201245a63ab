"""Comparisons of two models by a judge: a model, or people.

win_rates has win rates in both orders, controlled for length; judge_trust has a judge's agreement with people, and
refuses a judge that agrees too seldom.
"""
