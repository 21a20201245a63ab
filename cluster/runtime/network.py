"""The network interface over which the workers of one model talk to each other."""

import os

import psutil

# The variables by which gloo and NCCL are told an interface.
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """Returns the name of this machine's interface that has an IP address; None if there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        # IPv6 addresses carry the interface's name after a percent sign.
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    return None


def use_node_interface() -> None:
    """Makes gloo and NCCL, in this process, use the interface of the address that Ray knows this node by.

    By itself gloo takes the interface of the address that the host's name resolves to. On many images that is
    127.0.0.1, where workers of other hosts cannot reach it. Variables that are set already are kept.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO, name)
        # With the equals sign, NCCL matches the whole name and not a prefix.
        os.environ.setdefault(NCCL, f"={name}")
