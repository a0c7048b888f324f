"""A diffusers pipeline as one `.safetensors` in the original code's names, from its state dicts.

SD 1.x, 2.x and SDXL with codec and text encoders, as their checkpoints are; SD3 and Flux with the
codec only, as `sd3_medium.safetensors` is: text encoders come from where they are for any model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.interop.original_parts import original_clip, original_open_clip, original_vae
from smidgen.interop.original_transformers import flux_renaming, sd3_renaming
from smidgen.interop.original_unet import unet_renaming
from smidgen.interop.renaming import Renaming, modules_of, rename

State = Mapping[str, Tensor]

DENOISER = "model.diffusion_model."
RENAMINGS: Mapping[str, Callable[[Collection[str]], Renaming]] = {
    "UNet2DConditionModel": unet_renaming,
    "SD3Transformer2DModel": sd3_renaming,
    "FluxTransformer2DModel": flux_renaming,
}
CODEC = {  # as the programs look for it
    "UNet2DConditionModel": "first_stage_model.",
    "SD3Transformer2DModel": "first_stage_model.",
    "FluxTransformer2DModel": "vae.",
}
CODEC_CLASS = "AutoencoderKL"


def renaming_of(class_name: str, names: Collection[str]) -> Renaming | None:
    """The original names of a denoiser of this class with these modules; None if it has none."""
    return RENAMINGS[class_name](names) if class_name in RENAMINGS else None


def text_encoders_needed(class_name: str) -> bool:
    """Whether a single file of this family has its text encoders in it."""
    return class_name == "UNet2DConditionModel"


def check_single_file(configs: Mapping[str, Mapping[str, Any]], denoiser: str) -> None:
    """Whether a single file can hold a pipeline with these components' `config.json`.

    Raises: SmidgenError for another family, another codec, or a UNet of another kind.
    """
    config = configs[denoiser]
    class_name = config.get("_class_name")
    if class_name not in RENAMINGS:
        raise SmidgenError(
            f"there are no original names for a {class_name}: single files are written for SD 1.x, "
            "2.x, SDXL, SD3 and Flux; write a diffusers folder instead"
        )
    codec = configs.get("vae", {}).get("_class_name")
    if codec != CODEC_CLASS:
        raise SmidgenError(f"a single file has an {CODEC_CLASS} as its codec, not a {codec}")
    if class_name == "UNet2DConditionModel":
        embedding = config.get("class_embed_type") or config.get("num_class_embeds")
        if embedding or config.get("addition_embed_type") not in (None, "text_time"):
            raise SmidgenError(
                "a single file holds UNets of SD 1.x, 2.x and SDXL; this one has other embeddings"
            )


def single_file(
    class_name: str, denoiser: State, codec: State, text_encoders: Mapping[str, tuple[State, str]]
) -> dict[str, Tensor]:
    """The tensors of the file. `text_encoders` has under `text_encoder` and `text_encoder_2` a
    state dict and its configuration's `hidden_act`, by which CLIP's and OpenCLIP's code differ.

    Raises: SmidgenError if a tensor has no original name.
    """
    tensors: dict[str, Tensor] = {}
    renaming = RENAMINGS[class_name](modules_of(denoiser))
    for key, tensor in rename(denoiser, renaming, "the original format").items():
        tensors[DENOISER + key] = tensor
    for key, tensor in original_vae(codec).items():
        tensors[CODEC[class_name] + key] = tensor
    for name, (state, activation) in text_encoders.items():
        tensors |= _text_encoder(name, state, activation, len(text_encoders) > 1)
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def _text_encoder(name: str, state: State, activation: str, is_xl: bool) -> dict[str, Tensor]:
    """CLIP came with quick_gelu, OpenCLIP with gelu; each has its own names and place."""
    clip, open_clip = (
        ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
        if is_xl
        else ("cond_stage_model.transformer.", "cond_stage_model.model.")
    )
    if name == "text_encoder_2" or (not is_xl and activation == "gelu"):
        return {open_clip + key: tensor for key, tensor in original_open_clip(state).items()}
    if activation != "quick_gelu":
        raise SmidgenError(
            f"{name} uses {activation}; a single file has CLIP (quick_gelu) or OpenCLIP (gelu) "
            "there; write a diffusers folder instead"
        )
    return {clip + key: tensor for key, tensor in original_clip(state).items()}
