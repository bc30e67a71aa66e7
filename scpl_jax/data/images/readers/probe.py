"""A quick look whether a host can be reached at all."""

import socket
import threading
import urllib.request
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def reachable(url: str, timeout: float = 5.0) -> bool:
    """Tell whether the host of an address accepts a connection.

    Where the environment names a proxy for that address, the proxy is tried in the host's stead.

    Args:
        url: an http or https address.
        timeout: seconds after which the answer is no.
    """
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or _PORTS[address.scheme]
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = address.hostname or "", address.port or _PORTS.get(address.scheme, 80)
    answers: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=timeout):
                answers.append(True)
        except OSError:
            answers.append(False)

    # A socket's timeout does not cover the look-up of the name. The thread must not outlive the program.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers == [True]
