"""The balance that a stage ends with where too little is left."""

import pytest

from cluster.errors import UserError
from pipelines.data.balance import Loss, balance, require_enough


def test_a_balance_adds_up_and_names_the_largest_loss_with_its_key() -> None:
    losses = [
        Loss("bad", 1),
        Loss("too long", 1200, "raise context (now 8)"),
        Loss("none of these", 0),
        Loss("alike", 3),
    ]
    require_enough("rows", 2, losses, 2, "to train on", "add rows")
    with pytest.raises(UserError) as raised:
        require_enough("rows", 1, losses, 2, "to train on", "add rows", ["2 files in other formats"])
    assert str(raised.value) == (
        "1,205 rows read, 1 left, and 2 needed, to train on (bad 1, too long 1,200, alike 3; 2 files in other formats)"
        "; most are lost to 'too long': raise context (now 8), or add rows"
    )


def test_a_balance_without_losses_or_keys_says_what_helps() -> None:
    assert balance("rows", 0, [], "and 1 needed", "add rows") == "0 rows read, 0 left, and 1 needed: add rows"
    assert balance("rows", 0, [Loss("alike", 2)], "and 1 needed", "add rows").endswith("lost to 'alike': add rows")
