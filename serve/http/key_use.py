"""The use of keys, as the gateways of one server report it to each other.

Each gateway admits requests by its own counts and by the last reports of the others. Within `SHARE_SECONDS` several
gateways may together admit more than a key's limit: at the worst, each the whole rest of it. The excess of tokens and
requests a minute is a debt that is taken off the next minutes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SHARE_SECONDS = 1.0


@dataclass(frozen=True)
class KeyUse:
    """The use of the keys by the requests of one gateway.

    Attributes:
        gateway: a name of the process, whose counts begin with it.
        taken: the limit a minute and the total taken of it so far, by the key's hash and the limit's name.
        running: the requests in progress, by the key's hash.
        budgets: the tokens used and reserved of budgets, of former processes too, by the key's hash.
    """

    gateway: str
    taken: Mapping[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, int] = field(default_factory=dict)
