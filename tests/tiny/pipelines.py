"""A folder of each class of diffusers' pipelines, as small as they come, random throughout.

All are of 16-pixel images (Sana: 32) with real text encoders of transformers. The one stand-in is
FLUX.2's: its processor, which can read images as well, is here a tokenizer with a chat template.
"""

from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tests.tiny.codecs import autoencoder
from tests.tiny.networks import network
from tests.tiny.text import (
    clip_text,
    clip_tokenizer,
    gemma2,
    letter_tokenizer,
    mistral3,
    qwen2_vl,
    qwen3,
    t5,
)

NUM_TIMESTEPS = 4


def ddim(**config: Any):
    """Every training step can be a sampling step."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.001,
        beta_end=0.2,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        **config,
    )


def flow(**config: Any):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def flow_vae(channels: int):
    return autoencoder(latent_channels=channels, shift_factor=0.1, scaling_factor=1.5)


def stable_diffusion(folder: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    return {
        "unet": network("unet", seed=1, sample_size=8, cross_attention_dim=32),
        "vae": autoencoder(),
        "tokenizer": tokenizer,
        "text_encoder": clip_text(tokenizer),
        "scheduler": ddim(beta_schedule="scaled_linear"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def two_encoders(folder: Path, *, projected: bool) -> dict[str, Any]:
    """Two CLIPs; `projected`: the first with a pooled output as well."""
    one, other = (clip_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2"))
    return {
        "tokenizer": one,
        "text_encoder": clip_text(one, projected=projected),
        "tokenizer_2": other,
        "text_encoder_2": clip_text(other, 24, projected=True, hidden_act="gelu"),
    }


def stable_diffusion_xl(folder: Path) -> dict[str, Any]:
    return two_encoders(folder, projected=False) | {
        "unet": network("sdxl", seed=1, sample_size=8, cross_attention_dim=32 + 24),
        "vae": autoencoder(),
        "scheduler": ddim(),
    }


def stable_diffusion_3(folder: Path) -> dict[str, Any]:
    """Without its third text encoder, as SD3 may be used."""
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8}
    text = {"joint_attention_dim": 32 + 24, "pooled_projection_dim": 32 + 24}
    return two_encoders(folder, projected=True) | {
        "transformer": network("sd3", seed=1, **sizes, **text),
        "vae": flow_vae(4),
        "tokenizer_3": None,
        "text_encoder_3": None,
        "scheduler": flow(),
    }


def pixart(folder: Path) -> dict[str, Any]:
    return {
        "transformer": network("pixart", seed=1, sample_size=8, use_additional_conditions=False),
        "vae": autoencoder(latent_channels=2),
        "tokenizer": letter_tokenizer(ends=True),
        "text_encoder": t5(10),
        "scheduler": ddim(),
    }


def flux(folder: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    return {
        "transformer": network("flux", seed=1, pooled_projection_dim=32),
        "vae": flow_vae(2),
        "tokenizer": tokenizer,
        "text_encoder": clip_text(tokenizer),
        "tokenizer_2": letter_tokenizer(ends=True),
        "text_encoder_2": t5(6),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def flux2(folder: Path) -> dict[str, Any]:
    return {
        "transformer": network("flux2", seed=1, joint_attention_dim=48),
        "vae": autoencoder("AutoencoderKLFlux2"),
        "tokenizer": letter_tokenizer(ends=False),
        "text_encoder": mistral3(16),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def flux2_klein(folder: Path) -> dict[str, Any]:
    undistilled = network("flux2", seed=1, joint_attention_dim=48, guidance_embeds=False)
    return flux2(folder) | {"transformer": undistilled, "text_encoder": qwen3(16)}


def sana(folder: Path) -> dict[str, Any]:
    return {
        "transformer": network("sana", seed=1, sample_size=8, caption_channels=16),
        "vae": autoencoder("AutoencoderDC"),
        "tokenizer": letter_tokenizer(ends=False),
        "text_encoder": gemma2(16),
        "scheduler": flow(shift=3.0),
    }


def qwen_image(folder: Path) -> dict[str, Any]:
    return {
        "transformer": network("qwen_image", seed=1, joint_attention_dim=16),
        "vae": autoencoder("AutoencoderKLQwenImage"),
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
    """A class of pipelines: its components, how it takes latents, how it is told a guidance,
    the components that it may lack, and those that stand beside its single files.
    """

    kind: str
    components: Callable[[Path], dict[str, Any]]
    family: str
    codec: str = "AutoencoderKL"
    image_size: int = 16
    latents: Callable[[Any, torch.Tensor], torch.Tensor] = unchanged
    guidance: float = 2.0
    call: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def cls(self) -> Any:
        import diffusers

        return getattr(diffusers, self.kind)

    def save(self, folder: Path, *, scheduler: Mapping[str, Any] = MappingProxyType({}), **parts):
        """What diffusers' own `save_pretrained` writes, with other values in the configuration of
        the scheduler or with other parts.
        """
        components = self.components(folder) | parts
        plain = components["scheduler"]
        components["scheduler"] = type(plain).from_config(plain.config, **scheduler)
        self.cls(**components).save_pretrained(folder)
        return folder

    def load(self, folder: Path, **parts: Any) -> Any:
        """The pipeline of diffusers, without a progress bar."""
        pipeline = self.cls.from_pretrained(folder, **(dict.fromkeys(self.absent) | parts))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def load_file(self, path: Path, folder: Path) -> Any:
        """The same of one file, with the parts that it has not from the folder."""
        whole = self.load(folder)
        parts = dict.fromkeys(self.absent) | {name: getattr(whole, name) for name in self.beside}
        with narrow(whole.transformer) if self.family == "flux" else nullcontext():
            pipeline = self.cls.from_single_file(
                str(path), config=str(folder), local_files_only=True, **parts
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@contextmanager
def narrow(transformer: Any):
    """diffusers' reader of Flux files has FLUX.1's width written into it: the same split in the
    width of this one.
    """
    split, width = torch.split, transformer.inner_dim
    released = (3072, 3072, 3072, 4 * 3072)

    def scaled(tensor, sizes, dim=0):
        own = [size * width // 3072 for size in sizes] if sizes == released else sizes
        return split(tensor, own, dim=dim)

    torch.split = scaled
    try:
        yield
    finally:
        torch.split = split


ENCODERS = ("text_encoder", "text_encoder_2")
BINNED = {"use_resolution_binning": False, "guidance_scale": 2.0, "clean_caption": False}
TINY_PIPELINES: dict[str, TinyPipeline] = {
    "sd": TinyPipeline(
        kind="StableDiffusionPipeline",
        components=stable_diffusion,
        family="unet",
        call={"guidance_scale": 2.0, "eta": 0.0},
    ),
    "sdxl": TinyPipeline(
        kind="StableDiffusionXLPipeline",
        components=stable_diffusion_xl,
        family="unet",
        call={"guidance_scale": 2.0, "eta": 0.0},
    ),
    "sd3": TinyPipeline(
        kind="StableDiffusion3Pipeline",
        components=stable_diffusion_3,
        family="sd3",
        call={"guidance_scale": 2.0},
        absent=("tokenizer_3", "text_encoder_3"),
        beside=ENCODERS,
    ),
    "pixart-alpha": TinyPipeline(
        kind="PixArtAlphaPipeline", components=pixart, family="pixart", call=BINNED
    ),
    "pixart-sigma": TinyPipeline(
        kind="PixArtSigmaPipeline", components=pixart, family="pixart", call=BINNED
    ),
    "flux": TinyPipeline(
        kind="FluxPipeline",
        components=flux,
        family="flux",
        latents=packed,
        call={"guidance_scale": 2.0},
        beside=ENCODERS,
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
        call=BINNED,
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
