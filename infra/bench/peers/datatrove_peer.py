"""The peer's half of infra/bench/corpus.py, run by a Python that has datatrove: filters, then MinHash's four steps.

python datatrove_peer.py LINES FOLDER    prints JSON: processor seconds of each step, and documents after each
"""

import json
import resource
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def main(lines: Path, folder: Path) -> None:
    """Runs the steps one after the other in this process."""
    config = MinhashConfig()
    filters = [
        GopherQualityFilter(),
        GopherRepetitionFilter(),
        C4QualityFilter(min_num_sentences=3, min_words_per_line=5),
        FineWebQualityFilter(),
    ]
    kept, final = folder / "kept", folder / "final"
    signatures, buckets, removed = (str(folder / name) for name in ("signatures", "buckets", "removed"))
    # Loads, before the measurement, what each filter loads once a process.
    for step in filters:
        step.filter(next(iter(JsonlReader(str(lines.parent), glob_pattern=lines.name)())))
    steps = {
        "filters": ([JsonlReader(str(lines.parent), glob_pattern=lines.name), *filters, JsonlWriter(str(kept))], 1),
        "signatures": ([JsonlReader(str(kept)), MinhashDedupSignature(signatures, config)], 1),
        "buckets": ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        "clusters": ([MinhashDedupCluster(buckets, removed, config=config)], 1),
        "removal": ([JsonlReader(str(kept)), MinhashDedupFilter(removed), JsonlWriter(str(final))], 1),
    }
    seconds = {}
    for name, (pipeline, tasks) in steps.items():
        start = _processor()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / "logs" / name)).run()
        seconds[name] = _processor() - start
    left = {name: sum(1 for _ in JsonlReader(str(place))()) for name, place in (("filters", kept), ("final", final))}
    print(json.dumps({"seconds": seconds, "documents": left}))


def _processor() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
