"""Measures the corpus stage's memory at 1, 4 and 16 times a corpus, and its rate with one worker and with two.

python -m infra.bench.corpora.scale [documents]        of the smallest corpus, of 4 KB each; default 3,000

Runs the whole stage on Ray, as a user does: one file of lines, cut into splits of 8 MB.
"""

import argparse
import tempfile
from pathlib import Path

from infra.bench.corpora.documents import documents, write_lines
from infra.bench.corpora.stage_run import phases, start, watch, write_recipe

DOCUMENTS = 3000
# Multiples of the smallest corpus, and workers.
RUNS = ((1, 2), (4, 2), (16, 2), (16, 1))


def main(count: int) -> None:
    """Prints a line per run, then the growth. Most of a small corpus's seconds are the start of the workers."""
    peaks, rates = {}, {}
    for times, workers in RUNS:
        with tempfile.TemporaryDirectory(prefix="triptych-scale-") as name:
            folder = Path(name)
            lines = write_lines(folder / "lines.jsonl", documents(times * count))
            found = watch(start(write_recipe(folder, lines), workers))
            peaks[times, workers] = found
            rates[times, workers] = times * count / phases(folder)
            print(
                f"{times:2}x, {workers} workers: {times * count:,} documents, {lines.stat().st_size / 1e6:.0f} MB, "
                f"{rates[times, workers]:,.0f} documents/s, {found.seconds:.0f} s with all starts; most memory: "
                f"driver {found.driver:,} MB, a worker {found.worker:,} MB, workers together {found.workers:,} MB",
                flush=True,
            )
    driver, worker = (getattr(peaks[16, 2], who) / getattr(peaks[1, 2], who) for who in ("driver", "worker"))
    print(f"memory at 16x over 1x: driver {driver:.2f}, a worker {worker:.2f}")
    print(f"rate of two workers over one, at 16x: {rates[16, 2] / rates[16, 1]:.2f}")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("documents", nargs="?", type=int, default=DOCUMENTS)
    main(words.parse_args().documents)
