"""TLS between gateway and replicas, with the files that Ray itself uses for TLS between its processes.

The variables are those of Ray's documentation: `RAY_USE_TLS`, `RAY_TLS_SERVER_CERT`, `RAY_TLS_SERVER_KEY` and
`RAY_TLS_CA_CERT`. As in Ray, both ends show a certificate of the cluster's authority. Host names are not compared:
every certificate of this authority belongs to the cluster, and the deployment's secret tells deployments apart.
"""

import os
import ssl

from cluster.errors import UserError


def gateway_context() -> ssl.SSLContext | None:
    """Returns the gateway's TLS context; None if Ray uses no TLS.

    Raises:
        UserError: Ray's files cannot be used.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER)


def replica_context() -> ssl.SSLContext | None:
    """Returns a replica's TLS context; None if Ray uses no TLS.

    Raises:
        UserError: Ray's files cannot be used.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def _context(protocol: int) -> ssl.SSLContext | None:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    names = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
    try:
        certificate, key, authority = (os.environ[name] for name in names)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except KeyError as error:
        raise UserError(f"RAY_USE_TLS is set, and {error.args[0]} is not") from error
    except OSError as error:
        raise UserError(f"RAY_USE_TLS is set, and the files of {', '.join(names)} cannot be used: {error}") from error
    return context
