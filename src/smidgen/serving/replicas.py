"""The server on a Ray cluster: replicas of the one application, each with a base and an engine of
its own, behind the proxies of Ray Serve.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smidgen import cluster
from smidgen.errors import SmidgenError, shown
from smidgen.models.chosen import BaseOnDevice
from smidgen.models.names import shipped_names
from smidgen.serving.app import create_app
from smidgen.serving.config import DRAIN_SECONDS, ServeConfig

NAME = "smidgen"


def serve_on_ray(
    options: BaseOnDevice, config: ServeConfig, key: str | None, log: Callable[[str], None]
) -> None:
    """Answer until SIGTERM or Ctrl-C, from `config.replicas` processes of the cluster at
    `config.ray`; what was taken is drawn first. `log` is told the address.

    Every replica reads the folder of deltas for itself, which all machines must have.

    Raises: UsageError without Ray or for a key that is missing; SmidgenError if there is no
        cluster, if it serves at another address already, or its replicas do not start, as when the
        base cannot be loaded there.
    """
    config.check_key(key)
    assert config.ray is not None
    stop = threading.Event()
    with cluster.serving(config.ray) as serve:
        serve.start(http_options={"host": config.host, "port": config.port})
        # of a cluster that serves something already Ray only warns that its address stays
        check_address(serve.context._get_global_client().http_config, config)
        try:
            serve.run(_application(serve, options, config, key), name=NAME, route_prefix="/")
            signal.signal(signal.SIGTERM, lambda *_: stop.set())  # joining has set Ray's own
            where = f"http://{config.host}:{config.port}"
            log(f"serving {config.replicas} times {options.base} at {where}")
            stop.wait()
        except RuntimeError as error:
            raise SmidgenError(
                "the replicas did not start; the same command without --ray says why, or the "
                f"cluster's logs do ({shown(str(error).splitlines()[0])})"
            ) from error
        finally:
            serve.delete(NAME)  # other applications of the cluster go on


def check_address(running: Any, config: ServeConfig) -> None:
    """Raises: SmidgenError if the proxies do not listen where `config` says, which is what the key
    was asked for.
    """
    if (running.host, running.port) != (config.host, config.port):
        raise SmidgenError(
            f"the cluster serves at {running.host}:{running.port} already, and host and port are "
            f"{config.host}:{config.port}; give those, or stop what it serves (serve shutdown)"
        )


def _application(serve: Any, options: BaseOnDevice, config: ServeConfig, key: str | None) -> Any:
    """What Ray Serve runs."""
    options, config = placed(options, config)

    def build() -> Any:
        return create_app(options.load(), config, key)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        num_replicas=config.replicas,
        # the engine refuses what is too much, not Ray
        max_ongoing_requests=config.batch_size + config.waiting,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_gpus": int(_on_gpu(options.device))},
    )
    return deployment.bind()


def placed(options: BaseOnDevice, config: ServeConfig) -> tuple[BaseOnDevice, ServeConfig]:
    """With whole paths, as no process of a cluster need be in this one's folder."""
    base = options.base
    if base not in shipped_names() and Path(base).exists():
        base = str(Path(base).resolve())
    codec = options.codec
    if codec is not None and Path(codec).exists():
        codec = str(Path(codec).resolve())
    studies = None if config.studies is None else config.studies.resolve()
    return (
        dataclasses.replace(options, base=base, codec=codec),
        dataclasses.replace(config, deltas=config.deltas.resolve(), studies=studies),
    )


def _on_gpu(device: str) -> bool:
    """Whether a replica asks for a GPU: Ray hides those from it that it does not ask for."""
    return device == "cuda" or (device == "auto" and cluster.has_gpus())
