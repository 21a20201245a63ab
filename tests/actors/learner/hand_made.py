"""A tiny model, hand-made prompts, answers and rewards, and learners that are made from them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from transformers import AutoModelForCausalLM

from actors.learner.learner import Learner
from actors.learner.remote import RemoteLearner
from actors.model.causal_lm import build
from actors.model.reward_head import with_new_head
from actors.trainer.data import Shard
from actors.types import Prompt, RolloutId, Sample
from cluster.recipe.base import Lora
from cluster.recipe.model import Model
from tests.helpers import rlhf
from tests.tiny import tiny_tokenizer

PROMPTS = [Prompt("a", [2, 10, 11, 4, 3]), Prompt("b", [2, 12, 4, 3])]
ANSWERS = [[[20, 21, 4], [22, 4]], [[23, 4], [24, 25, 26, 4]]]
REWARDS = [[1.0, -1.0], [0.5, -0.5]]
LORA = Lora(rank=4, alpha=8)

Folders = tuple[Path, Path, list[Shard]]


def model_folders(root: Path) -> Folders:
    """Writes a fine-tuned model, a reward model made from it, and two rows of text."""
    model = build(Model(vocabulary=300, hidden=64, layers=2, heads=2, context=64), 0, end_of_turn=4, padding=0)
    model.save_pretrained(root / "sft")
    tiny_tokenizer(300).save_pretrained(root / "sft")
    with_new_head(root / "sft").save_pretrained(root / "reward")
    write_scale(root / "reward", mean=0.0, deviation=1.0)
    rows = {"input_ids": [[30, 31, 32, 0], [33, 34, 0, 0]], "document_ids": [[0, 0, 0, 0], [0, 0, 0, -1]]}
    table = pa.table({name: pa.array(value, pa.list_(pa.int32())) for name, value in rows.items()})
    parquet.write_table(table, root / "text.parquet")
    return root / "sft", root / "reward", [Shard(str(root / "text.parquet"), 2)]


def write_scale(model: Path, mean: float, deviation: float) -> None:
    """Writes the mean and the standard deviation by which the rewards of this reward model are normalized."""
    (model / "normalization.json").write_text(json.dumps({"mean": mean, "deviation": deviation}))


def make(folders: Folders, **settings: object) -> Learner:
    """Makes a learner in this process, with a learning rate of 1e-3 unless the settings name another."""
    return Learner(rlhf(**{"learning_rate": 1e-3, **settings}), *folders, seed=0, threads=1)


def samples(learner: Learner) -> list[list[Sample]]:
    """Returns ANSWERS as samples of the learner's current policy, by prompt."""
    return samples_of(learner, PROMPTS, ANSWERS, learner.version)


def samples_of(
    learner: Learner | RemoteLearner, prompts: list[Prompt], answers: list[list[list[int]]], version: int
) -> list[list[Sample]]:
    """Returns answers as samples of a learner's policy, by prompt, drawn by this version of the weights."""
    groups = []
    for prompt, own in zip(prompts, answers, strict=True):
        rows = [prompt.token_ids + answer for answer in own]
        logprobs = learner.logprobs(rows, [len(prompt.token_ids)] * len(rows), 1.0)
        groups.append(
            [
                Sample(RolloutId(0, prompt.id, index), answer, values, [version] * len(answer), "stop", "")
                for index, (answer, values) in enumerate(zip(own, logprobs, strict=True))
            ]
        )
    return groups


def total(learner: Learner, prompt: int, answer: int) -> float:
    """Returns the log-probability of a whole answer, in nats, by its indices in ANSWERS."""
    row = PROMPTS[prompt].token_ids + ANSWERS[prompt][answer]
    return sum(learner.logprobs([row], [len(PROMPTS[prompt].token_ids)], 1.0)[0])


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Returns copies of the weights of the policy and, where there is one, the critic."""
    models = {"policy": learner.policy, "critic": learner.critic}
    return {
        f"{name}.{key}": value.detach().clone()
        for name, model in models.items()
        if model is not None
        for key, value in model.named_parameters()
    }


def assert_equal(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


def exported(learner: Learner, folder: Path, within_limits: bool) -> dict[str, torch.Tensor]:
    """Exports the policy into the folder and returns its weights as they are read from there."""
    learner.export(folder, within_limits)
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
