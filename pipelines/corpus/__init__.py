"""Corpus stage: turns files, web captures and other sources into packed rows of token ids for pre-training.

A document passes five packages in this order, each of which imports only from the packages before it:

read    source files -> records -> text
clean   text -> normalized text without personal data
filter  text -> signals -> kept or dropped by rules
dedup   kept documents -> signatures -> clusters -> training and held-out split
tokens  documents -> token ids -> packed rows -> shards

`stage` runs the phases in order; `cut` cuts large files, and `prepare` runs read, clean and filter in one pass. `tasks`
runs a phase's tasks in parallel and resumes after a kill, `heartbeat` reports that they make progress, `examples`
trains the quality classifier, `checks` refuses sources that cannot be read and a corpus of too few documents, `counts`
counts documents, `tables` defines the files between phases, `report` writes the statistics and `summary` prints them.
`texts` reads texts that become no corpus.
"""

from pipelines.corpus.stage import run

__all__ = ["run"]
