"""Trains `clip-glyphs`, the CLIP that judges pictures of `glyphs-text`: on captions, on their nouns
alone, and on pairs of pictures of one drawing in two colourings and placements.

`python -m glyphs.text.clip glyphs/text/clip.toml` resumes from data/glyphs/text-clip.safetensors
and writes a CLIPModel folder beside the package's other embedded weights, then
results/text-clip.json. Captions alone teach colours long before things, and leave a CLIP blind to
what they never name: bare nouns teach it the things, pairs what one drawing is, whatever its ink
and ground. Dimensions: B pictures, P wide embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from glyphs.images import EMBEDDED, log, read_settings, write_result
from glyphs.render import DATA
from glyphs.text.pictures import Things, choose, draw_batch, load_things
from glyphs.text.running import Run, parser, train
from glyphs.text.tokenizer import LENGTH, write_tokenizer

NAME = "clip-glyphs"
PAIR_TEMPERATURE = 0.1
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
}


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Settings of clip.toml. `noun_weight` and `pair_weight`: those of the nouns' and of the pairs'
    loss beside the captions'.
    """

    image_width: int
    image_layers: int
    image_heads: int
    patch_size: int
    text_width: int
    text_layers: int
    text_heads: int
    projection: int
    num_images: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    ema_decay: float
    noun_weight: float
    pair_weight: float
    seed: int

    @property
    def num_steps(self) -> int:
        return self.num_images // self.batch_size


def build_clip(config: ClipConfig, num_tokens: int) -> CLIPModel:
    """The two towers, as transformers names them."""
    torch.manual_seed(config.seed)
    text = CLIPTextConfig(
        vocab_size=num_tokens,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        hidden_act="gelu",
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=LENGTH,
        bos_token_id=num_tokens - 2,
        eos_token_id=num_tokens - 1,
        pad_token_id=num_tokens - 1,
    )
    image = CLIPVisionConfig(
        hidden_size=config.image_width,
        intermediate_size=4 * config.image_width,
        hidden_act="gelu",
        num_hidden_layers=config.image_layers,
        num_attention_heads=config.image_heads,
        image_size=32,
        patch_size=config.patch_size,
    )
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=image, projection_dim=config.projection)
    )
    model.set_attn_implementation("eager")  # twice as fast as the fused one in bfloat16 here
    return model


class Pairs:
    """Endless batches of two pictures a drawing, each by the number of its step."""

    def __init__(self, config: ClipConfig, things: Things, tokenizer: Any) -> None:
        self.config, self.things, self.tokenizer = config, things, tokenizer

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Pictures (2B, 3, 32, 32), token ids (2B, L) of the captions and nouns of the first B, and
        numbers (B,) of equal captions, of equal nouns and of equal drawings.
        """
        random = np.random.default_rng((self.config.seed, step))
        chosen = choose(self.things, self.config.batch_size, random)
        first, captions = draw_batch(self.things, chosen, random)
        second, _ = draw_batch(self.things, chosen, random)
        nouns = [str(caption) for caption in chosen.bare(self.things)]
        texts = [*captions, *nouns]
        tokens = self.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        same = (numbered(captions), numbered(nouns), chosen.identity)
        return torch.cat([first, second]), tokens, *same


def numbered(texts: list[str]) -> Tensor:
    """A number (B,) for each text, the same for equal ones."""
    numbers = {text: number for number, text in enumerate(texts)}
    return torch.tensor([numbers[text] for text in texts])


def agreement(left: Tensor, right: Tensor, scale: Tensor | float, same: Tensor) -> Tensor:
    """Cross-entropy both ways of unit vectors (B, P) against those of equal numbers (B,)."""
    target = (same[:, None] == same).float()
    target = target / target.sum(1, keepdim=True)
    scores = scale * left.float() @ right.float().T
    ways = (functional.cross_entropy(one, target) for one in (scores, scores.T))
    return sum(ways) / 2


def build_loss(model: CLIPModel, config: ClipConfig) -> Callable[..., Tensor]:
    """The loss of a batch of `Pairs.draw`: captions, nouns, and pairs of pictures."""

    def loss_of(
        images: Tensor, tokens: Tensor, captions: Tensor, nouns: Tensor, drawings: Tensor
    ) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.visual_projection(model.vision_model(images).pooler_output)
            read = model.text_projection(model.text_model(tokens).pooler_output)
        seen, read = (functional.normalize(found.float(), dim=1) for found in (seen, read))
        first, second = seen.chunk(2)
        of_captions, of_nouns = read.chunk(2)
        scale = model.logit_scale.exp().clamp(max=100)
        losses = (
            agreement(first, of_captions, scale, captions),
            agreement(second, of_nouns, scale, nouns),
            agreement(first, second, 1 / PAIR_TEMPERATURE, drawings),
        )
        return losses[0] + config.noun_weight * losses[1] + config.pair_weight * losses[2]

    return loss_of


def export(model: CLIPModel, folder: Path) -> None:
    """Writes the folder that CLIPModel and CLIPProcessor load, weights in float16."""
    model.half().save_pretrained(folder)
    model.float()
    write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")


def main() -> None:
    arguments = parser(__doc__).parse_args()
    settings: Path = arguments.settings
    config = ClipConfig(**read_settings(settings))
    tokenizer = write_tokenizer(DATA / "tokenizer")
    checkpoint = DATA / f"text-{settings.stem}.safetensors"
    run = Run(lambda: build_clip(config, len(tokenizer)), config, checkpoint)
    if arguments.export:
        export(run.average, arguments.export)
        return
    pairs = Pairs(config, load_things(), tokenizer)
    loss_of = build_loss(run.model, config)
    compiled = loss_of if arguments.eager else torch.compile(loss_of)
    train(run, pairs.draw, compiled, arguments.seconds)
    if run.finished:
        export(run.average, EMBEDDED / NAME)
        fields = {
            "settings": asdict(config),
            "seconds": round(run.seconds),
            "num_parameters": sum(p.numel() for p in run.trained),
            "num_images": run.step * config.batch_size,
        }
        command = f"python -m glyphs.text.clip {settings}"
        log(str(write_result(f"text-{settings.stem}", command, fields)))


if __name__ == "__main__":
    main()
