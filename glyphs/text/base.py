"""Pretrains `glyphs-text`: text encoder and UNet together, from nothing, on captioned pictures.

`python -m glyphs.text.base glyphs/text/base.toml` resumes from data/glyphs/text-base.safetensors
and writes the Stable Diffusion folder beside the package's other embedded weights, then
results/text-base.json. The codec is that of `glyphs`. Dimensions: B batch, 4 x 8 x 8 latents, L
tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from glyphs.images import EMBEDDED, log, read_settings, write_result
from glyphs.render import DATA
from glyphs.text.pictures import Things, choose, draw_batch, load_things
from glyphs.text.running import Run, parser, train
from glyphs.text.tokenizer import LENGTH, write_tokenizer
from smidgen.diffusion.flow import shift_sigmas, sigmas_at
from smidgen.diffusion.objective import add_noise, hybrid_loss
from smidgen.diffusion.schedule import Schedule
from smidgen.training.compiled import check_gradients

VAE = EMBEDDED / "glyphs" / "vae"


@dataclass(frozen=True, kw_only=True)
class TextBaseConfig:
    """Settings of base.toml. `heads` of attention at each of the UNet's levels, `groups` of its
    normalisation, `timestep_shift` that of logit-normal steps.
    """

    name: str
    channels: list[int]
    heads: list[int]
    groups: int
    text_width: int
    text_layers: int
    text_heads: int
    num_images: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    ema_decay: float
    caption_dropout: float
    min_snr: float
    timestep_shift: float
    seed: int

    @property
    def num_steps(self) -> int:
        return self.num_images // self.batch_size


class Networks(nn.Module):
    """What is trained: the text encoder and the UNet that attends to its tokens."""

    def __init__(self, config: TextBaseConfig, num_tokens: int) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=num_tokens,
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=LENGTH,
                projection_dim=config.text_width,
                bos_token_id=num_tokens - 2,
                eos_token_id=num_tokens - 1,
                pad_token_id=num_tokens - 1,
            )
        )
        levels = len(config.channels)
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=tuple(config.channels),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            cross_attention_dim=config.text_width,
            attention_head_dim=tuple(config.heads),
            norm_num_groups=config.groups,
        )
        for module in self.unet.modules():
            if isinstance(module, Upsample2D):
                module.interpolate = False
                module.register_forward_pre_hook(_twice_as_large)
        # On a processor the fused attention's backward pass takes 0.7 of a whole step in bfloat16.
        self.text_encoder.set_attn_implementation("eager")
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Predicted noise (B, 4, 8, 8) for token ids (B, L)."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(x_t, t, text, return_dict=False)[0]


def _twice_as_large(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Each pixel four times, as interpolation to the nearest does it: compiled by PyTorch 2.13 for
    a CPU, that gives its input no gradient.
    """
    x, *others = arguments
    batch, channels, height, width = x.shape
    x = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return x.reshape(batch, channels, 2 * height, 2 * width), *others


class Pictures:
    """Endless batches, each by the number of its step."""

    def __init__(self, config: TextBaseConfig, things: Things, tokenizer: Any) -> None:
        self.config, self.things, self.tokenizer = config, things, tokenizer
        self.codec = AutoencoderKL.from_pretrained(VAE).float().eval()
        self.codec.to(memory_format=torch.channels_last)
        self.schedule = Schedule.linear()

    @torch.no_grad()
    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scaled posterior means (B, 4, 8, 8), steps (B,), noise and token ids (B, L)."""
        random = np.random.default_rng((self.config.seed, step))
        chosen = choose(self.things, self.config.batch_size, random)
        images, captions = draw_batch(self.things, chosen, random)
        dropped = random.random(len(captions)) < self.config.caption_dropout
        said = ["" if gone else text for gone, text in zip(dropped, captions, strict=True)]
        tokens = self.tokenizer(said, padding="max_length", truncation=True, return_tensors="pt")
        images = images.contiguous(memory_format=torch.channels_last)
        means = self.codec.encode(images).latent_dist.mean * self.codec.config.scaling_factor
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        noise = torch.randn(means.shape, generator=generator)
        return means.contiguous(), self.times(generator), noise, tokens.input_ids

    def times(self, generator: torch.Generator) -> Tensor:
        """Logit-normal steps (B,), one from each of B equal shares of them."""
        size = self.config.batch_size
        quantiles = torch.arange(size) + torch.rand(size, generator=generator, dtype=torch.float64)
        sigmas = sigmas_at(quantiles / size, "logit-normal")
        return self.schedule.rows_at(shift_sigmas(sigmas, self.config.timestep_shift))


def build_loss(
    networks: Networks, config: TextBaseConfig
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The loss of a batch of `Pictures.draw`."""
    schedule = Schedule.linear()

    def loss_of(x0: Tensor, t: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
        x_t = add_noise(schedule, x0, t, noise)
        with torch.autocast("cpu", torch.bfloat16):
            output = networks(x_t, t, tokens)
        losses = hybrid_loss(output, x0, x_t, t, noise, schedule, min_snr=config.min_snr)
        return losses.mean()

    return loss_of


def export(networks: Networks, folder: Path) -> None:
    """Writes the folder that StableDiffusionPipeline loads: weights in float16, the text encoder's
    in float32 (stock diffusers cannot run it in half precision beside the others).
    """
    networks.text_encoder.save_pretrained(folder / "text_encoder")
    networks.unet.half().save_pretrained(folder / "unet")
    networks.unet.float()
    shutil.copytree(VAE, folder / "vae", dirs_exist_ok=True)
    write_tokenizer(folder / "tokenizer")
    # "half-open" of diffusion/schedule.py is its linspace: as `smidgen sample --sampler dpm++`.
    DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        timestep_spacing="linspace",
        steps_offset=1,  # of no meaning here; stock pipelines warn of another one
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    arguments = parser(__doc__).parse_args()
    settings: Path = arguments.settings
    config = TextBaseConfig(**read_settings(settings))
    tokenizer = write_tokenizer(DATA / "tokenizer")
    checkpoint = DATA / f"text-{settings.stem}.safetensors"
    run = Run(lambda: Networks(config, len(tokenizer)), config, checkpoint)
    if arguments.export:
        export(run.average, arguments.export)
        return
    loss_of = build_loss(run.model, config)
    pictures = Pictures(config, load_things(), tokenizer)
    compiled = loss_of
    if not arguments.eager:
        compiled, batch = torch.compile(loss_of), pictures.draw(0)
        check_gradients(lambda: loss_of(*batch), lambda: compiled(*batch), run.trained)
    train(run, pictures.draw, compiled, arguments.seconds)
    if run.finished:
        export(run.average, EMBEDDED / config.name)
        fields = {
            "settings": asdict(config),
            "seconds": round(run.seconds),
            "num_parameters": sum(p.numel() for p in run.trained),
            "num_images": run.step * config.batch_size,
        }
        command = f"python -m glyphs.text.base {settings}"
        log(str(write_result(f"text-{settings.stem}", command, fields)))


if __name__ == "__main__":
    main()
