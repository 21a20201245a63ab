"""Evaluation tasks and their items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

# accuracy: the right option has the largest log-probability; normalized: per character, as lm-eval's acc_norm; mass:
# the right options' share of all options' probability, as TruthfulQA's mc2; checked: a function accepts the greedy
# answer; contrast: the first option leads the second by more, per character, at the first of two twins than at the
# second, whatever the model thinks of their wording; bits: bits per byte of text, of which less is better.
Metric = Literal["accuracy", "normalized", "mass", "checked", "contrast", "bits"]


@dataclass(frozen=True)
class Item:
    """One question or text.

    Attributes:
        id: unique in its task.
        prompt: the user's message, or the beginning of a text; may be empty.
        options: continuations to compare, with the space that joins them to a bare prompt; of a text, the text alone.
        right: the indices of the right options.
        check: accepts an answer; for the metric `checked` alone.
        expected: a right answer, or a description of one, for people.
        group: the part of the task that it belongs to, such as a phenomenon.
        twin: the id of a pair of items that count as one case; empty for none. Both must be right, but for the metric
            `contrast`.
    """

    id: str
    prompt: str
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = (0,)
    check: Callable[[str], bool] | None = None
    expected: str = ""
    group: str = ""
    twin: str = ""


@dataclass(frozen=True)
class EvaluationTask:
    """Items that are measured alike.

    Attributes:
        name: letters, digits, dots, dashes and underscores.
        title: a title for people.
        metric: the measure.
        items: the items, at least one.
        chat: whether a model with a chat template sees the prompt as a user's message.
        bare: how a model without one sees it; `{}` stands for the prompt.
        max_tokens: the most tokens of an answer.
        bad_rows: the reasons why rows of its file could not be used, each with file and line.
    """

    name: str
    title: str
    metric: Metric
    items: Sequence[Item]
    chat: bool = False
    bare: str = "{}"
    max_tokens: int = 32
    bad_rows: tuple[str, ...] = ()

    @property
    def chance(self) -> float | None:
        """The value that guessing reaches; None where there is none."""
        if self.metric in ("bits", "checked"):
            return None
        if self.metric == "contrast":
            return 0.5
        shares = [len(item.right) / len(item.options) for item in self.items]
        if not self.twins:
            return sum(shares) / len(shares)
        products: dict[str, float] = {}
        for item, share in zip(self.items, shares, strict=True):
            products[item.twin] = products.get(item.twin, 1.0) * share
        return sum(products.values()) / len(products)

    @property
    def twins(self) -> bool:
        """Whether items count in pairs."""
        return any(item.twin for item in self.items)

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better."""
        return self.metric != "bits"
