"""The data of supervised fine-tuning: conversations become shards of packed rows, in tasks on Ray.

Rendering reads the parts of the sources, packing shuffles what they hold and writes the shards, and text of the corpus
may be mixed in. The driver holds 4 bytes a conversation. After a kill, finished tasks are not done again.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from actors.model.chat import Chat
from actors.trainer.data import shards_in
from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write, write_json
from cluster.run.folder import SCRATCH, fingerprint
from pipelines.corpus.tasks import Report, Task, add_counts, phase_progress, run_tasks
from pipelines.data.balance import Loss, require_enough
from pipelines.data.chat_formats import require_rows
from pipelines.data.pack_chats import PackPhase, shard_parts, write_order
from pipelines.data.render_chats import RenderPhase
from pipelines.data.source_rows import require_few_bad_rows, source_splits
from pipelines.data.text_rows import TextRowsPhase, chosen_rows, text_row_counts

# The rows that cannot be used, a JSON line each: place, reason, excerpt.
QUARANTINE = "quarantine.jsonl"
# In the scratch folder: intermediate files, and the metrics of shards that are whole.
WORK, DATA = "data", "data.json"


def make_shards(recipe: Recipe, tokenizer: Path, corpus: Path, out: Path) -> dict[str, Any]:
    """Writes the shards, with whole conversations held out, and the quarantine, unless they are there.

    Args:
        tokenizer: the folder of the tokenizer with its chat template.
        corpus: the corpus's training shards, for `sft.pretrain_share`.
        out: the stage's folder.

    Returns:
        Metrics of the data: conversations used, cut and too long, packed rows, rows that could not be used, layouts
        of the sources, fields of their rows that nothing reads, and rows of text.

    Raises:
        UserError: there are too few conversations to train on, or too many rows that cannot be used.
        DeadlineError: no task finished within the recipe's deadline.
    """
    whole = out / SCRATCH / DATA
    if not whole.exists():
        try:
            with phase_progress(Console()) as progress:
                made = _Preparation(recipe, tokenizer, corpus, out, progress).make()
        except UserError:
            # A corrected function has the same name, so that its tasks would count as done.
            shutil.rmtree(out / SCRATCH / WORK, ignore_errors=True)
            raise
        write_json(whole, made)
    shutil.rmtree(out / SCRATCH / WORK, ignore_errors=True)
    metrics: dict[str, Any] = json.loads(whole.read_text(encoding="utf-8"))
    return metrics


class _Preparation:
    """One run of all phases."""

    def __init__(self, recipe: Recipe, tokenizer: Path, corpus: Path, out: Path, progress: Progress) -> None:
        self.recipe, self.tokenizer, self.corpus, self.out, self.progress = recipe, tokenizer, corpus, out, progress
        self.work, self.context = out / SCRATCH / WORK, recipe.model.context

    def make(self) -> dict[str, Any]:
        """Runs the phases; returns their metrics."""
        render, rendered = self._render()
        names = ("conversations", "too_long", "cut", "bad", "tokens")
        total = {name: sum(report[name] for report in rendered) for name in names}
        ignored = dict(add_counts(rendered, "ignored"))
        read = total["conversations"] + total["too_long"] + total["bad"]
        require_rows(read, self.recipe.sft.sources)
        self._quarantine(render, rendered, read)
        first = next((report["first_bad"] for report in rendered if report["bad"]), None)
        losses = [
            Loss("cannot be used", total["bad"], f"fix what is wrong, first: {first}"),
            Loss("too long", total["too_long"], f"raise model.context (now {self.context} tokens)"),
        ]
        purpose = "one to train on and one to hold out"
        require_enough("conversations of sft.sources", total["conversations"], losses, 2, purpose, "add conversations")
        rows = self._pack(render, rendered, total["conversations"], total["tokens"])
        for count, what in (
            (total["bad"], f"rows cannot be used; {self.out / QUARANTINE} lists them"),
            (total["too_long"], f"conversations do not fit into {self.context} tokens"),
            (total["cut"], f"conversations lost what does not fit into {self.context} tokens"),
            *((count, f"rows have a field {name} that nothing reads") for name, count in sorted(ignored.items())),
        ):
            if count:
                self.progress.console.print(f"fine-tuning: {count:,} of {read:,} {what}", markup=False, highlight=False)
        used = {name: total[name] for name in names}
        return {**used, **rows, "layouts": dict(add_counts(rendered, "layouts")), "ignored_fields": ignored}

    def _run(self, name: str, phase: Any, tasks: Sequence[Task]) -> list[Report]:
        done, deadline = self.work / "done" / name, self.recipe.cluster.deadline_seconds
        return run_tasks(f"fine-tuning: {name}", done, tasks, phase, self.progress, deadline)

    def _render(self) -> tuple[RenderPhase, list[Report]]:
        splits = tuple(split for source in self.recipe.sft.sources for split in source_splits(source))
        phase = RenderPhase(splits, self.work / "rendered", self.tokenizer, self.context, self.recipe.seed)
        tasks = [
            Task(
                f"part-{index:05d}",
                fingerprint([split.source.model_dump(), split.path, split.span]),
                (phase.output(index),),
            )
            for index, split in enumerate(splits)
        ]
        return phase, self._run("render", phase, tasks)

    def _quarantine(self, render: RenderPhase, rendered: Sequence[Report], read: int) -> None:
        """Joins the rows that cannot be used, in the order of the sources, and refuses too many."""
        file = self.out / QUARANTINE
        file.unlink(missing_ok=True)
        bad = [index for index, report in enumerate(rendered) if report["bad"]]
        if bad:
            with atomic_write(file) as side, side.open("wb") as target:
                for index in bad:
                    with render.bad_file(index).open("rb") as part:
                        shutil.copyfileobj(part, target)
        first = rendered[bad[0]]["first_bad"] if bad else ""
        most, count = self.recipe.sft.max_bad_share, sum(report["bad"] for report in rendered)
        require_few_bad_rows(count, first, read, most, file, "sft.sources", "sft.max_bad_share")

    def _pack(self, render: RenderPhase, rendered: Sequence[Report], conversations: int, tokens: int) -> dict[str, int]:
        """Writes the shards; returns the number of rows to train on, and how many of them are text."""
        settings = self.recipe.sft
        held_out = max(1, round(conversations * settings.held_out_share))
        write_order([report["conversations"] for report in rendered], self.recipe.seed, self.work)
        parts = tuple(shard_parts(conversations, tokens, held_out))
        phase = PackPhase(
            shards=parts,
            folder=self.work / "packed" if settings.pretrain_share else self.out / "shards",
            rendered=render.folder,
            order=self.work,
            context=self.context,
            padding_id=Chat.of(self.tokenizer).padding_id,
        )
        key = fingerprint([rendered, len(parts)])
        tasks = [Task(part.name.replace("/", "-"), key, (phase.path(index),)) for index, part in enumerate(parts)]
        rows = [report["rows"] for report in self._run("pack", phase, tasks)]
        trained = [part.name.startswith("train/") for part in parts]
        found = {"rows": sum(count for count, own in zip(rows, trained, strict=True) if own)}
        if not settings.pretrain_share:
            return found
        corpus = tuple(shards_in(self.corpus))
        counts = text_row_counts(
            [count * own for count, own in zip(rows, trained, strict=True)],
            sum(shard.rows for shard in corpus),
            settings.pretrain_share,
        )
        packed = tuple(phase.path(index) for index in range(len(parts)))
        targets = tuple(self.out / "shards" / part.name for part in parts)
        chosen = chosen_rows(sum(shard.rows for shard in corpus), counts, self.recipe.seed)
        mix = TextRowsPhase(packed, targets, corpus, tuple(chosen))
        tasks = [Task(part.name.replace("/", "-"), key, (targets[index],)) for index, part in enumerate(parts)]
        self._run("mix in text", mix, tasks)
        return {**found, "text_rows": sum(counts)}
