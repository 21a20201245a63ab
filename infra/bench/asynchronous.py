"""Samples a second of RLHF with rollouts and learning in turn, and beside each other.

The stage runs as a command on a copy of a finished run: by current weights only (`max_staleness` 0), with one version's
staleness, and with new weights swapped in under answers too. One rollout actor draws; on two cores it and the learner
have one each, so that they can overlap. A step is so small that both take about as long: with more prompts the learner
is at work nearly all the time, and the whole machine is no faster in two halves. The medians of the steps but the first
are compared.

make demo && python -m infra.bench.asynchronous [--run runs/demo] [--prompts 4] [--samples 8] [--tokens 96]
    [--steps 30]
"""

import statistics

from rich.console import Console
from rich.table import Table

from infra.bench.faults import parsed
from infra.bench.grpo import own, shape_options

MODES = {
    "in turn": {"fleet.max_staleness": 0},
    "beside each other": {"fleet.max_staleness": 1},
    "swapped in flight": {"fleet.max_staleness": 1, "fleet.swap_in_flight": "true"},
}


def main() -> None:
    """Prints a table."""
    given = parsed(shape_options(__doc__, "asynchronous.log", prompts=4, tokens=96, steps=30))
    shape = (given.steps, given.prompts, given.samples, given.tokens)
    table = Table("mode", "samples/s", "of in turn", "learner idle", "rollouts idle")
    rates: list[float] = []
    for mode, settings in MODES.items():
        rows = own(given.run, given.log, *shape, settings | {"fleet.rollout_actors": 1})
        rates.append(given.prompts * given.samples / statistics.median(row["seconds"] for row in rows))
        idle = [statistics.mean(row[name] for row in rows) for name in ("learner_idle", "rollout_idle")]
        table.add_row(mode, f"{rates[-1]:.1f}", f"{rates[-1] / rates[0]:.2f}", *(f"{share:.2f}" for share in idle))
    Console().print(table)


if __name__ == "__main__":
    main()
