"""Conversations of several turns, drawn by a real engine and learned from."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from actors.learner.learner import Learner
from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.rollout.environment import MultiTurnRunner, MultiTurnSettings
from actors.types import Prompt, RewardInput, RolloutId, Sample, Sampling, reward_scale_file
from cluster.errors import UserError
from cluster.recipe.functions import load_function
from tests.actors.conftest import CONTEXT, QUESTIONS, prompts, reference_logprobs
from tests.actors.environment_functions import again, broken, number, tool
from tests.actors.functions.environments import Unsound
from tests.helpers import rlhf

pytestmark = pytest.mark.slow
Converse = Callable[..., list[Sample]]
Tiny = tuple[Path, LlamaForCausalLM]


def in_epoch(epoch: int) -> list[Prompt]:
    return [replace(prompt, epoch=epoch) for prompt in prompts("talk", 4)]


def named(function: object) -> str:
    return f"{function.__module__}:{function.__name__}"


@pytest.fixture(scope="module")
def talkative(fleet: Fleet, tiny: Tiny, versions: Iterator[int]) -> Fleet:
    """Gives the shared fleet weights that end a turn after a few tokens."""
    fleet.load(next(versions), ending(tiny[1]).state_dict())
    return fleet


def ending(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Returns the model with a longer row for the end token, which is then likely after some tokens and impossible
    after others."""
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.model.embed_tokens.weight[4] *= 15
    return other


def test_tokens_of_all_turns_are_kept_and_only_drawn_ones_have_probabilities(talkative: Fleet, tiny: Tiny) -> None:
    model, tokenizer = ending(tiny[1]), AutoTokenizer.from_pretrained(tiny[0])
    chat = Chat.of(tiny[0])
    asked = in_epoch(0)
    groups = talkative.generate(asked, Sampling(16, 1.0, 12, seed=2))
    turns = []
    for index, prompt in enumerate(asked):
        replies = [chat.between([{"role": "user", "content": text}]) for text in (f"and n{index}?", "sure?")]
        for sample in groups[prompt.id]:
            assert len(sample.loss_mask) == len(sample.logprobs) == len(sample.weight_versions) == len(sample.token_ids)
            assert sample.length <= 12
            given = [token for token, drawn in zip(sample.token_ids, sample.loss_mask, strict=True) if not drawn]
            # The tokens that were not drawn are the environment's replies.
            assert given in ([], replies[0], replies[0] + replies[1])
            turns.append(1 + (given != []) + (len(given) > len(replies[0])))
            last = len(sample.loss_mask) - sample.loss_mask[::-1].index(False) if given else 0
            assert sample.text == tokenizer.decode(sample.token_ids[last:], skip_special_tokens=True)
            expected = reference_logprobs(model, prompt.token_ids + sample.token_ids, len(prompt.token_ids), 1.0)
            for value, reference, drawn in zip(sample.logprobs, expected, sample.loss_mask, strict=True):
                assert value == (pytest.approx(reference, abs=1e-4) if drawn else 0.0)
    assert {1, 3} <= set(turns)


def test_a_prompt_that_is_drawn_for_its_reward_has_all_turns_outside_of_training_too(talkative: Fleet) -> None:
    groups = talkative.generate(prompts("talk", 4), Sampling(16, 1.0, 12, seed=2))
    assert any(not all(sample.loss_mask) for group in groups.values() for sample in group)


def test_a_prompt_that_is_drawn_for_something_else_has_one_turn(talkative: Fleet) -> None:
    groups = talkative.generate([*prompts("other", 2), *prompts("parity:talk", 2)], Sampling(4, 1.0, 60, seed=2))
    assert all(all(sample.loss_mask) for group in groups.values() for sample in group)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_learner_learns_from_drawn_tokens_alone(
    talkative: Fleet, tiny: Tiny, tmp_path: Path, algorithm: str
) -> None:
    ending(tiny[1]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny[0]).save_pretrained(tmp_path)
    reward_scale_file(tmp_path).write_text('{"mean": 0.0, "deviation": 1.0}')
    asked = in_epoch(1)
    groups = list(talkative.generate(asked, Sampling(4, 1.0, 60, seed=3)).values())
    samples = [sample for group in groups for sample in group]
    assert any(not all(sample.loss_mask) for sample in samples)
    learner = Learner(rlhf(algorithm=algorithm, learning_rate=1e-5), tmp_path, tmp_path, [], seed=0, threads=1)
    figures = learner.step(asked, groups, [[0.5, -0.5, 1.0, -1.0]] * 4)
    # A token at the wrong place would have another probability than the engine's.
    assert figures["behavior_gap"] < 1e-3
    assert figures["tokens"] == sum(sum(sample.loss_mask) for sample in samples)


