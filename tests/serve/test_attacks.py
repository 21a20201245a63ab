"""The attacks on one server that once hurt all its clients, side by side, beside a client that means no harm."""

import psutil
import pytest

from infra.bench.servers.attackers import ATTACKS
from infra.bench.servers.attacks import measure
from tests.serve.conftest import Server

pytestmark = pytest.mark.slow

ROUNDS = 3
MEMORY = 100 << 20
# Seconds between tokens, at the 99th percentile. Each of the attacks once stopped every client for 0.9 s or more. Other
# tests take half of the cores, and beside them a client waits longer: `infra.bench.servers.attacks` has the figure of a
# quiet machine.
DISTURBED = 0.15


def test_other_clients_are_served_during_attacks(server: Server) -> None:
    """Other processes of the machine disturb a round, but no attack may disturb all."""
    family = psutil.Process().children(recursive=True)
    replicas = [process for process in family if "ServeReplica" in " ".join(process.cmdline())]
    # One replica with the two models, and two gateways.
    assert len(replicas) == 3
    rounds = []
    for _ in range(ROUNDS):
        found = measure(server.port, "policy", replicas, alone=1, seconds=3)
        rounds.append(found)
        assert found.grown < MEMORY, found
        assert found.outcomes.keys() == ATTACKS.keys()
        for name in ("padding", "long_text", "many_parts"):
            assert found.outcomes[name], found
            assert found.outcomes[name].keys() <= {"400", "413"}, found
        assert "sent all" not in found.outcomes["endless_header"].keys() | found.outcomes["endless_body"].keys()
        if found.attacked < max(3 * found.alone, DISTURBED):
            return
    pytest.fail(f"the client waited longer: {rounds}")
