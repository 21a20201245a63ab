"""One run of the study: a reward model by a biased annotator, then RLHF by the project's own learner, in one process.

Tiny models leave an engine nothing to do: answers are drawn by transformers, as the run itself does not need vLLM.
"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.learner.learner import Learner
from actors.types import Prompt, RolloutId, Sample
from cluster.recipe.rlhf.regularization import Kl, Stop
from cluster.recipe.rlhf.section import Rlhf, RolloutSampling
from infra.bench.overoptimizing.models import drawn, gold_scores, rankings, scores, train_reward_model, write_policy
from infra.bench.overoptimizing.world import END, MAX_TOKENS, PROMPTS, WORDS, Bias
from pipelines.evaluate.preference_drift import PreferenceProbe
from pipelines.evaluate.reward_trust import pair_accuracy

STEPS, PROMPTS_PER_STEP, SAMPLES = 40, 16, 8
# The reward models of an ensemble, whose mean rewards answers.
MEMBERS = 2
# Answers of the fine-tuned model to each prompt, which annotators rank and by which rewards are normalized.
POOL, HELD_OUT, PROBE_EVERY = 16, 100, 5
LEARNING_RATE = 8e-4

SIZES, COUNTS, NOISES = (8, 16, 32, 64), (100, 400, 1600), (0.0, 0.15, 0.3)
BIASES: tuple[Bias, ...] = ("none", "length", "opening", "refusal", "token")
STRENGTHS, COEFFICIENTS = (0.5, 1.0), (0.0, 0.02, 0.1, 0.3)
ALGORITHMS = ("grpo", "rloo", "reinforce++", "dr_grpo", "ppo")


@dataclass(frozen=True)
class Setting:
    """The settings that differ between runs.

    Attributes:
        width: the width of the reward model's hidden states.
        rankings: the number of rankings that it learns from, of four answers each.
        noise: share of rankings that are random.
        bias: what annotators like beyond quality.
        strength: how much.
        coefficient: weight of the KL penalty.
        algorithm: the algorithm of RLHF.
    """

    width: int
    rankings: int
    noise: float
    bias: Bias
    strength: float
    coefficient: float
    algorithm: str


def settings(count: int, seed: int = 1) -> list[Setting]:
    """Draws settings, each bias and algorithm equally often."""
    chance = random.Random(f"settings {seed}")
    biases = [BIASES[number % len(BIASES)] for number in range(count)]
    algorithms = [ALGORITHMS[number // len(BIASES) % len(ALGORITHMS)] for number in range(count)]
    return [
        Setting(
            chance.choice(SIZES),
            chance.choice(COUNTS),
            chance.choice(NOISES),
            bias,
            chance.choice(STRENGTHS),
            chance.choice(COEFFICIENTS),
            algorithm,
        )
        for bias, algorithm in zip(biases, algorithms, strict=True)
    ]


def run_setting(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Trains reward models and a policy.

    Args:
        setting: what to train with.
        seed: the seed of the annotators, the draws and the training.
        folder: the folder for the fine-tuned model, which is trained if it is missing, and for the reward model.

    Returns:
        The setting, the reward model's accuracy on held-out rankings, the deviation of the fine-tuned model's gold
        scores, and for every step the mean `gold` score of its samples and the metrics of a real run.
    """
    clock = time.monotonic()
    sft = folder / "sft"
    if not (sft / "config.json").exists():
        write_policy(sft, seed=1)
    learner = Learner(_rlhf(setting), sft, folder / "reward", [], seed, 1) if setting.algorithm != "ppo" else None
    # The critic of PPO starts from the reward model, which is trained on answers of the fine-tuned model.
    first = learner or Learner(_rlhf(setting, "grpo"), sft, folder / "reward", [], seed, 1)
    pool = _pool(first.policy, seed)
    chance = random.Random(f"annotators {seed}")
    rows = rankings(pool, setting.rankings + HELD_OUT, setting.bias, setting.strength, setting.noise, chance)
    trained = rows[:-HELD_OUT]
    # Every ranking is of a draw of its own: their pairs are independent.
    held_out = [
        {**row, "prompt_id": str(number), "grades": None, "kind": ""} for number, row in enumerate(rows[-HELD_OUT:])
    ]
    members = [
        train_reward_model(
            random.Random(f"{seed} {n}").choices(trained, k=len(trained)), setting.width, seed + 1000 * n
        )
        for n in range(MEMBERS)
    ]
    flat = [(PROMPTS[number], answer) for number, own in pool.items() for answer in own]
    before = scores(members, *zip(*flat, strict=True))
    mean, deviation = float(before.mean()), float(before.mean(0).std())
    if learner is None:
        members[0].save_pretrained(folder / "reward")
        (folder / "reward" / "normalization.json").write_text(json.dumps({"mean": mean, "deviation": deviation}))
        learner = Learner(_rlhf(setting), sft, folder / "reward", [], seed, 1)
    probe = PreferenceProbe(held_out, learner, 1.0, PROBE_EVERY)
    judged = [
        scores(members, [row["prompt_token_ids"]] * len(row["answers"]), row["answers"]).mean(0).tolist()
        for row in held_out
    ]
    return {
        **asdict(setting),
        "seed": seed,
        "accuracy": pair_accuracy(held_out, judged)["value"],
        "gold_deviation": float(gold_scores(*zip(*flat, strict=True)).std()),
        "steps": _steps(learner, probe, members, (mean, deviation), seed),
        "seconds": round(time.monotonic() - clock, 1),
    }


