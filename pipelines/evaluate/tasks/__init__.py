"""Evaluation tasks: the same questions for every model, with intervals, paired differences and answers to read.

items defines tasks and their items; built_in makes tasks with nothing to fetch; files reads benchmarks in their
published layouts; models scores and generates with engines, http_model over HTTP; loading makes the tasks that a recipe
or command names, measure runs tasks on a model, run does so outside of a run, results compares models by statistics,
tables prints them, and lm_eval writes lm-eval's layout. A new built-in task is an entry of `built_in.BUILT_IN`; a new
layout is one of `layouts.LAYOUTS`.
"""
