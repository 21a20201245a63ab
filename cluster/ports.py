"""Whether a port is free, asked before anything starts."""

import socket

from cluster.failures import UserError


def require_free_port(host: str, port: int) -> None:
    """Checks that this machine can listen on the address.

    Raises:
        UserError: another program listens there, or the address is not one of this machine's.
    """
    advice = "stop the program that uses it, or choose another port (serve.port=… or --port …)"
    if not 0 < port < 65536:
        raise UserError(f"port {port} is none: choose one from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Connections of a server that has just ended linger; this option looks past them, not past a listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; {advice}") from error
