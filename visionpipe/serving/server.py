"""`visionpipe serve`: from an address or a folder to a process that answers."""

import gc
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from visionpipe.errors import ConfigError
from visionpipe.serving.settings import TOKEN_VARIABLE, Settings

if TYPE_CHECKING:
    from visionpipe.serving.service import Service
    from visionpipe.tracking.lookup import Lookup


def serve(target: str, settings: Settings) -> None:
    """Answers until SIGTERM or Ctrl-C; raises where the model cannot be loaded or the port is taken.

    target: `models:/NAME@ALIAS`, which is followed, `models:/NAME/NUMBER`, or a folder.
    """
    logging.basicConfig(format="visionpipe: %(message)s", level=logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what clients are told
    settings = replace(settings, token=os.environ.get(TOKEN_VARIABLE) or None)
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
    live = service.present()
    print(f"{live.name} version {live.number} answers on http://{host}:{port}/predict", flush=True)
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
        service.queue.pool.shutdown(wait=False, cancel_futures=True)


def load_first(target: str, settings: Settings) -> "tuple[Service, Lookup | None]":
    """A service that can answer, and what knows the version that it should answer with."""
    from visionpipe.serving.service import Service
    from visionpipe.tracking.lookup import open_target

    service = Service(settings)
    version, lookup = open_target(target)
    try:
        service.serve(version)
    except BaseException:
        if lookup:
            lookup.close()
        raise
    return service, lookup


def listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error}; choose another --host or --port"
        ) from None