@contextmanager
def runner(
    tiny: Tiny,
    name: str,
    inputs: dict[str, RewardInput],
    turns: int = 2,
    seconds: float = 30.0,
    context: int = CONTEXT,
) -> Iterator[Converse]:
    """Converses with an environment: draws are all the same short answer."""
    running = MultiTurnRunner(MultiTurnSettings(name, inputs, turns, seconds), Chat.of(tiny[0]), context)

    def first(prompt: Prompt) -> list[Sample]:
        return [Sample(RolloutId(3, prompt.id, 0), [20, 4], [-1.0, -1.0], [1, 1], "stop", "a", raw_text="[A]a")]

    async def draw(prompt: Prompt, sampling: Sampling) -> Sample:
        return Sample(RolloutId(3, prompt.id, 0), [21, 4], [-2.0, -2.0], [1, 1], "stop", "b", raw_text="b")

    def converse(most: int = 200) -> list[Sample]:
        asked = [Prompt(name, [2, 20, 4, 3], epoch=3) for name in inputs]

        async def all_groups() -> list[list[Sample]]:
            return await asyncio.gather(
                *(running.run(prompt, first(prompt), Sampling(1, 1.0, most), draw) for prompt in asked)
            )

        return [sample for group in asyncio.run(all_groups()) for sample in group]

    yield converse
    running.close()


ENVIRONMENTS = "tests.actors.functions.environments"


def test_concurrent_conversations_have_states_and_rewards_of_their_own(tiny: Tiny) -> None:
    inputs = {f"p{i}": RewardInput([{"role": "user", "content": f"q{i}"}], {}) for i in range(64)}
    with runner(tiny, f"{ENVIRONMENTS}:Counting", inputs, turns=4, seconds=10.0) as converse:
        begun = time.monotonic()
        samples = converse()
        seconds = time.monotonic() - begun
    # One after the other, 64 times 3 replies of 0.05 s would take 9.6 s.
    assert seconds < 8
    for sample in samples:
        assert (sample.failure, sample.reward, sample.text) == ("", 1.0 + 2.0 + 3.0, "b")
        assert [turn["content"] for turn in sample.history] == ["a", "[1, 2, 2]", "b", "[2, 4, 4]"]
        assert sample.length == 6


@pytest.mark.parametrize(
    ("fate", "how"),
    [
        ("raise", "raised KeyError: 'no such tool'"),
        ("hang", "took longer than 2 s"),
        ("block", "took longer than 2 s"),
        ("number", "gave 3: it must be a text, a message, a Reply or None"),
        ("nan", "gave nan: it must be a finite number"),
        ("object", "raised TypeError: Object of type Unsound is not JSON serializable"),
    ],
)
def test_an_environments_failure_fails_its_own_conversation_alone(tiny: Tiny, fate: str, how: str) -> None:
    inputs = {"talk-1": RewardInput([], {"fate": fate})}
    with runner(tiny, f"{ENVIRONMENTS}:Unsound", inputs, seconds=2.0) as converse:
        (failed,) = converse()
        assert failed.failure == f"environment {ENVIRONMENTS}:Unsound {how}, for prompt '3:talk-1' after answer 1"
        assert (failed.reward, failed.token_ids) == (None, [20, 4])
        inputs["talk-1"] = RewardInput([], {"fate": "well"})
        (sample,) = converse()
        assert (sample.failure, sample.reward) == ("", 1.0)


def test_a_reply_that_cannot_be_written_down_fails_its_conversation_alone(tiny: Tiny) -> None:
    with runner(
        tiny, f"{ENVIRONMENTS}:Unsound", {name: RewardInput([], {"fate": name}) for name in ("half", "well")}
    ) as converse:
        failed, sample = converse()
    assert "a text has half of a character" in failed.failure
    assert (sample.failure, sample.reward) == ("", 1.0)


@pytest.mark.parametrize(
    ("function", "wrong"),
    [(broken, "raised KeyError"), (number, "must be a text"), (tool, "no place for it")],
)
def test_a_function_that_fails_is_named(tiny: Tiny, function: object, wrong: str) -> None:
    with runner(tiny, named(function), {"talk-1": QUESTIONS["talk-1"]}) as converse:
        (sample,) = converse()
    assert wrong in sample.failure
    assert sample.failure.endswith("for prompt '3:talk-1' after answer 1")


def test_a_function_without_state_is_asked_again(tiny: Tiny) -> None:
    with runner(tiny, f"{ENVIRONMENTS}:fails_once", {"talk-1": QUESTIONS["talk-1"]}, turns=3) as converse:
        (sample,) = converse()
    assert sample.failure == ""
    assert [turn["content"] for turn in sample.history] == ["a", "sure?"]


@pytest.mark.parametrize(("context", "most"), [(CONTEXT, 2), (8, 60)])
def test_a_conversation_for_which_there_is_no_room_is_cut(tiny: Tiny, context: int, most: int) -> None:
    with runner(tiny, named(again), {"talk-1": QUESTIONS["talk-1"]}, context=context) as converse:
        (found,) = converse(most)
    assert (found.token_ids, found.finish_reason, found.history) == ([20, 4], "length", [])


def test_prompts_show_the_tools_of_the_environment(tiny: Tiny) -> None:
    chat = Chat(AutoTokenizer.from_pretrained(tiny[0]), Unsound.tools)
    chat.tokenizer.chat_template = "{% for t in tools %}{{ t.function.name }}{% endfor %}<|im_start|>"
    asked = [{"role": "user", "content": "a"}]
    assert chat.tokenizer.decode(chat.prompt(asked)).startswith("add")
    chat.tokenizer.chat_template = "<|im_start|>"
    with pytest.raises(UserError, match="has no place for it"):
        chat.prompt(asked)


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"environment tests\.actors\.environment_functions:nothing"):
        load_function("tests.actors.environment_functions:nothing", "environment")
