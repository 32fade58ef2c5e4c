"""`visionpipe serve`: from an address or a folder to a process that answers."""

import gc
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from visionpipe.errors import ConfigError
from visionpipe.serving.settings import Settings, complete

if TYPE_CHECKING:
    from visionpipe.serving.service import Service
    from visionpipe.tracking.lookup import Lookup


def serve(target: str, settings: Settings) -> None:
    """Answers until SIGTERM or Ctrl-C; raises where the model cannot be loaded or the port is taken.

    target: `models:/NAME@ALIAS`, which is followed, `models:/NAME/NUMBER`, or a folder.
    """
    logging.basicConfig(format="visionpipe: %(message)s", level=logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what clients are told
    settings = complete(settings, os.environ)
    bound = listen(settings)
    # The model loads while FastAPI is being imported: each takes a good part of a second.
    with ThreadPoolExecutor(1) as loader:
        loading = loader.submit(load_first, target, settings)
        from visionpipe.serving.app import make_app
        from visionpipe.serving.connections import make_server

        service, lookup = loading.result()
    from visionpipe.serving.service import Follower

    server = make_server(make_app(service), service)
    follower = Follower(service, lookup.current) if lookup and lookup.alias else None
    if follower:
        follower.start()
    host, port = bound.getsockname()[:2]
    shown, live = f"[{host}]" if ":" in host else host, service.present()
    print(f"{live.name} version {live.number} answers on http://{shown}:{port}/predict", flush=True)
    sys.setswitchinterval(0.001)  # worker threads keep the event loop waiting for less
    # What was imported stays: looking for garbage among it would stop every answer for 40 ms about once a second.
    gc.collect()
    gc.freeze()
    try:
        server.run([bound])
    finally:
        if follower:
            follower.stop()
        if lookup:
            lookup.close()
        for pool in (service.queue.pool, service.readers):
            pool.shutdown(wait=False, cancel_futures=True)


def load_first(target: str, settings: Settings) -> "tuple[Service, Lookup | None]":
    """A service that can answer, and what knows the version that it should answer with."""
    from visionpipe.serving.service import Service
    from visionpipe.tracking.lookup import look_up

    service = Service(settings)
    version, lookup = look_up(target)
    try:
        service.serve(version)
    except BaseException:
        if lookup:
            lookup.close()
        raise
    return service, lookup


def listen(settings: Settings) -> socket.socket:
    """A socket on the host's first address, IPv4 before IPv6. `::` is all of both, where the system can do that."""
    host, passive = settings.host, socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=passive)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=both)
    except (OSError, ValueError) as error:  # ValueError: a name that is none
        raise ConfigError(
            f"cannot listen on {host} port {settings.port}: {error}; choose another --host or --port"
        ) from None
