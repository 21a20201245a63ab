"""The use of keys, as the gateways of one server report it to each other.

Each gateway admits requests by its own counts and by what it last heard of the others. Within `SHARE_SECONDS` several
gateways may admit what only one may: at the worst, each once the rest of a key's limit. What is too much of the tokens
and requests a minute is a debt that the next minutes pay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SHARE_SECONDS = 1.0


@dataclass(frozen=True)
class KeyUse:
    """The use of the keys by the requests of one gateway.

    Attributes:
        gateway: a name of the process, whose counts begin with it.
        taken: what was taken in all of a limit a minute, and that limit, by the key's hash and the limit's name.
        running: the requests in progress, by the key's hash.
        budgets: the tokens used and reserved of budgets, of former processes too, by the key's hash.
    """

    gateway: str
    taken: Mapping[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, int] = field(default_factory=dict)
