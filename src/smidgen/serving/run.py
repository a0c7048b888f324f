"""The server as a process: it listens, and ends cleanly when it is told to."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

from smidgen import cluster
from smidgen.errors import SmidgenError
from smidgen.models.chosen import BaseOnDevice
from smidgen.serving.app import create_app
from smidgen.serving.config import DRAIN_SECONDS, ServeConfig
from smidgen.serving.replicas import serve_on_ray


def serve(
    options: BaseOnDevice, config: ServeConfig, key: str | None, log: Callable[[str], None]
) -> None:
    """Answer until SIGTERM or Ctrl-C, here or from a Ray cluster; what was taken is drawn first.
    `log` is told the address.

    Raises: SmidgenError if the base cannot be loaded or the address not be had; as `create_app`.
    """
    if config.ray is not None:
        if config.ray == cluster.LOCAL:
            _listening(config).close()
        serve_on_ray(options, config, key, log)
        return
    base = options.load()
    listening = _listening(config)
    app = create_app(base, config, key)
    names = [entry.name for entry in app.state.served.library.entries()]
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=DRAIN_SECONDS,
            timeout_keep_alive=5,
        )
    )

    def leave(*_: object) -> None:
        app.state.served.engine.leave()
        server.should_exit = True

    signal.signal(signal.SIGTERM, leave)  # uvicorn sends itself the signal again at its end
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log(f"serving {base.name} and {len(names)} deltas at http://{shown}:{port}")
    server.run(sockets=[listening])


def _listening(config: ServeConfig) -> socket.socket:
    """The socket, before anything is loaded into it that takes long."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise SmidgenError(
            f"cannot listen at {config.host} port {config.port}: {error.strerror}; give another "
            "--port, or 0 for any that is free"
        ) from error
    return made
