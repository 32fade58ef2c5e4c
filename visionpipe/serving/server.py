"""Implements `visionpipe serve`: loads a model from an address or a folder, and starts the server."""

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
    """Serves a model until SIGTERM or Ctrl-C.

    target: `models:/NAME@ALIAS`, whose alias is followed, `models:/NAME/VERSION`, or a folder.

    Raises:
        ConfigError: a setting is impossible, or the port is in use.
        ArtifactError, RegistryError: the model cannot be loaded.
    """
    logging.basicConfig(format="visionpipe: %(message)s", level=logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings are told to the client
    settings = complete(settings, os.environ)
    bound = listen(settings)
    # Loads the model while FastAPI is imported: each takes a good part of a second.
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
    sys.setswitchinterval(0.001)  # shortens the waits of the event loop for worker threads
    # The imported objects are never freed. To search them for garbage would stop all answers for 40 ms every second.
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
    """Loads the version of `target` into a new service; returns the service and, for an address, its Lookup."""
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
    """Opens a socket on the host's first address, IPv4 before IPv6; raises ConfigError.

    `::` means all IPv4 and IPv6 addresses, if the system supports that.
    """
    host, passive = settings.host, socket.AI_PASSIVE
    try:
        addresses = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=passive)
        family, _, _, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=both)
    except (OSError, ValueError) as error:  # ValueError: not a valid host name
        raise ConfigError(
            f"cannot listen on {host} port {settings.port}: {error}; choose another --host or --port"
        ) from None
