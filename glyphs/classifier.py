"""Trains the evaluation classifier on the training families of all scripts.

`python -m glyphs.classifier glyphs/classifier.toml` writes classifier.safetensors beside the
package's other embedded weights, and results/classifier.json with the accuracy on unseen families.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from glyphs.codec import VAE_FOLDER
from glyphs.images import (
    EMBEDDED,
    colour_masks,
    family_weights,
    flatten,
    log,
    read_settings,
    write_result,
)
from glyphs.render import Glyphs, load_script
from smidgen.evaluation.classifier import NUM_FEATURES, GlyphClassifier

WEIGHTS = EMBEDDED / "glyphs" / "classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Settings of classifier.toml and its like.

    `go_on`: from the shipped weights, heads of further scripts anew. `stretch` and `shear`: the
    largest change of scale and of slant, as shares. `redraw`: weight of the error of drawing the
    image again from its features, by a linear map that is not kept: without it they would forget
    all that tells no class, and distances in them would not see style.
    """

    go_on: bool = False
    stretch: float = 0.0
    shear: float = 0.0
    redraw: float = 0.0
    scripts: list[str]
    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    label_smoothing: float
    codec_share: float
    noise: float
    seed: int


def shift(masks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Masks (B, 32, 32), each moved by up to one pixel either way; what enters is empty."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    corners = draw.integers(3, size=(len(masks), 2))
    moved = [m[r : r + 32, c : c + 32] for m, (r, c) in zip(padded, corners, strict=True)]
    return np.stack(moved)


def blur(masks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Masks mixed with their 3 x 3 average, each by its own share of up to a half."""
    tensor = torch.from_numpy(masks).float()[:, None]
    soft = functional.avg_pool2d(tensor, 3, stride=1, padding=1)
    share = torch.from_numpy(draw.uniform(0, 0.5, size=(len(masks), 1, 1, 1))).float()
    return torch.lerp(tensor, soft, share)[:, 0].round().byte().numpy()


def deform(masks: np.ndarray, config: ClassifierConfig, draw: np.random.Generator) -> np.ndarray:
    """Masks (B, 32, 32), each scaled in both directions and slanted by shares of its own."""
    size = len(masks)
    matrix = np.zeros((size, 2, 3), dtype=np.float32)
    matrix[:, 0, 0], matrix[:, 1, 1] = 1 + draw.uniform(-1, 1, (2, size)) * config.stretch
    matrix[:, 0, 1] = draw.uniform(-1, 1, size) * config.shear
    grid = functional.affine_grid(torch.from_numpy(matrix), [size, 1, 32, 32], align_corners=False)
    pictures = torch.from_numpy(masks).float()[:, None]
    moved = functional.grid_sample(pictures, grid, align_corners=False)
    return moved[:, 0].round().byte().numpy()


class Batches:
    """Draws augmented training batches of one script; large families count by their square root."""

    def __init__(self, glyphs: Glyphs, codec: AutoencoderKL, config: ClassifierConfig) -> None:
        chosen = np.flatnonzero(~glyphs.test)
        self.masks, self.codec, self.config = glyphs.masks[chosen], codec, config
        self.font_share = np.cumsum(family_weights(glyphs.family[chosen]))

    def draw(self, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 32, 32) and labels (B,)."""
        size = self.config.batch_size
        fonts = np.searchsorted(self.font_share, draw.random(size) * self.font_share[-1])
        labels = draw.integers(self.masks.shape[1], size=size)
        masks = shift(self.masks[fonts, labels], draw)
        if self.config.stretch or self.config.shear:
            masks[1::2] = deform(masks[1::2], self.config, draw)
        masks[size // 2 :] = blur(masks[size // 2 :], draw)
        images = colour_masks(masks, draw)
        images[:: round(1 / self.config.codec_share)] = round_trip(
            self.codec, images[:: round(1 / self.config.codec_share)]
        )
        strength = draw.uniform(0, self.config.noise, size=(size, 1, 1, 1)).astype(np.float32)
        noise = strength * draw.standard_normal(images.shape, dtype=np.float32)
        return images + torch.from_numpy(noise), torch.from_numpy(labels)


@torch.inference_mode()
def round_trip(codec: AutoencoderKL, images: Tensor) -> Tensor:
    """Images as the codec gives them back."""
    return codec.decode(codec.encode(images).latent_dist.mean).sample.clamp(-1, 1)


def learning_rate_at(step: int, config: ClassifierConfig) -> float:
    """Linear warm-up, then linearly to 0."""
    rise = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * rise * (1 - step / config.num_steps)


def train(
    config: ClassifierConfig, glyphs: dict[str, Glyphs], codec: AutoencoderKL
) -> GlyphClassifier:
    """The trained classifier, in evaluation mode."""
    torch.manual_seed(config.seed)
    model = GlyphClassifier({name: script.class_names for name, script in glyphs.items()})
    if config.go_on:
        known, new = GlyphClassifier.load(WEIGHTS).state_dict(), model.state_dict()
        model.load_state_dict(new | {key: known[key] for key in new if key in known})
    painter = nn.Linear(NUM_FEATURES, 3 * 32 * 32)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *painter.parameters()],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    batches = {name: Batches(script, codec, config) for name, script in glyphs.items()}
    draw = np.random.default_rng(config.seed)
    start = time.monotonic()
    for step in range(config.num_steps):
        drawn = {name: source.draw(draw) for name, source in batches.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        pictures = torch.cat([images for images, _ in drawn.values()])
        with torch.autocast("cpu", torch.bfloat16):
            features = model.features(pictures)
        error = functional.mse_loss(painter(features.float()), pictures.flatten(1))
        loss = config.redraw * error
        for part, (name, (_, labels)) in zip(
            features.float().chunk(len(drawn)), drawn.items(), strict=True
        ):
            loss = loss + functional.cross_entropy(
                model.heads[name](part), labels, label_smoothing=config.label_smoothing
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - start
            speed = (step + 1) * config.batch_size * len(drawn) / seconds
            redrawn = f"redrawn to {error.item():.4f}"
            log(f"step {step + 1} loss {loss.item():.3f}, {redrawn}, {speed:.0f} images/s")
    return model.eval()


@torch.inference_mode()
def measure(
    model: GlyphClassifier, glyphs: Glyphs, script: str, codec: AutoencoderKL | None
) -> dict[str, float | int]:
    """Accuracy on every glyph of the unseen families, in drawn colours; and the worst pairs."""
    masks, labels = flatten(glyphs, test=True)
    images = colour_masks(masks, np.random.default_rng(1))
    scores = []
    for batch in images.split(256):
        batch = round_trip(codec, batch) if codec else batch
        scores.append(model.logits(batch, script))
    guesses = torch.cat(scores).argmax(1).numpy()
    if codec is None:
        wrong = [(labels[i], guesses[i]) for i in np.flatnonzero(guesses != labels)]
        pairs, counts = np.unique(wrong, axis=0, return_counts=True)
        worst = [
            (tuple(glyphs.class_names[k] for k in pairs[i]), int(counts[i]))
            for i in np.argsort(-counts)[:8]
        ]
        log(f"{script}: confused {worst}")
    return {"num_images": len(labels), "accuracy": round(float((guesses == labels).mean()), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path, help="glyphs/classifier.toml or another")
    settings: Path = parser.parse_args().settings
    config = ClassifierConfig(**read_settings(settings))
    glyphs = {name: load_script(name) for name in config.scripts}
    codec = AutoencoderKL.from_pretrained(VAE_FOLDER).float().eval()
    start = time.monotonic()
    train(config, glyphs, codec).save(WEIGHTS)
    seconds = time.monotonic() - start
    stored = GlyphClassifier.load(WEIGHTS)
    fields = {
        "settings": asdict(config),
        "seconds": round(seconds),
        "num_parameters": sum(p.numel() for p in stored.parameters()),
        "unseen_families": {n: measure(stored, g, n, None) for n, g in glyphs.items()},
        "unseen_families_through_codec": {
            n: measure(stored, g, n, codec) for n, g in glyphs.items()
        },
    }
    log(f"{fields}")
    log(str(write_result(settings.stem, f"python -m glyphs.classifier {settings}", fields)))


if __name__ == "__main__":
    main()
