"""Evaluation tasks: the same questions for every model, with intervals, paired differences and answers to read.

items has what a task is; built_in makes tasks with nothing to fetch; files reads benchmarks in their published layouts;
models scores and generates, with engines or over HTTP; measure runs tasks on a model, results compares models, and
lm_eval writes lm-eval's layout. A new built-in task is an entry of `built_in.BUILT_IN`; a new layout is one of
`layouts.LAYOUTS`.
"""
