"""The door to Ray: a cluster that is joined for as long as something is done on it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from smidgen.errors import SmidgenError, UsageError

LOCAL = "local"


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """The module `ray`, joined to the cluster at `address`, or to one of this machine's own
    ("local") that ends with it.

    Raises: UsageError without Ray; SmidgenError if no cluster answers.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError('--ray needs Ray: pip install "smidgen[ray]"') from None
    _check_that_something_listens(address)
    try:
        ray.init(address=None if address == LOCAL else address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _missing(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def has_gpus() -> bool:
    """Whether the cluster that is joined has any."""
    import ray  # pyright: ignore[reportMissingImports]

    return ray.cluster_resources().get("GPU", 0) > 0


def _check_that_something_listens(address: str) -> None:
    """Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _missing(address, error) from error


def _missing(address: str, error: Exception) -> SmidgenError:
    why = str(error).partition("\n")[0]
    return SmidgenError(
        f"no Ray cluster at {address} ({why}); start one there (ray start --head), or give local"
    )


@contextlib.contextmanager
def serving(address: str) -> Iterator[Any]:
    """The module `ray.serve` of such a cluster.

    Raises: UsageError without Ray Serve; as `joined`.
    """
    with joined(address):
        try:
            from ray import serve  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UsageError('--ray needs Ray Serve: pip install "smidgen[ray]"') from None
        yield serve
