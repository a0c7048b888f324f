"""What a server is told: where it listens, what it serves, and how much of it."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

from smidgen.errors import UsageError
from smidgen.files.checks import check_integer, check_number
from smidgen.files.settings import SWITCH

DRAIN_SECONDS = 30  # for what was taken, at the end
API_KEY = "SMIDGEN_API_KEY"  # of the environment: a flag would be seen by everyone on the machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, where, and how much of it. Raises: UsageError for what makes no sense."""

    deltas: Path
    """Folder of deltas: NAME.safetensors, or NAME/delta.safetensors as trainings leave them. New
    files are served without a restart."""
    gated: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Serve only deltas that passed smidgen gate as they are now: by the gate.json beside each."""
    studies: Path | None = None
    """Folder of studies whose reports the page links to."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs an API key, in the environment
    variable SMIDGEN_API_KEY."""
    port: int = 8000
    """Port to listen at; 0: any that is free."""
    ray: str | None = None
    """Address of a Ray cluster to answer from, or local; its machines need the folder of deltas.
    With --device cuda each replica has a GPU."""
    replicas: int = 1
    """With --ray: how many processes answer, each with the base and a batch of its own."""
    slots: int = 64
    """Deltas of one kind that may act at once, 2 or more; the least recently used one leaves. Each
    has its memory from the first image of its kind on."""
    batch_size: int = 16
    """Images that form at once."""
    waiting: int = 256
    """Images that may wait; more are refused with status 429."""
    image_seconds: float = 300.0
    """Time that an image may take, waiting included."""
    most_images: int = 10
    """Images of one request."""
    most_steps: int = 250
    """Sampling steps of one image."""
    most_body: int = 20_000_000
    """Bytes of one request."""

    def __post_init__(self) -> None:
        check_integer("port", self.port, least=0, most=65_535)
        check_integer("slots", self.slots, least=2)
        for name in ("replicas", "batch_size", "waiting", "most_images", "most_steps", "most_body"):
            check_integer(name, getattr(self, name))
        if self.replicas > 1 and self.ray is None:
            raise UsageError(
                f"replicas is {self.replicas}, which need a Ray cluster; give --ray local or the "
                "address of one"
            )
        if self.ray is not None and self.port == 0:
            raise UsageError("port is 0; with ray give the port that its proxies listen at")
        check_number("image_seconds", self.image_seconds)
        if self.image_seconds <= 0:
            raise UsageError(f"image_seconds is {self.image_seconds}; expected more than 0")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_key(self, key: str | None) -> None:
        """Raises: UsageError if others can ask and there is no key, or a short one."""
        if not self.is_local and not key:
            raise UsageError(
                f"host is {self.host}, where others can ask; set {API_KEY} in the environment to a "
                "key that they must know, or listen at 127.0.0.1"
            )
        if key and len(key) < 16:
            raise UsageError(f"{API_KEY} has {len(key)} characters; expected at least 16")
