"""Pretrains a base of the glyph world: a DiT on the latents of Latin letters and digits.

`python -m glyphs.base glyphs/NAME.toml` resumes from data/glyphs/NAME.safetensors and writes
dit.safetensors and config.json beside the package's other embedded weights, then
results/NAME.json. Dimensions: N latents, B batch, 4 x H x W latents.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glyphs.images import (
    EMBEDDED,
    load_checkpoint,
    log,
    read_settings,
    save_checkpoint,
    write_result,
)
from glyphs.latents import Latents, load_latents
from glyphs.render import DATA
from glyphs.samples import measure_samples, save_grid
from smidgen.diffusion.flow import shift_sigmas, sigmas_at
from smidgen.diffusion.objective import add_noise, drop_labels, hybrid_loss
from smidgen.diffusion.schedule import Schedule
from smidgen.models.dit import DiT, DiTConfig

CHECKPOINT_SECONDS = 180
GRID_SECONDS = 1500
GENERATORS = ("order", "time", "noise", "dropout")  # one each, so that none moves another


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Settings of base-576k-images.toml and its like, whose names say how many images the base has
    seen at their end.

    `name` is the base that is written, `start` the shipped base whose weights are continued ("":
    begin anew), `image_size` in pixels, `timestep_shift` that of logit-normal steps (None: steps
    are drawn uniformly).
    """

    name: str
    start: str = ""
    image_size: int = 32
    script: str
    width: int
    depth: int
    num_heads: int
    patch_size: int
    num_images: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    ema_decay: float
    label_dropout: float
    min_snr: float
    colourings: int
    seed: int
    timestep_shift: float | None = None

    @property
    def num_steps(self) -> int:
        return self.num_images // self.batch_size


def learning_rate_at(step: int, config: BaseConfig) -> float:
    """Linear warm-up, constant to half-way, then along a cosine to 0."""
    rise = min(1.0, (step + 1) / config.warmup_steps)
    fall = max(0.0, 2 * step / config.num_steps - 1)
    return config.learning_rate * rise * (1 + math.cos(math.pi * fall)) / 2


