"""All checks of a base, one after the other, as one document."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from typing import Any

from smidgen.data.folder import Progress
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.machine import machine
from smidgen.models.base import Base
from smidgen.models.calling import DTYPES
from smidgen.processes import world_size
from smidgen.verification.check import Check, verdict_of
from smidgen.verification.config import VerifiedBase, VerifyConfig
from smidgen.verification.files import check_files
from smidgen.verification.published import check_published, precision_of, published_of
from smidgen.verification.stock import check_forward
from smidgen.verification.training import check_training

Tell = Callable[[str], None]


def verify(
    options: VerifiedBase,
    config: VerifyConfig,
    *,
    tell: Tell | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The document of a verification. A check that cannot be made says why and stops nothing.
    `tell` is given a line after each; progress(done, total) is called as images are drawn.

    Raises: UsageError with several processes; SmidgenError if the base cannot be loaded.
    """
    if world_size() > 1:
        raise UsageError("verify runs in one process: start it without torchrun")
    base = options.load()
    network = type(base.denoiser).__name__
    facts = {
        "base": base.name,
        "network": network,
        "parameters": sum(one.numel() for one in base.denoiser.parameters()),
        "image_size": base.image_size.plain,
        "device": str(base.device),
    }
    checks: list[Check] = []
    for name in config.chosen:
        begun = time.perf_counter()
        if name == "published":
            base = _in_precision(base, options, config)
        check = made(name, base, config, progress)
        seconds = round(time.perf_counter() - begun, 1)
        check = replace(check, facts={**check.facts, "seconds": seconds})
        checks.append(check)
        if tell is not None:
            tell(f"{name}: {check.status}: {check.found}")
    return facts | {
        "verdict": verdict_of(checks),
        "checks": [asdict(check) for check in checks],
        "machine": machine(),
        "date": date.today().isoformat(),
    }


def made(name: str, base: Base, config: VerifyConfig, progress: Progress | None) -> Check:
    """One check by its name; one that cannot be made says why."""
    try:
        if name == "files":
            return check_files(base)
        if name == "forward":
            return check_forward(base)
        if name == "training":
            return check_training(base)
        published = published_of(base)
        if published is None:
            raise SmidgenError("no published number of this base is known here")
        return check_published(base, published, config, progress)
    except SmidgenError as error:
        return Check(name=name, status="not possible", found=str(error))


def _in_precision(base: Base, options: VerifiedBase, config: VerifyConfig) -> Base:
    """The base as its images are drawn: the same, or loaded again in another number format."""
    precision = precision_of(config, base.device.type)
    if precision == base.precision:
        return base
    del base
    gc.collect()
    return options.load(dtype=DTYPES[precision])
