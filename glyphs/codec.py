"""Trains a codec of the glyph world on the training families of its scripts.

`python -m glyphs.codec glyphs/codec.toml` resumes from data/glyphs/codec.safetensors, writes a
diffusers VAE folder beside the package's other embedded weights and results/codec.json. bfloat16
autocast: 1.6 times as fast here.
"""

from __future__ import annotations

import argparse
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

VAE_FOLDER = EMBEDDED / "glyphs" / "vae"


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Settings of codec.toml and its like.

    `name` is the base whose codec is written, `start` the base whose codec is continued ("": begin
    anew), `image_size` in pixels. `decoder_only` leaves the latents, hence the base, as they are.
    `equal_scripts`: each script as often as another, not each mask.
    """

    name: str
    start: str = ""
    image_size: int = 32
    decoder_only: bool = False
    equal_scripts: bool = False
    scripts: list[str]
    widths: list[int]
    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    mse_weight: float
    kl_weight: float
    seed: int


def build_codec(config: CodecConfig) -> AutoencoderKL:
    """A small AutoencoderKL: one layer a block, 4 latent channels, no attention; or the one to
    continue.
    """
    if config.start:
        codec = AutoencoderKL.from_pretrained(EMBEDDED / config.start / "vae").float()
        codec.encoder.requires_grad_(not config.decoder_only)
        codec.quant_conv.requires_grad_(not config.decoder_only)
        return codec
    widths = config.widths
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=config.image_size,
    )


def codec_loss(codec: AutoencoderKL, images: Tensor, noise: Tensor, config: CodecConfig) -> Tensor:
    """L1 + mse_weight * MSE + kl_weight * KL per latent element; noise (B, 4, H / 4, W / 4)."""
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


def load_masks(config: CodecConfig, name: str, test: bool) -> np.ndarray:
    """Masks (N, H, W) of one script at the codec's size."""
    return flatten(load_script(name, config.image_size), test=test)[0]


def choose_masks(
    config: CodecConfig, masks: list[np.ndarray], draw: np.random.Generator
) -> np.ndarray:
    """A batch of masks (B, H, W) of all scripts."""
    size = config.batch_size
    if not config.equal_scripts:
        places = draw.integers(sum(map(len, masks)), size=size)
        ends = np.cumsum([len(part) for part in masks])
        scripts = np.searchsorted(ends, places, side="right")
        places = places - (ends - [len(part) for part in masks])[scripts]
    else:
        scripts = draw.integers(len(masks), size=size)
        places = np.array([draw.integers(len(masks[script])) for script in scripts])
    return np.stack([masks[s][p] for s, p in zip(scripts, places, strict=True)])


def train(config: CodecConfig, checkpoint: Path) -> tuple[AutoencoderKL, float]:
    """The trained codec and its seconds of training, earlier runs included."""
    torch.manual_seed(config.seed)
    codec = build_codec(config)
    trained = [parameter for parameter in codec.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, fused=True)
    noise_generator = torch.Generator().manual_seed(config.seed)
    first, before = 0, 0.0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        codec.load_state_dict(state["codec"])
        optimizer.load_state_dict(state["optimizer"])
        noise_generator.set_state(state["noise"])
        first, before = state["step"], state["seconds"]
        log(f"resumed at step {first}")
    masks = [load_masks(config, name, test=False) for name in config.scripts]
    log(f"{sum(map(len, masks))} masks, {sum(p.numel() for p in trained)} parameters")
    side = config.image_size // 4
    start = saved = time.monotonic()
    running = 0.0
    for step in range(first, config.num_steps):
        draw = np.random.default_rng([config.seed, step])
        images = colour_masks(choose_masks(config, masks, draw), draw)
        noise = torch.randn(len(images), 4, side, side, generator=noise_generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        loss = codec_loss(codec, images, noise, config)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item() if step > first else loss.item()
        done, seconds = step + 1, time.monotonic() - start
        if done % 100 == 0:
            speed = (done - first) * config.batch_size / seconds
            log(f"step {done}/{config.num_steps} loss {running:.4f} {speed:.0f} images/s")
        if time.monotonic() - saved > 120 or done == config.num_steps:
            state = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"noise": noise_generator.get_state(), "step": done}
            save_checkpoint(state | {"seconds": before + seconds}, checkpoint)
            saved = time.monotonic()
    return codec, before + time.monotonic() - start


@torch.inference_mode()
def measure_psnr(codec: AutoencoderKL, masks: np.ndarray, seed: int) -> float:
    """Mean over images of -10 log10(MSE), pixels in [0, 1], from the posterior's mean."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(masks), size=min(500, len(masks)), replace=False)
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


def finish(codec: AutoencoderKL, config: CodecConfig, seconds: float, settings: Path) -> None:
    """Saves the float16 folder, then measures what the folder holds, not what was trained."""
    codec.eval()
    seen = {name: load_masks(config, name, test=False) for name in config.scripts}
    unseen = {name: load_masks(config, name, test=True) for name in config.scripts}
    if not config.decoder_only:
        std = measure_std(codec, np.concatenate(list(seen.values())), config.seed)
        codec.register_to_config(scaling_factor=round(1 / std, 5))
    codec.register_to_config(sample_size=config.image_size)
    folder = EMBEDDED / config.name / "vae"
    codec.half().save_pretrained(folder)
    stored = AutoencoderKL.from_pretrained(folder).float().eval()
    fields = {
        "settings": asdict(config),
        "seconds": round(seconds),
        "num_parameters": sum(p.numel() for p in stored.parameters()),
        "latent_std": round(1 / stored.config.scaling_factor, 4),
        "psnr_training_families_db": {
            n: round(measure_psnr(stored, m, 1), 2) for n, m in seen.items()
        },
        "psnr_unseen_families_db": {
            n: round(measure_psnr(stored, m, 1), 2) for n, m in unseen.items()
        },
    }
    log(f"{fields}")
    log(str(write_result(settings.stem, f"python -m glyphs.codec {settings}", fields)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path, help="glyphs/codec.toml or another")
    settings: Path = parser.parse_args().settings
    config = CodecConfig(**read_settings(settings))
    codec, seconds = train(config, DATA / f"{settings.stem}.safetensors")
    finish(codec, config, seconds, settings)


if __name__ == "__main__":
    main()
