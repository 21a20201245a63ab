"""The page infra/docs/models.md: kinds of models that behave alike, in one row of a table."""

from collections.abc import Mapping

from transformers import __version__

STEPS = ("full", "adapters", "rlhf")
NOT_MEASURED = "not measured"
_HEAD = "| kinds | every weight | adapters | RLHF |\n|---|---|---|---|\n"
_LEGEND = """- *Every weight*, *adapters*: loaded as `model.start_from`, trained for one step on packed rows in float32,
  exported, loaded afresh, and its loss compared with the trained model's. *Proved*: they are equal to 1e-5.
- *RLHF*: an engine of vLLM started from the untrained model, took the trained weights over as RLHF sends them, and
  scored tokens. *Synced*: its log-probabilities are those of transformers to 1e-3.
- *Refused*: the reason is given before anything starts.
- *Stops*: RLHF compares weights and log-probabilities before it trains, and ends with an error.
- *No engine*: vLLM does not run it: it can be trained, and neither served nor trained by RLHF.
- *Not built*: the benchmark found no tiny configuration; nothing is known of it.
- *Not measured*: nothing is known yet; the same command goes on with these."""


def page(found: Mapping[str, Mapping[str, str]]) -> str:
    """Writes the page.

    Args:
        found: the outcome of each of `STEPS`, by kind (model_type).
    """
    counts = {
        step: sum(kind.get(step) == good for kind in found.values())
        for step, good in zip(STEPS, ("proved", "proved", "synced"), strict=True)
    }
    intro = (
        f"What `python -m infra.bench.models` found: each of the {len(found)} kinds of causal language models of\n"
        f"transformers {__version__} that are no part of a larger one, by `model_type`, tiny and with random weights."
    )
    full, adapters, synced = counts.values()
    result = f"{full} kinds are proved in full, {adapters} by adapters, and {synced} synced. To try one's own kind:"
    command = "```console\n$ python -m infra.bench.models llama qwen3\n```"
    return "\n\n".join(["# Kinds of models", intro, _LEGEND, result, command, _HEAD + "".join(_rows(found))])


def _rows(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for kind, steps in found.items():
        groups.setdefault(tuple(steps.get(step, NOT_MEASURED) for step in STEPS), []).append(kind)
    order = sorted(groups.items(), key=lambda group: (group[0][0] != "proved", group[0][2] != "synced", -len(group[1])))
    return [f"| {', '.join(sorted(kinds))} | {' | '.join(_cells(steps))} |\n" for steps, kinds in order]


def _cells(steps: tuple[str, ...]) -> list[str]:
    full, adapters, rlhf = (step.replace("|", "\\|") for step in steps)
    same = full != "proved"
    return [full, "the same" if same and adapters == full else adapters, "the same" if same else rlhf]


def read_page(text: str) -> dict[str, tuple[str, ...]]:
    """Reads the page's table: the cells of every kind."""
    rows = text.partition(_HEAD)[2].splitlines()
    cells = [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in rows]
    return {kind: row[1:] for row in cells for kind in row[0].split(", ")}
