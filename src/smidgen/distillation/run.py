"""Score distillation: a relief is changed until a base, with a delta acting in it, takes its views
for the subject. A labelled experiment, beyond the paper.

DreamFusion (Poole et al. 2022, arXiv 2209.14988) with the smallest thing that has views: heights
and colours of one picture. B views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.distillation.config import DistillationConfig
from smidgen.distillation.relief import Relief
from smidgen.distillation.score import Judge, sds_target
from smidgen.errors import UsageError
from smidgen.fast.acting import acting
from smidgen.models.base import Base
from smidgen.models.labels import class_names, trained_prompt
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import as_bytes, prepare

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Distillation:
    """The relief, its views (N, H, W, 3) uint8 from the left to the right, and by how much the base
    preferred what is `shown` in such views `before` and `after` (`Judge.preference`).
    """

    base: Base
    config: DistillationConfig
    method: str | None
    shown: str
    relief: Relief
    views: NDArray[np.uint8]
    before: float
    after: float

    def document(self) -> dict[str, Any]:
        """All numbers, as JSON (docs/file-formats.md)."""
        return {
            "experiment": "score distillation, beyond the paper",
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "method": self.method,
            "shown": self.shown,
            "image_size": self.base.image_size.plain,
            "settings": asdict(self.config),
            "preference": {"before": self.before, "after": self.after},
        }


def distill(
    base: Base, delta: Delta | None, config: DistillationConfig, report: Report | None = None
) -> Distillation:
    """A relief whose views `base` with `delta` takes for what `config` says; `report(done, in all)`
    is called after each step.

    Raises: UsageError for a prompt or class that makes no sense; SmidgenError for a delta of
        another base.
    """
    shown = what_is_shown(base, delta, config)
    asked = SamplingConfig(prompt=(shown,), steps=1)
    if base.conditioner is None:
        asked = SamplingConfig(classes=shown, steps=1)
    placed = prepare(base, asked, delta=delta)  # not drawn
    judge = Judge(base=base, labels=placed.labels, shown=placed.chosen[0])
    generator = torch.Generator().manual_seed(config.seed)
    width, height = base.image_size
    relief = Relief(height, width, config.depth, generator).to(base.device)
    adam = torch.optim.Adam(relief.parameters(), lr=config.lr)

    def preference() -> float:
        fixed = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            latents, _ = base.codec.encode(relief.render(sides_of(config).to(base.device)))
        return judge.preference(latents, fixed)

    with acting(placed.delta, base.denoiser):
        before = preference()
        for step in range(1, config.steps + 1):
            sides = config.angle * (2 * torch.rand(config.batch_size, 2, generator=generator) - 1)
            seen = relief.render(sides.to(base.device))
            loss = pull(judge, config, seen, generator)
            adam.zero_grad()
            (loss + config.smoothness * relief.roughness()).backward()
            adam.step()
            if report is not None:
                report(step, config.steps)
        after = preference()
    with torch.no_grad():
        seen = relief.render(sides_of(config).to(base.device))
    views = as_bytes(seen).permute(0, 2, 3, 1).cpu().numpy()
    return Distillation(
        base=base,
        config=config,
        method=None if delta is None else delta.provenance.method,
        shown=shown,
        relief=relief,
        views=views,
        before=before,
        after=after,
    )


def pull(
    judge: Judge, config: DistillationConfig, seen: Tensor, generator: torch.Generator
) -> Tensor:
    """The loss of views (B, 3, H, W) whose gradient at them, or at their latents, is that of SDS:
    half the weighted square of the distance to where they are pulled.
    """
    codec = judge.base.codec
    with torch.set_grad_enabled(config.space == "latents"):
        latents, _ = codec.encode(seen)
    denoise = judge.denoiser(config.guidance)
    target, weight = sds_target(judge.base.process, denoise, latents.detach(), generator)
    here, there = (latents, target) if config.space == "latents" else (seen, codec.decode(target))
    return (weight * (here - there.detach()).square()).sum() / (2 * len(seen))


def sides_of(config: DistillationConfig) -> Tensor:
    """The sides (N, 2) of the views at the end; a single one is from the front."""
    across = torch.linspace(-config.angle, config.angle, config.num_views)
    across = across if config.num_views > 1 else torch.zeros(1)
    return torch.stack([across, torch.zeros_like(across)], dim=1)


def what_is_shown(base: Base, delta: Delta | None, config: DistillationConfig) -> str:
    """The prompt or the class. Raises: UsageError where nothing says it, or it is of no use."""
    if base.conditioner is None:
        if config.prompt is not None:
            raise UsageError(
                f'prompt is of no use to base "{base.name}", which reads none; give class_name'
            )
        return config.class_name or class_names(base, delta)[0]
    if config.class_name is not None:
        raise UsageError(f'base "{base.name}" reads prompts: give prompt in place of class_name')
    prompt = config.prompt or (None if delta is None else trained_prompt(delta))
    if prompt is None:
        raise UsageError("nothing says what is to be shown; give prompt")
    return prompt
