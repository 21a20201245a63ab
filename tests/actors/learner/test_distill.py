"""On-policy distillation: gradients against closed forms, and a student that approaches its teacher."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from actors.algorithms.registry import algorithm_named
from actors.learner.learner import Learner
from actors.model.causal_lm import build, load
from actors.model.tokenizer import require_same_tokens
from actors.types import Prompt, RolloutId, Sample
from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.model import Model
from tests.helpers import rlhf
from tests.tiny import tiny_tokenizer

SHAPE = Model(vocabulary=300, hidden=32, layers=2, heads=2, context=64)
PROMPTS = [Prompt(str(number), [2, 10 + number, 4, 3]) for number in range(12)]
LENGTH = 5
TEACHER_NOISE = 0.04


@pytest.fixture(scope="module")
def student_and_teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns the folders of a student and of its teacher."""
    root = tmp_path_factory.mktemp("distill")
    torch.manual_seed(3)
    model = build(SHAPE, 0, end_of_turn=4, padding=0)
    for name in ("teacher", "student"):
        with torch.no_grad():
            # Peaked distributions, which are not the student's.
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8 if name == "teacher" else 1).add_(TEACHER_NOISE * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        tiny_tokenizer(300).save_pretrained(root / name)
    return root / "student", root / "teacher"


def learner_of(student_and_teacher: tuple[Path, Path], **settings: object) -> Learner:
    own = rlhf(algorithm="distill", teacher=str(student_and_teacher[1]), **{"learning_rate": 1e-3, **settings})
    return Learner(own, student_and_teacher[0], student_and_teacher[0], [], seed=0, threads=1)


@torch.no_grad()
def drawn(learner: Learner, count: int, seed: int) -> list[list[Sample]]:
    """Answers of a fixed length, drawn by the policy itself."""
    generator, groups = torch.Generator().manual_seed(seed), []
    for prompt in PROMPTS:
        ids, chosen = torch.tensor([prompt.token_ids] * count), []
        for _ in range(LENGTH):
            table = learner.policy(ids).logits[:, -1].log_softmax(-1)
            token = torch.multinomial(table.exp(), 1, generator=generator)
            chosen.append(table.gather(1, token))
            ids = torch.cat([ids, token], 1)
        answers, logprobs = ids[:, -LENGTH:].tolist(), torch.cat(chosen, 1).tolist()
        versions = [learner.version] * LENGTH
        groups.append(
            [
                Sample(RolloutId(0, prompt.id, index), answer, own, versions, "length", "")
                for index, (answer, own) in enumerate(zip(answers, logprobs, strict=True))
            ]
        )
    return groups


@torch.no_grad()
def reverse_kl(policy: torch.nn.Module, teacher: torch.nn.Module, groups: list[list[Sample]]) -> float:
    """Computes KL(π ‖ teacher) in nats a token, over the vocabulary in float64, at the prefixes of the answers."""
    found = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt.token_ids + sample.token_ids for sample in group])
        own, other = (one(ids).logits[:, -LENGTH - 1 : -1].double().log_softmax(-1) for one in (policy, teacher))
        found.append((own.exp() * (own - other)).sum(-1).mean().item())
    return sum(found) / len(found)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_students_divergence_from_its_teacher_falls(student_and_teacher: tuple[Path, Path], adapters: bool):
    learner = learner_of(student_and_teacher, **({"lora": Lora(rank=8), "learning_rate": 1e-2} if adapters else {}))
    teacher, held_out = load(student_and_teacher[1]), drawn(learner, 8, seed=99)
    before, told = reverse_kl(learner.policy, teacher, held_out), []
    for step in range(10):
        groups = drawn(learner, 8, seed=step)
        expected = reverse_kl(learner.policy, teacher, groups)
        figures = learner.step(PROMPTS, groups, [[0.0] * 8] * len(PROMPTS))
        told.append((figures["teacher_kl"], expected))
        assert not {"kl", "kl_sequence"} & set(figures)
    after = reverse_kl(learner.policy, teacher, drawn(learner, 8, seed=99))
    assert before > 0.3
    assert after < (0.8 if adapters else 0.6) * before
    # An estimate from the drawn tokens alone.
    assert sum(one for one, _ in told) == pytest.approx(sum(other for _, other in told), rel=0.1)


def test_the_expected_gradient_is_that_of_the_reverse_divergence():
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    own, teacher = logits.log_softmax(0), other.log_softmax(0)
    (expected,) = torch.autograd.grad((own.exp() * (own - teacher)).sum(), logits, retain_graph=True)
    # Every token of the vocabulary as an answer, weighted by its probability.
    rewards = -(own - teacher).detach()
    advantages, returns = algorithm_named("distill").targets(
        type("Batch", (), {"completion_mask": torch.ones(9, 1, dtype=torch.bool)})(), rewards.unsqueeze(1), None
    )
    loss = -(own.exp().detach() * advantages.squeeze(1) * own).sum()
    (found,) = torch.autograd.grad(loss, logits)
    assert returns is None
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_the_step_follows_the_teachers_log_probabilities(student_and_teacher: tuple[Path, Path]):
    learner = learner_of(student_and_teacher)
    groups, teacher, policy = drawn(learner, 2, seed=1), load(student_and_teacher[1]), load(student_and_teacher[0])
    batch = learner.collator.rollouts(PROMPTS, groups, [[0.0] * 2] * len(PROMPTS), False)
    found = learner._targets(batch).advantages[batch.completion_mask].view(-1, LENGTH)
    pairs = zip(PROMPTS, groups, strict=True)
    rows = torch.tensor([prompt.token_ids + one.token_ids for prompt, group in pairs for one in group])
    with torch.no_grad():
        own, other = (
            one.double()(rows).logits[:, -LENGTH - 1 : -1].log_softmax(-1).gather(2, rows[:, -LENGTH:, None])[..., 0]
            for one in (policy, teacher)
        )
    assert torch.allclose(found.double(), other - own, rtol=0, atol=2e-5)


def test_other_tokens_are_refused(student_and_teacher: tuple[Path, Path], tmp_path: Path):
    require_same_tokens(student_and_teacher[1], student_and_teacher[0])
    tiny_tokenizer(310).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the tokens of .* are not those of the policy: .* and None here"):
        require_same_tokens(tmp_path, student_and_teacher[0])
    with pytest.raises(UserError, match="cannot load the tokenizer of"):
        require_same_tokens(tmp_path / "none", student_and_teacher[0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"algorithm": "distill"}, "distill needs teacher"),
        ({"teacher": "x"}, "teacher is for algorithm distill, and algorithm is grpo"),
        ({"algorithm": "distill", "teacher": "x", "max_kl": 2.0, "kl_coefficient": 0.5}, "leave kl, stop.max_kl out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], told: str):
    with pytest.raises(ValidationError, match=told):
        rlhf(**settings)
    fitting = rlhf(algorithm="distill", teacher="x", samples_per_prompt=1)
    assert (fitting.rewards, fitting.needs_reward_model, fitting.needs_reference) == ([], False, True)
