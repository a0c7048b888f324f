"""What a LoRA file says of itself in its metadata, for programs that list and place it: ModelSpec
1.0.0 (https://github.com/Stability-AI/ModelSpec), as far as a delta and its base tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from smidgen.core.delta import Delta, Provenance
from smidgen.hosts.host import families
from smidgen.interop.lora_names import Names
from smidgen.models.base import Base

PREFIX = "modelspec."
VERSION = "1.0.0"
MOST_PROMPTS = 8

DIFFUSERS = "diffusers"


def modelspec(delta: Delta, base: Base, format: str) -> dict[str, str]:
    """The fields for a LoRA file of this delta in this format (`lora.LoraFormat`).

    No date and no path, so that equal deltas are equal files.
    """
    network: Any = base.denoiser
    process = base.process
    names, family = Names(network), families().get(type(network).__name__)
    original = format == "kohya" and (names.kohya_is_original or names.ours is not None)
    found, code = None, None
    if family is not None:
        found, code = family.architecture(network.config, process.predicts_v), family.code
    fields = {
        "sai_model_spec": VERSION,
        "architecture": f"{found or names.class_name}/lora",
        "implementation": (code or DIFFUSERS) if original else DIFFUSERS,
        "title": _title(delta.provenance),
        "resolution": f"{base.image_size.width}x{base.image_size.height}",
    }
    if process.name == "diffusion":
        fields["prediction_type"] = "v" if process.predicts_v else "epsilon"
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


def _title(provenance: Provenance) -> str:
    data = provenance.training.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    kind = f"LoRA of {Path(provenance.base).name}"
    return f"{name}, {kind}" if isinstance(name, str) and name else kind
