"""Samples completions with vLLM, in one Ray actor per engine, and brings new weights to the engines.

actor.py            one engine: completions with their log-probabilities, scores of given tokens, new weights
engine.py           several threads share a vLLM engine, which one thread steps
environment.py      conversations of several turns: a function answers completions, which are then continued
environment_process.py  the process of that function
weights.py          a version of the weights in Ray's object store, and digests that prove that engines compute with it
weight_transfer.py  the receiving side in vLLM's workers, which loads weights into the live model
"""