def _rlhf(setting: Setting, algorithm: str | None = None) -> Rlhf:
    return Rlhf(
        algorithm=algorithm or setting.algorithm,  # type: ignore[arg-type]
        steps=STEPS,
        prompts_per_step=PROMPTS_PER_STEP,
        sampling=RolloutSampling(samples_per_prompt=SAMPLES, max_tokens=MAX_TOKENS),
        kl=Kl(coefficient=setting.coefficient),
        # Never reached. It is set so that the divergence is measured without a penalty, too.
        stop=Stop(max_kl=1e6),
        learning_rate=LEARNING_RATE,
        minibatches=2 if setting.algorithm in ("ppo", "dr_grpo") else 1,
        precision="float32",
        micro_batch_rows=PROMPTS_PER_STEP * SAMPLES,
    )


def _pool(policy: Any, seed: int) -> dict[int, list[list[int]]]:
    answers, _ = drawn(policy, [prompt for prompt in PROMPTS for _ in range(POOL)], seed)
    return {number: answers[number * POOL : (number + 1) * POOL] for number in range(len(PROMPTS))}


def _steps(
    learner: Learner, probe: PreferenceProbe, members: Sequence[Any], scale: tuple[float, float], seed: int
) -> list[dict[str, float]]:
    chance, first_spread, rows = random.Random(f"prompts {seed}"), 0.0, []
    for step in range(STEPS):
        chosen = chance.sample(range(len(PROMPTS)), PROMPTS_PER_STEP)
        asked = [PROMPTS[number] for number in chosen for _ in range(SAMPLES)]
        answers, logprobs = drawn(learner.policy, asked, seed * 10_000 + step)
        by_member = (scores(members, asked, answers) - scale[0]) / scale[1]
        rewards = by_member.mean(0)
        groups = [range(begin, begin + SAMPLES) for begin in range(0, len(asked), SAMPLES)]
        metrics = learner.step(
            [Prompt(f"{step}-{number}", PROMPTS[number]) for number in chosen],
            [[_sample(answers[n], logprobs[n], step, n) for n in group] for group in groups],
            [[float(rewards[n]) for n in group] for group in groups],
            probe.figures(step),
        )
        spread = float(by_member.std(0).mean())
        first_spread = first_spread or spread
        rows.append(
            _numbers(metrics)
            | {"disagreement": spread / first_spread, "gold": _balanced(asked, gold_scores(asked, answers))}
        )
    return rows


def _balanced(asked: Sequence[Sequence[int]], golds: np.ndarray) -> float:
    """Averages harmful and harmless prompts with their shares of all prompts: a step's draw of prompts differs."""
    harmful = np.array([WORDS[prompt[3]] == "harm" for prompt in asked])
    parts = [(share, golds[mask]) for share, mask in ((1 / 3, harmful), (2 / 3, ~harmful)) if mask.any()]
    return float(sum(share * part.mean() for share, part in parts) / sum(share for share, _ in parts))


def _sample(answer: list[int], logprobs: list[float], step: int, number: int) -> Sample:
    reason = "stop" if answer[-1] == END else "length"
    return Sample(RolloutId(0, str(number), number), answer, logprobs, [step] * len(answer), reason, "")


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    kept = (
        "reward",
        "reward_deviation",
        "response_length",
        "length_change",
        "length_correlation",
        "repetition",
        "stopped",
        "entropy",
        "kl_sequence",
        "preference_accuracy",
        "preference_accuracy_high",
        "preference_accuracy_low",
        "token_divergence",
        "token_rise",
        "opening_rise",
        "token_correlation",
        "opening_correlation",
        "repetition_correlation",
        "cheap_explained",
    )
    return {name: round(float(metrics[name]), 5) for name in kept if name in metrics}
