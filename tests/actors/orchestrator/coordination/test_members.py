"""The states of rollout actors."""

import itertools

import pytest

from actors.orchestrator.coordination.members import ActorState, advance


def test_only_the_listed_transitions_exist():
    allowed = {
        ("starting", "stale"),
        ("stale", "ready"),
        ("ready", "stale"),
        ("stale", "draining"),
        ("ready", "draining"),
        *((state, "dead") for state in ("starting", "stale", "ready", "draining")),
    }
    for state, to in itertools.product(ActorState, ActorState):
        if (state.value, to.value) in allowed:
            assert advance(state, to) is to
        else:
            with pytest.raises(ValueError, match="cannot go from"):
                advance(state, to)
