"""Describes how many items a stage read, lost and has left, where too few are left to go on."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import UserError


@dataclass(frozen=True)
class Loss:
    """Items that were read and are not used, for one reason.

    Attributes:
        reason: a few words, such as "too long".
        count: number of items.
        remedy: imperative with the recipe key that governs the loss, such as "raise model.context (now 64)"; empty if
            no key does.
    """

    reason: str
    count: int
    remedy: str = ""


def require_enough(
    what: str, left: int, losses: Sequence[Loss], needed: int, purpose: str, remedy: str, besides: Sequence[str] = ()
) -> None:
    """Refuses to go on with fewer than `needed` items; the arguments are those of `balance`.

    Raises:
        UserError: fewer are left; the message is the balance.
    """
    if left < needed:
        raise UserError(balance(what, left, losses, f"and {needed} needed, {purpose}", remedy, besides))


def balance(what: str, left: int, losses: Sequence[Loss], needed: str, remedy: str, besides: Sequence[str] = ()) -> str:
    """Describes in one line how many items were read, how many each reason took, and what to do about the largest.

    Args:
        what: the items, in the plural, and where they are from, such as "documents of corpus.sources".
        left: number of items that can be used.
        losses: all others that were read, in the order in which they were lost.
        needed: the number that is needed, such as "and 2 needed, one to train on and one to hold out".
        remedy: imperative that helps whatever the largest loss is, such as "add sources".
        besides: losses that cannot be counted in items, such as "3 files in other formats".
    """
    losses = [loss for loss in losses if loss.count]
    read = left + sum(loss.count for loss in losses)
    account = "; ".join([", ".join(f"{loss.reason} {loss.count:,}" for loss in losses), *besides]).strip("; ")
    said = f"{read:,} {what} read, {left:,} left, {needed}" + (f" ({account})" if account else "")
    if not losses:
        return f"{said}: {remedy}"
    largest = max(losses, key=lambda loss: loss.count)
    return f"{said}; most are lost to {largest.reason!r}: " + (f"{largest.remedy}, or " * bool(largest.remedy)) + remedy