def draw_times(config: BaseConfig, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """The steps (B,) of a batch; logit-normal ones one from each of B equal shares of them."""
    size = config.batch_size
    if config.timestep_shift is None:
        return torch.randint(schedule.num_steps, (size,), generator=generator)
    quantiles = torch.arange(size) + torch.rand(size, generator=generator, dtype=torch.float64)
    sigmas = sigmas_at(quantiles / size, "logit-normal")
    return schedule.rows_at(shift_sigmas(sigmas, config.timestep_shift))


def build_model(config: BaseConfig, num_classes: int) -> DiT:
    """A new DiT, adaLN-Zero; or the weights of the base to continue."""
    model = DiT(
        DiTConfig(
            image_size=config.image_size // 4,
            patch_size=config.patch_size,
            width=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            num_classes=num_classes,
        )
    )
    model.initialize(torch.Generator().manual_seed(config.seed))
    if config.start:
        state = load_file(EMBEDDED / config.start / "dit.safetensors")
        state["pos_embed"] = model.pos_embed.data  # of this base's own grid
        model.load_state_dict(state)
    return model


def build_step(
    model: DiT, config: BaseConfig, compiled: bool
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The loss of a batch: (latents, timesteps, noise, labels) -> scalar."""
    schedule = Schedule.linear()

    def loss_of(x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        x_t = add_noise(schedule, x0, t, noise)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x_t, t, labels)
        losses = hybrid_loss(output, x0, x_t, t, noise, schedule, min_snr=config.min_snr)
        return losses.mean()

    return torch.compile(loss_of) if compiled else loss_of


class Run:
    """Everything that changes while training, and its checkpoint."""

    def __init__(self, config: BaseConfig, num_classes: int, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.model = build_model(config, num_classes)
        self.average = build_model(config, num_classes).requires_grad_(False)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.generators = {
            name: torch.Generator().manual_seed(config.seed * 100 + number)
            for number, name in enumerate(GENERATORS)
        }
        self.step, self.seconds = 0, 0.0
        if checkpoint.exists():
            self.restore(load_checkpoint(checkpoint))

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.step, self.seconds = state["step"], state["seconds"]
        log(f"resumed at step {self.step}")

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
        }
        save_checkpoint(state | {"step": self.step, "seconds": self.seconds}, self.checkpoint)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """EMA, quicker at the start: decay at most (1 + n) / (10 + n)."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        kept, new = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(kept), list(new), 1 - decay)


def train(
    config: BaseConfig, latents: Latents, checkpoint: Path, stop_after: float, compiled: bool
) -> Run:
    """Trains to the end, or for `stop_after` seconds, with checkpoints and sample grids."""
    num_classes = len(latents.class_names)
    run = Run(config, num_classes, checkpoint)
    loss_of = build_step(run.model, config, compiled)
    generators, size, schedule = run.generators, config.batch_size, Schedule.linear()
    start = saved = drawn = time.monotonic()
    before, first, losses = run.seconds, run.step, []
    while run.step < config.num_steps and time.monotonic() - start < stop_after:
        x0, labels = latents.draw(size, generators["order"])
        t = draw_times(config, schedule, generators["time"])
        noise = torch.randn(x0.shape, generator=generators["noise"])
        labels = drop_labels(labels, num_classes, config.label_dropout, generators["dropout"])
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate_at(run.step, config)
        loss = loss_of(x0, t, noise, labels)
        run.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.trained, config.max_grad_norm)
        run.optimizer.step()
        run.step += 1
        run.update_average(config.ema_decay)
        losses.append(loss.item())
        now = time.monotonic()
        run.seconds = before + now - start
        if run.step == first + 5:  # compiled by now
            measured_from, measured_step = now, run.step
        if run.step % 200 == 0 and run.step > first + 5:
            speed = (run.step - measured_step) * size / (now - measured_from)
            left = (config.num_steps - run.step) * size / speed / 60
            mean = sum(losses) / len(losses)
            log(f"step {run.step} loss {mean:.4f} {speed:.0f} images/s, {left:.0f} minutes left")
            losses.clear()
        if now - saved > CHECKPOINT_SECONDS:
            run.save()
            saved = now
        if now - drawn > GRID_SECONDS:
            show(run, latents.class_names, EMBEDDED / config.name / "vae")
            drawn = now
    run.save()
    return run


def show(run: Run, class_names: list[str], vae: Path) -> None:
    """Saves a grid of samples and logs the class agreement at guidance 1.5."""
    measured = measure_samples(
        run.average, class_names, vae, guidance=1.5, per_class=3, num_steps=25
    )
    picture = run.checkpoint.with_name(f"{run.checkpoint.stem}-{run.step:06d}.png")
    save_grid(measured.images, len(class_names), picture)
    log(f"step {run.step}: agreement {measured.agreement:.3f} at guidance 1.5")


def export(model: DiT, class_names: list[str], folder: Path) -> None:
    """Writes the base's weights in float16 and its description."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    partial = folder / "dit.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "dit.safetensors")
    description = {
        "format": "smidgen-base",
        "dit": asdict(model.config),
        "class_names": class_names,
        "image_size": 4 * model.config.image_size,
        "schedule": {"kind": "linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def finish(run: Run, config: BaseConfig, class_names: list[str], settings: Path) -> None:
    """Exports the averaged weights; glyphs/measure.py measures what was written."""
    export(run.average, class_names, EMBEDDED / config.name)
    fields = {
        "settings": asdict(config),
        "seconds": round(run.seconds),
        "num_parameters": sum(p.numel() for p in run.trained),
        "num_images": run.step * config.batch_size,
    }
    log(str(write_result(settings.stem, f"python -m glyphs.base {settings}", fields)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path, help="glyphs/base-576k-images.toml or another")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop early")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parser.parse_args()
    settings: Path = arguments.settings
    config = BaseConfig(**read_settings(settings))
    latents = load_latents(
        config.script,
        config.image_size,
        EMBEDDED / config.name / "vae",
        config.colourings,
        config.seed,
    )
    checkpoint = DATA / f"{settings.stem}.safetensors"
    run = train(config, latents, checkpoint, arguments.seconds, not arguments.eager)
    if run.step >= config.num_steps:
        finish(run, config, latents.class_names, settings)


if __name__ == "__main__":
    main()
