"""Trains the codec of the glyph world on the training families of all scripts.

`python -m glyphs.codec` resumes from data/glyphs/codec.safetensors, writes a diffusers VAE folder
beside the package's other embedded weights and results/codec.json. bfloat16 autocast: 1.6 times as
fast here.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from glyphs.images import (
    EMBEDDED,
    colour_masks,
    flatten,
    load_checkpoint,
    log,
    read_settings,
    save_checkpoint,
    write_result,
)
from glyphs.render import DATA, load_script

SETTINGS = Path(__file__).with_suffix(".toml")
CHECKPOINT = DATA / "codec.safetensors"
VAE_FOLDER = EMBEDDED / "glyphs" / "vae"


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Settings of codec.toml."""

    scripts: list[str]
    widths: list[int]
    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    mse_weight: float
    kl_weight: float
    seed: int


def build_codec(widths: list[int]) -> AutoencoderKL:
    """A small AutoencoderKL: one layer a block, 4 latent channels, no attention."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
    )


def codec_loss(codec: AutoencoderKL, images: Tensor, noise: Tensor, config: CodecConfig) -> Tensor:
    """L1 + mse_weight * MSE + kl_weight * KL per latent element; noise (B, 4, 8, 8)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = codec.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        decoded = codec.decode(latents).sample
    error = decoded.float() - images
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + config.mse_weight * error.square().mean() + config.kl_weight * kl


def learning_rate_at(step: int, config: CodecConfig) -> float:
    """Linear warm-up, then linearly to 0."""
    rise = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * rise * (1 - step / config.num_steps)


def train(config: CodecConfig) -> tuple[AutoencoderKL, float]:
    """The trained codec and its seconds of training, earlier runs included."""
    torch.manual_seed(config.seed)
    codec = build_codec(config.widths)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=config.learning_rate, fused=True)
    noise_generator = torch.Generator().manual_seed(config.seed)
    first, before = 0, 0.0
    if CHECKPOINT.exists():
        state = load_checkpoint(CHECKPOINT)
        codec.load_state_dict(state["codec"])
        optimizer.load_state_dict(state["optimizer"])
        noise_generator.set_state(state["noise"])
        first, before = state["step"], state["seconds"]
        log(f"resumed at step {first}")
    masks = np.concatenate([flatten(load_script(name), test=False)[0] for name in config.scripts])
    log(f"{len(masks)} masks, {sum(p.numel() for p in codec.parameters())} parameters")
    start = saved = time.monotonic()
    running = 0.0
    for step in range(first, config.num_steps):
        draw = np.random.default_rng([config.seed, step])
        batch = masks[draw.integers(len(masks), size=config.batch_size)]
        images = colour_masks(batch, draw)
        noise = torch.randn(len(images), 4, 8, 8, generator=noise_generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        loss = codec_loss(codec, images, noise, config)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item() if step > first else loss.item()
        done, seconds = step + 1, time.monotonic() - start
        if done % 100 == 0:
            speed = (done - first) * config.batch_size / seconds
            log(f"step {done}/{config.num_steps} loss {running:.4f} {speed:.0f} images/s")
        if time.monotonic() - saved > 120 or done == config.num_steps:
            state = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"noise": noise_generator.get_state(), "step": done}
            save_checkpoint(state | {"seconds": before + seconds}, CHECKPOINT)
            saved = time.monotonic()
    return codec, before + time.monotonic() - start


@torch.inference_mode()
def measure_psnr(codec: AutoencoderKL, masks: np.ndarray, seed: int) -> float:
    """Mean over images of -10 log10(MSE), pixels in [0, 1], from the posterior's mean."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(masks), size=min(2000, len(masks)), replace=False)
    decibels = []
    for images in colour_masks(masks[chosen], generator).split(100):
        decoded = codec.decode(codec.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - images) / 2).square().mean((1, 2, 3))
        decibels.append(-10 * torch.log10(error))
    return float(torch.cat(decibels).mean())


@torch.inference_mode()
def measure_std(codec: AutoencoderKL, masks: np.ndarray, seed: int) -> float:
    """Standard deviation of posterior samples over 4,000 training images."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(masks), size=4000, replace=False)
    noise = torch.Generator().manual_seed(seed)
    batches = colour_masks(masks[chosen], generator).split(100)
    latents = [codec.encode(images).latent_dist.sample(noise) for images in batches]
    return float(torch.cat(latents).std())


def finish(codec: AutoencoderKL, config: CodecConfig, seconds: float) -> None:
    """Saves the float16 folder, then measures what the folder holds, not what was trained."""
    codec.eval()
    scripts = {name: load_script(name) for name in config.scripts}
    masks = np.concatenate([flatten(glyphs, test=False)[0] for glyphs in scripts.values()])
    std = measure_std(codec, masks, config.seed)
    codec.register_to_config(scaling_factor=round(1 / std, 5))
    codec.half().save_pretrained(VAE_FOLDER)
    stored = AutoencoderKL.from_pretrained(VAE_FOLDER).float().eval()
    seen = {n: measure_psnr(stored, flatten(g, test=False)[0], 1) for n, g in scripts.items()}
    unseen = {n: measure_psnr(stored, flatten(g, test=True)[0], 1) for n, g in scripts.items()}
    fields = {
        "settings": asdict(config),
        "seconds": round(seconds),
        "num_parameters": sum(p.numel() for p in stored.parameters()),
        "latent_std": round(std, 4),
        "psnr_training_families_db": {name: round(value, 2) for name, value in seen.items()},
        "psnr_unseen_families_db": {name: round(value, 2) for name, value in unseen.items()},
    }
    assert all(math.isfinite(value) for value in unseen.values())
    log(f"{fields}")
    log(str(write_result("codec", "python -m glyphs.codec", fields)))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    config = CodecConfig(**read_settings(SETTINGS))
    codec, seconds = train(config)
    finish(codec, config, seconds)


if __name__ == "__main__":
    main()
