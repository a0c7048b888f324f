"""Tiny random pipelines of diffusers with text encoders and tokenizers, saved as folders."""

import json
import logging

from tests.interop import tiny

WORDS = ("ca", "cat</w>", "re", "red</w>")


def tokenizer(folder):
    """A CLIP tokenizer of a handful of words, from files written here."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *WORDS]
    tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges = ["#version: 0.2", "c a", "ca t</w>", "r e", "re d</w>"]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made.model_max_length = 16
    return made


def clip(size, activation="quick_gelu", *, projection=None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=80,
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_act=activation,
        projection_dim=projection or size,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return tiny.randomise(kind(config), seed=3)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hush():
    """Notices of diffusers are no part of what is tested."""
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def stable_diffusion(folder, *, activation="quick_gelu", **more):
    """A StableDiffusionPipeline folder; with activation gelu its text encoder is OpenCLIP's."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    hush()
    pipeline = StableDiffusionPipeline(
        unet=tiny.unet(**more),
        vae=tiny.vae(),
        text_encoder=clip(32, activation),
        tokenizer=tokenizer(folder / "words"),
        scheduler=scheduler(DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def stable_diffusion_xl(folder):
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    hush()
    words = tokenizer(folder / "words")
    pipeline = StableDiffusionXLPipeline(
        unet=tiny.xl_unet(),
        vae=tiny.vae(),
        text_encoder=clip(32),
        text_encoder_2=clip(24, "gelu", projection=24),
        tokenizer=words,
        tokenizer_2=words,
        scheduler=scheduler(DDIMScheduler),
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def scheduler(kind):
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def stable_diffusion_3(folder):
    """Without its third text encoder, as SD3 may be used."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    hush()
    words = tokenizer(folder / "words")
    pipeline = StableDiffusion3Pipeline(
        transformer=tiny.sd3(pooled_projection_dim=40, joint_attention_dim=56),
        vae=tiny.vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=clip(16, projection=16),
        text_encoder_2=clip(24, "gelu", projection=24),
        text_encoder_3=None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def flux(folder):
    """Without text encoders: it is called with embeddings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    hush()
    pipeline = FluxPipeline(
        transformer=tiny.flux(),
        vae=tiny.vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
