"""Prints what lm-evaluation-harness measures of a server: lm_eval_client.py URL MODEL QUESTION FOLDER.

FOLDER is empty: it gets the tasks.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

url, model, question = sys.argv[1:4]
folder = Path(sys.argv[4])
questions = folder / "questions.jsonl"
questions.write_text(json.dumps({"question": question, "choices": ["Lima", "Quito"], "answer": 0}) + "\n")
shared: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(questions)}},
    "test_split": "test",
    "doc_to_text": "{{question}}",
}
choice = {"task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
writing = {
    "task": "writing",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n\n\n\n"], "max_gen_toks": 12, "temperature": 0},
}
tasks = {task["task"]: shared | task for task in (choice, writing)}
for name, task in tasks.items():
    # JSON is YAML too.
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def responses(kind: str, path: str, names: list[str], **options: Any) -> dict[str, Any]:
    """Returns a model's responses in tasks, by the names of the tasks."""
    arguments = {"model": model, "base_url": f"{url}{path}", "max_length": 512}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    done = simple_evaluate(kind, arguments, names, task_manager=manager, bootstrap_iters=0, **options)
    return {name: done["samples"][name][0]["filtered_resps"] for name in names}


found = responses("local-completions", "/v1/completions", ["choice", "writing"])
chat = responses("local-chat-completions", "/v1/chat/completions", ["writing"], apply_chat_template=True)
(answer,) = chat["writing"]
print(
    json.dumps(
        {
            "likelihoods": [float(likelihood) for likelihood, _ in found["choice"]],
            "completion": found["writing"][0],
            "answer": answer,
        }
    )
)
