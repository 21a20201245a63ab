import socket

import pytest

from cluster.failures import UserError
from cluster.ports import require_free_port


def test_a_taken_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: Address already in use.*another port") as caught:
            require_free_port("127.0.0.1", port)
    assert "\n" not in str(caught.value)
    require_free_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("no.such.host.invalid", 8000)])
def test_impossible_addresses_are_refused(host: str, port: int) -> None:
    with pytest.raises(UserError):
        require_free_port(host, port)
