"""The ledger: the order of prompts, their outcomes, and checkpoints of both."""

import json
import random
from collections import Counter

import pytest

from actors.orchestrator.ledger import Ledger, Outcome
from actors.types import Prompt, PromptTurn, prompt_id
from cluster.errors import StageError

NAMES = [f"p{i}" for i in range(7)]
PROMPTS = [Prompt(name, [1]) for name in NAMES]


@pytest.mark.parametrize("seed", range(40))
def test_every_prompt_ends_once_an_epoch_whatever_happens(seed: int):
    """Takes, commits, requeues and crashes at random; a crash loses all that was committed after the checkpoint."""
    choose = random.Random(seed)
    ledger = Ledger(PROMPTS, seed=3)
    committed: list[PromptTurn] = []
    saved = json.dumps(ledger.state_dict()), list(committed)
    for _ in range(300):
        out = ledger.outstanding
        some = choose.sample(out, choose.randint(0, len(out)))
        action = choose.choice(["take", "take", "commit", "commit", "requeue", "save", "crash"])
        if action == "take":
            ledger.take(choose.randint(1, 4))
        elif action == "commit":
            ledger.commit(some, choose.choice(list(Outcome)))
            committed += some
        elif action == "requeue":
            ledger.requeue(some)
        elif action == "save":
            saved = json.dumps(ledger.state_dict()), list(committed)
        else:
            ledger = Ledger(PROMPTS, seed=3)
            ledger.load_state_dict(json.loads(saved[0]))
            committed = list(saved[1])
    rest = ledger.outstanding
    ledger.commit(rest, Outcome.TRAINED)
    last = ledger.state_dict()["epoch"]
    while (turn := ledger.take(1)[0]).epoch <= last:
        ledger.commit([turn], Outcome.TRAINED)
        committed.append(turn)
    committed += rest
    assert Counter(committed) == {PromptTurn(epoch, prompt): 1 for epoch in range(last + 1) for prompt in NAMES}
    assert sum(ledger.outcomes.values()) == len(committed)


def test_orders_depend_on_seed_and_epoch_alone():
    first, second, other = Ledger(PROMPTS, 1), Ledger(PROMPTS[::-1], 1), Ledger(PROMPTS, 2)
    turns = first.take(14)
    assert turns == second.take(14)
    assert turns != other.take(14)
    assert [turn.prompt for turn in turns[:7]] != [turn.prompt for turn in turns[7:]]
    assert sorted(turn.prompt for turn in turns[7:]) == NAMES
    assert [turn.epoch for turn in turns] == [0] * 7 + [1] * 7


def test_turns_without_an_outcome_are_handed_out_first_after_a_crash():
    ledger = Ledger(PROMPTS, 1)
    turns = ledger.take(4)
    ledger.commit(turns[:2], Outcome.FILTERED)
    resumed = Ledger(PROMPTS, 1)
    resumed.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert resumed.outstanding == []
    assert resumed.take(3) == [*turns[2:], *ledger.take(1)]
    assert resumed.outcomes == {"trained": 0, "filtered": 2, "failed": 0}


def test_committing_twice_records_nothing():
    ledger = Ledger(PROMPTS, 1)
    first, second = ledger.take(2)
    ledger.commit([first], Outcome.TRAINED)
    with pytest.raises(ValueError, match="not outstanding"):
        ledger.commit([second, first], Outcome.TRAINED)
    assert ledger.outstanding == [second]
    assert ledger.outcomes["trained"] == 1


def test_a_checkpoint_of_other_prompts_is_refused():
    with pytest.raises(StageError, match="other prompts"):
        Ledger(PROMPTS[1:], 1).load_state_dict(Ledger(PROMPTS, 1).state_dict())


def test_order_and_checkpoints_depend_on_names_and_not_on_ids():
    """Earlier versions took the name for the id: the order is theirs, and their checkpoints are read."""
    hashed = [Prompt(prompt_id(name), [1], name) for name in NAMES]
    before, after = Ledger(PROMPTS, 1), Ledger(hashed, 1)
    turns = before.take(10)
    assert [turn.prompt for turn in after.take(10)] == [prompt_id(turn.prompt) for turn in turns]
    before.commit(turns[:8], Outcome.TRAINED)
    resumed = Ledger(hashed, 1)
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert resumed.take(3) == [PromptTurn(turn.epoch, prompt_id(turn.prompt)) for turn in [*turns[8:], *before.take(1)]]
