"""Whether a server could listen on a port, asked before anything else is done."""

from __future__ import annotations

import errno
import socket

from briton.errors import BritonError, ConfigError


def claim_port(host: str, port: int, flag: str, host_flag: str = "--host") -> int:
    """Return `port` if a server could listen on it now, or a free one for port 0. The flags are named in errors.

    Raises BritonError naming port and flag when something listens there already, ConfigError when the host is not this
    machine's.
    """
    field = "briton.grpc_host" if host_flag == "--grpc-host" else "briton.host"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections linger (TIME_WAIT) counts as free, one with a listener not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise ConfigError(f"{host_flag} {host}: {error.strerror}", field) from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host_flag} {host} is not an address of this machine", field) from None
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise BritonError(f"port {port} on {host} {reason}: choose another with {flag}") from None
