"""Preference files of every format, to import and to compare with what is exported."""

import json
from pathlib import Path
from typing import Any

from tests.helpers import SHARED

PREFERENCES = SHARED / "preferences"
TURN = {"role": "user", "content": "Hi\n\nthere"}
REPLY = {"role": "assistant", "content": "Hello"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "hh-rlhf": [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "score": 2},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "score": 2},
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c \n\nAssistant:  d\n",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c \n\nAssistant:",
        },
        {
            "chosen": "\n\nHuman:a\n\nAssistant:b",
            "rejected": "\n\nHuman:a\n\nAssistant: other\n\nHuman: c\n\nAssistant: d",
        },
    ],
    "trl": [
        {"prompt": "a", "chosen": "b", "rejected": "c", "id": 7},
        {"prompt": " a\n", "chosen": "", "rejected": "b"},
    ],
    "trl-messages": [
        {"prompt": [TURN], "chosen": [REPLY], "rejected": [REPLY | {"content": ""}], "margin": 0.5},
        {"prompt": [TURN, REPLY, TURN], "chosen": [REPLY], "rejected": [REPLY]},
        {"chosen": [TURN, REPLY], "rejected": [TURN, REPLY | {"content": "No"}]},
    ],
    "lists": [
        {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 1, 2], "tags": ["x"]},
        {"prompt": [TURN], "completions": ["b", "c"], "ranks": [1, 1], "annotator": "ann"},
    ],
    "pandalm": [
        {
            "idx": 0,
            "motivation_app": "x",
            "cmp_key": "bloom-7b_llama-7b",
            "instruction": "Say",
            "input": "",
            "response1": "b",
            "response2": "c",
            "annotator1": 0,
            "annotator2": 1,
            "annotator3": 2,
        }
    ],
    "ultrafeedback": [
        {
            "source": "x",
            "instruction": "Say",
            "models": ["a", "b", "c"],
            "completions": [
                {"model": "a", "response": "b", "fine-grained_score": 3.25, "overall_score": 9.0, "critique": "k"},
                {"model": "b", "response": "c", "fine-grained_score": 4.5, "annotations": {"honesty": {"Rating": "5"}}},
                {"model": "c", "response": "d", "fine-grained_score": 3.25},
            ],
            "correct_answers": ["None"],
        }
    ],
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
