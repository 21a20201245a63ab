"""Writes results in the JSON layout of lm-evaluation-harness, so that tools that read its files read these too."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster import __version__
from pipelines.evaluate.tasks.items import EvaluationTask

# lm-eval's name of each metric.
NAMES = {
    "accuracy": "acc",
    "normalized": "acc_norm",
    "mass": "acc",
    "checked": "exact_match",
    "contrast": "acc",
    "bits": "bits_per_byte",
}


def lm_eval_results(
    tasks: Sequence[EvaluationTask], figures: Mapping[str, Any], model: str, seed: int
) -> dict[str, Any]:
    """Makes the content of lm-eval's `results.json` for one model.

    Args:
        tasks: the tasks.
        figures: the value of `task_figures`.
        model: the model's name in the figures.
        seed: the seed of the run.
    """
    results, samples = {}, {}
    for task in tasks:
        found, metric = figures[task.name]["models"][model], NAMES[task.metric]
        results[task.name] = {
            "alias": task.name,
            f"{metric},none": found["value"],
            f"{metric}_stderr,none": "N/A" if found["standard_error"] is None else found["standard_error"],
        }
        samples[task.name] = {"original": found["n"] + found["too_long"], "effective": found["n"]}
    return {
        "results": results,
        "group_subtasks": {task.name: [] for task in tasks},
        "configs": {
            task.name: {"task": task.name, "metric_list": [{"metric": NAMES[task.metric]}], "num_fewshot": 0}
            for task in tasks
        },
        "versions": {task.name: __version__ for task in tasks},
        "n-shot": {task.name: 0 for task in tasks},
        "higher_is_better": {task.name: {NAMES[task.metric]: task.higher_is_better} for task in tasks},
        "n-samples": samples,
        "config": {"model": "triptych", "model_args": model, "random_seed": seed},
        "model_name": model,
    }
