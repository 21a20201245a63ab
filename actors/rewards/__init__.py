"""Scores completions: each reward of the recipe has Ray actors of its own, and the policy learns from their weighted
sum.

pool.py      the actors of one reward, and the sum over all rewards
model.py     the reward model
function.py  Python functions, by the name module:function that a recipe gives
http.py      a server that scores over HTTP
scorer.py    scores by a reward model outside of RLHF
builtin.py   functions for answers that can be checked
"""
