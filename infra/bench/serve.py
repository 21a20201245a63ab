"""The server under load: beside its peers, over time, with killed processes, with changing weights and replicas.

    compare      beside bare vLLM (--peer vllm) or Ray's own server (--peer ray)
    soak         the server alone: its memory, open files and errors over time
    kill         the server alone: what clients see when a process of it is killed
    promotions   what clients notice of ten promotions of other weights in five minutes of streams
    replicas     when another replica starts and ends, and what clients notice of it

The model has random weights and the demo's shape; --size gives it another, --model names a Hugging Face directory.

python -m infra.bench.serve [compare [--size 2.5M | --model DIRECTORY] [--seconds 5] [--rounds 3]
    [--concurrency 1 8 32] [--peer vllm | ray] | soak [--seconds 1800] | kill | promotions [--seconds 300]
    [--promotions 10] [--clients 6] | replicas [--clients 8] [--idle 10]]
        compare, promotions and replicas, unless one is named
"""

import argparse
import signal
import sys
from collections.abc import Callable

from infra.bench.servers import comparison, endurance, promotions, replicas
from infra.bench.servers.start import add_model

Options = Callable[[argparse.ArgumentParser], None]
MEASUREMENTS: dict[str, tuple[Options, Callable[[argparse.Namespace], None]]] = {
    "compare": (comparison.add_options, comparison.measure),
    "soak": (endurance.add_soak_options, endurance.measure_soak),
    "kill": (add_model, endurance.measure_kill),
    "promotions": (promotions.add_options, promotions.measure),
    "replicas": (replicas.add_options, replicas.measure),
}
USUAL = ("compare", "promotions", "replicas")


def main() -> None:
    """Runs the measurements that the command line names."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = words.add_subparsers(dest="what", metavar="measurement")
    for name, (add_options, _) in MEASUREMENTS.items():
        add_options(commands.add_parser(name))
    given = words.parse_args()
    # So that the servers end with the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for one in [given] if given.what else [words.parse_args([name]) for name in USUAL]:
        print(f"-- {one.what}", flush=True)
        MEASUREMENTS[one.what][1](one)


if __name__ == "__main__":
    main()
