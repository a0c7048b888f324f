"""What a LoRA file says of itself in its metadata, for programs that list and place it: ModelSpec
1.0.0 (https://github.com/Stability-AI/ModelSpec), as far as a delta and its base tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save
from torch import Tensor

from smidgen.core.delta import Delta, Provenance
from smidgen.interop.lora_names import UNET, Names

PREFIX = "modelspec."
VERSION = "1.0.0"
MOST_PROMPTS = 8

UNETS = {  # width of the text that is read -> architecture; those of the spec
    768: "stable-diffusion-v1",
    1024: "stable-diffusion-v2-512",
    1280: "stable-diffusion-xl-v1-refiner",
    2048: "stable-diffusion-xl-v1-base",
}
V_PREDICTING = {"stable-diffusion-v2-512": "stable-diffusion-v2-768-v"}
SD3 = {24: "stable-diffusion-3-m", 38: "stable-diffusion-3-5-large"}  # layers -> as kohya writes it
DIFFUSERS = "diffusers"
ORIGINAL = {  # class of the network -> the code that has the names of kohya's files
    UNET: "https://github.com/Stability-AI/generative-models",
    "SD3Transformer2DModel": "https://github.com/Stability-AI/sd3.5",
    "FluxTransformer2DModel": "https://github.com/black-forest-labs/flux",
    "DiT": "https://github.com/facebookresearch/DiT",
}


class Described(Protocol):
    """What is read of a base; `models.base.Base` is one."""

    @property
    def denoiser(self) -> Any: ...
    @property
    def image_size(self) -> int: ...
    @property
    def objective(self) -> str: ...


def modelspec(delta: Delta, base: Described, format: str) -> dict[str, str]:
    """The fields for a LoRA file of this delta in this format (`lora.LoraFormat`).

    No date and no path, so that equal deltas are equal files.
    """
    names = Names(base.denoiser)
    kind = names.class_name
    original = format == "kohya" and (names.kohya_is_original() or names.ours is not None)
    fields = {
        "sai_model_spec": VERSION,
        "architecture": f"{_architecture(kind, names.config, base.objective)}/lora",
        "implementation": ORIGINAL.get(kind, DIFFUSERS) if original else DIFFUSERS,
        "title": _title(delta.provenance),
        "resolution": f"{base.image_size}x{base.image_size}",
    }
    if base.objective != "flow":
        fields["prediction_type"] = "v" if base.objective == "v" else "epsilon"
    prompts = delta.provenance.training.get("prompts", {})
    template, classes = prompts.get("template"), prompts.get("classes")
    if template and classes:
        texts = [template.replace("{class}", name) for name in classes[:MOST_PROMPTS]]
        fields["usage_hint"] = f"Trained on: {'; '.join(texts)}"
    return {PREFIX + name: value for name, value in fields.items()}


def file_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of tensors that share no memory; with a ModelSpec also the hash of what
    comes behind the header. Equal tensors and metadata are equal bytes: safetensors itself writes
    metadata in any order.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(dense)
    length = 8 + int.from_bytes(content[:8], "little")
    facts = {"format": "pt", **metadata}  # the key without which diffusers refuses a file
    if metadata:
        facts[f"{PREFIX}hash_sha256"] = f"0x{hashlib.sha256(content[length:]).hexdigest()}"
    header = {"__metadata__": dict(sorted(facts.items()))} | json.loads(content[8:length])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[length:]


def _architecture(kind: str, config: Any, objective: str) -> str:
    """The name that the spec, or kohya's trainer, has for it; else the class of the network."""
    found = None
    if kind == UNET:
        found = UNETS.get(config.cross_attention_dim)
        found = V_PREDICTING.get(str(found), found) if objective == "v" else found
    elif kind == "SD3Transformer2DModel":
        dual = config.dual_attention_layers
        found = "stable-diffusion-3-5-medium" if dual else SD3.get(config.num_layers)
    elif kind == "FluxTransformer2DModel" and config.num_layers == 19:
        found = "flux-1-dev" if config.guidance_embeds else "flux-1-schnell"
    return found or kind


def _title(provenance: Provenance) -> str:
    data = provenance.training.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    kind = f"LoRA of {Path(provenance.base).name}"
    return f"{name}, {kind}" if isinstance(name, str) and name else kind
