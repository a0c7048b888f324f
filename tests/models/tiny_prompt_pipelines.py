"""One folder of each class of pipelines that reads prompts, beyond those of tiny_pipelines.py.

All are of 16-pixel images (Sana: 32) with real text encoders of transformers. The one stand-in is
FLUX.2's: its processor, which can read images as well, is here a tokenizer with a chat template.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.laws.tiny_transformers import MAKERS
from tests.models.tiny_pipelines import clip_text_model, clip_tokenizer, randomise, tiny_vae
from tests.models.tiny_text import gemma2, letter_tokenizer, mistral3, qwen2_vl, qwen3, t5

NUM_TIMESTEPS = 4


def lively(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every parameter random, each layer about as loud as its input: text is heard in the image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.mean() + noise / fan_in**0.5)
    return module.eval()


def transformer(family: str, **config) -> torch.nn.Module:
    """The laws' model of this family with another configuration."""
    model: Any = MAKERS[family]()
    # under names with an underscore the configuration says which of its values are defaults
    known = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return lively(type(model)(**(known | config)))


def ddim():
    """Every training step can be a sampling step."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.001,
        beta_end=0.2,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def flow(**config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def stable_diffusion_xl(folder: Path) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    tokenizers = [clip_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    return {
        "unet": lively(unet),
        "vae": tiny_vae(),
        "tokenizer": tokenizers[0],
        "text_encoder": clip_text_model(tokenizers[0]),
        "tokenizer_2": tokenizers[1],
        "text_encoder_2": clip_text_model(tokenizers[1], projected=True),
        "scheduler": ddim(),
    }


def pixart(folder: Path) -> dict[str, Any]:
    config = {"sample_size": 8, "use_additional_conditions": False}
    return {
        "transformer": transformer("pixart", **config),
        "vae": tiny_vae(2),
        "tokenizer": letter_tokenizer(ends=True),
        "text_encoder": t5(10),
        "scheduler": ddim(),
    }


def flux(folder: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    text_encoder = clip_text_model(tokenizer)
    return {
        "transformer": transformer("flux", pooled_projection_dim=32),
        "vae": tiny_vae(2, shift_factor=0.1, scaling_factor=1.5),
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "tokenizer_2": letter_tokenizer(ends=True),
        "text_encoder_2": t5(6),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def flux2_codec() -> Any:
    from diffusers import AutoencoderKLFlux2

    codec = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=2,
        mid_block_add_attention=False,
        sample_size=16,
    )
    generator = torch.Generator().manual_seed(4)
    codec.bn.running_mean.normal_(generator=generator)
    codec.bn.running_var.uniform_(0.5, 2, generator=generator)
    return randomise(codec, 2)


def flux2(folder: Path) -> dict[str, Any]:
    return {
        "transformer": transformer("flux2", joint_attention_dim=48),
        "vae": flux2_codec(),
        "tokenizer": letter_tokenizer(ends=False),
        "text_encoder": mistral3(16),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def flux2_klein(folder: Path) -> dict[str, Any]:
    network = transformer("flux2", joint_attention_dim=48, guidance_embeds=False)
    return flux2(folder) | {"transformer": network, "text_encoder": qwen3(16)}


def sana(folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderDC

    levels = {"block_out_channels": (8, 8, 16), "layers_per_block": (1, 1, 1)}
    config = {f"{part}_{key}": v for part in ("encoder", "decoder") for key, v in levels.items()}
    quiet = {"encoder_qkv_multiscales": ((),) * 3, "decoder_qkv_multiscales": ((),) * 3}
    codec = AutoencoderDC(latent_channels=8, scaling_factor=0.5, **config, **quiet)
    return {
        "transformer": transformer("sana", sample_size=8, caption_channels=16),
        "vae": randomise(codec, 2),
        "tokenizer": letter_tokenizer(ends=False),
        "text_encoder": gemma2(16),
        "scheduler": flow(shift=3.0),
    }


def qwen_image(folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKLQwenImage

    codec = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=2,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2],
        latents_std=[1.5, 0.8],
    )
    return {
        "transformer": transformer("qwen_image", joint_attention_dim=16),
        "vae": randomise(codec, 2),
        "tokenizer": letter_tokenizer(ends=False),
        "text_encoder": qwen2_vl(16),
        "scheduler": flow(use_dynamic_shifting=True, shift_terminal=0.02),
    }


def unchanged(pipeline: Any, noise: torch.Tensor) -> torch.Tensor:
    return noise


def packed(pipeline: Any, noise: torch.Tensor) -> torch.Tensor:
    """By the pipeline's own function."""
    return pipeline._pack_latents(noise, *noise.shape)


@dataclass(frozen=True, kw_only=True)
class TinyPipeline:
    """A class of pipelines: its components, how it takes latents, how it is told a guidance."""

    kind: str
    components: Callable[[Path], dict[str, Any]]
    family: str
    codec: str = "AutoencoderKL"
    image_size: int = 16
    latents: Callable[[Any, torch.Tensor], torch.Tensor] = unchanged
    guidance: float = 2.0
    call: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """What diffusers' own `save_pretrained` writes."""
        import diffusers

        getattr(diffusers, self.kind)(**self.components(folder)).save_pretrained(folder)
        return folder


BINNED = {"use_resolution_binning": False, "guidance_scale": 2.0}
TINY_PIPELINES: dict[str, TinyPipeline] = {
    "sdxl": TinyPipeline(
        kind="StableDiffusionXLPipeline",
        components=stable_diffusion_xl,
        family="unet",
        call={"guidance_scale": 2.0, "eta": 0.0},
    ),
    "pixart-alpha": TinyPipeline(
        kind="PixArtAlphaPipeline",
        components=pixart,
        family="pixart",
        call=BINNED | {"clean_caption": False},
    ),
    "pixart-sigma": TinyPipeline(
        kind="PixArtSigmaPipeline",
        components=pixart,
        family="pixart",
        call=BINNED | {"clean_caption": False},
    ),
    "flux": TinyPipeline(
        kind="FluxPipeline",
        components=flux,
        family="flux",
        latents=packed,
        call={"guidance_scale": 2.0},
    ),
    "flux2": TinyPipeline(
        kind="Flux2Pipeline",
        components=flux2,
        family="flux2",
        codec="AutoencoderKLFlux2",
        call={"guidance_scale": 2.0},
    ),
    "flux2-klein": TinyPipeline(
        kind="Flux2KleinPipeline",
        components=flux2_klein,
        family="flux2",
        codec="AutoencoderKLFlux2",
        call={"guidance_scale": 2.0},
    ),
    "sana": TinyPipeline(
        kind="SanaPipeline",
        components=sana,
        family="sana",
        codec="AutoencoderDC",
        image_size=32,
        call=BINNED | {"clean_caption": False},
    ),
    "qwen-image": TinyPipeline(
        kind="QwenImagePipeline",
        components=qwen_image,
        family="qwen_image",
        codec="AutoencoderKLQwenImage",
        latents=packed,
        guidance=1.0,  # the pipeline's own guidance rescales what it adds up
        call={"true_cfg_scale": 1.0},
    ),
}
