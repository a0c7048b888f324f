"""A diffusers pipeline as one `.safetensors` in the original code's names, from its state dicts.

SD 1.x, 2.x and SDXL with codec and text encoders, as their checkpoints are; SD3 and Flux with the
codec only, as `sd3_medium.safetensors` is: text encoders come from where they are for any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.hosts.family import Original
from smidgen.hosts.host import families
from smidgen.hosts.original_parts import original_clip, original_open_clip, original_vae
from smidgen.hosts.renaming import modules_of, rename

State = Mapping[str, Tensor]

DENOISER = "model.diffusion_model."
CODEC_CLASS = "AutoencoderKL"


def original_of(configs: Mapping[str, Mapping[str, Any]], denoiser: str) -> Original:
    """The original code of a pipeline with these components' `config.json`.

    Raises: SmidgenError for a family without one, another codec, or a network that it has not.
    """
    class_name = configs[denoiser].get("_class_name")
    originals = {name: family.original for name, family in families().items() if family.original}
    if class_name not in originals:
        *first, last = (original.models for original in originals.values())
        raise SmidgenError(
            f"there are no original names for a {class_name}: single files are written for "
            f"{', '.join(first)} and {last}; write a diffusers folder instead"
        )
    codec = configs.get("vae", {}).get("_class_name")
    if codec != CODEC_CLASS:
        raise SmidgenError(f"a single file has an {CODEC_CLASS} as its codec, not a {codec}")
    refusal = originals[class_name].refusal(configs[denoiser])
    if refusal is not None:
        raise SmidgenError(refusal)
    return originals[class_name]


def single_file(
    original: Original,
    denoiser: State,
    codec: State,
    text_encoders: Mapping[str, tuple[State, str]],
) -> dict[str, Tensor]:
    """The tensors of the file. `text_encoders` has under `text_encoder` and `text_encoder_2` a
    state dict and its configuration's `hidden_act`, by which CLIP's and OpenCLIP's code differ.

    Raises: SmidgenError if a tensor has no original name.
    """
    tensors: dict[str, Tensor] = {}
    renaming = original.names(modules_of(denoiser))
    for key, tensor in rename(denoiser, renaming, "the original format").items():
        tensors[DENOISER + key] = tensor
    for key, tensor in original_vae(codec).items():
        tensors[original.codec + key] = tensor
    for name, (state, activation) in text_encoders.items():
        clip, open_clip = original.text_encoders[len(text_encoders)]
        if name == "text_encoder_2" or (len(text_encoders) == 1 and activation == "gelu"):
            tensors |= {open_clip + key: t for key, t in original_open_clip(state).items()}
        elif activation == "quick_gelu":
            tensors |= {clip + key: t for key, t in original_clip(state).items()}
        else:
            raise SmidgenError(
                f"{name} uses {activation}; a single file has CLIP (quick_gelu) or OpenCLIP "
                "(gelu) there; write a diffusers folder instead"
            )
    return {key: tensor.contiguous() for key, tensor in tensors.items()}
