"""Pipelines of diffusers, as small as they come and random throughout, saved as diffusers does.

The reference in the tests that use them is diffusers' own pipeline, loaded from the same folder.
"""

import json
from pathlib import Path

import torch

WORDS = 77  # tokens of a prompt


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random: no zero-initialised layer hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return module.eval()


def clip_tokenizer(folder: Path):
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=WORDS)


def clip_text_model(tokenizer, *, projected: bool = False):
    """A CLIP text model of 32 channels for this tokenizer; `projected`: with a pooled output."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=32,
    )
    if projected:
        return randomise(CLIPTextModelWithProjection(config), 4)
    return randomise(CLIPTextModel(config), 3)


def tiny_vae(channels: int = 4, **config):
    """An AutoencoderKL that reduces by 2."""
    from diffusers import AutoencoderKL

    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": channels,
        "mid_block_add_attention": False,
        "sample_size": 16,
    }
    return randomise(AutoencoderKL(**(options | config)), 2)


def save_stable_diffusion(folder: Path, num_timesteps: int = 20, **scheduler) -> Path:
    """A StableDiffusionPipeline of 16-pixel images; every training step can be a sampling step."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    options = {
        "num_train_timesteps": num_timesteps,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "beta_end": 0.2,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }
    tokenizer = clip_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        unet=randomise(unet, 1),
        vae=tiny_vae(),
        text_encoder=clip_text_model(tokenizer),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**(options | scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_stable_diffusion_3(folder: Path, **scheduler) -> Path:
    """A StableDiffusion3Pipeline of 16-pixel images without its third text encoder."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=16,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=8,
    )
    tokenizers = [clip_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    encoders = [clip_text_model(tokenizer, projected=True) for tokenizer in tokenizers]
    pipeline = StableDiffusion3Pipeline(
        transformer=randomise(transformer, 1),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=1.5),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        tokenizer=tokenizers[0],
        text_encoder=encoders[0],
        tokenizer_2=tokenizers[1],
        text_encoder_2=encoders[1],
        tokenizer_3=None,
        text_encoder_3=None,
    )
    pipeline.save_pretrained(folder)
    return folder
