"""The keys of LoRA files: which part of which module a tensor is, in all spellings in use.

PEFT and diffusers: `unet.MODULE.lora_A.weight`, or `lora_A.NAME.weight` with an adapter's name;
older diffusers: `MODULE.processor.to_q_lora.down`; kohya and ComfyUI:
`lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight` with `.alpha`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from smidgen.core.weights import some
from smidgen.errors import SmidgenError

PartName = Literal["down", "up", "alpha"]

TAILS: Mapping[tuple[str, ...], PartName] = {
    ("lora_A", "weight"): "down",
    ("lora_B", "weight"): "up",
    ("lora_down", "weight"): "down",
    ("lora_up", "weight"): "up",
    ("lora", "down", "weight"): "down",
    ("lora", "up", "weight"): "up",
    ("lora_linear_layer", "down", "weight"): "down",
    ("lora_linear_layer", "up", "weight"): "up",
    ("alpha",): "alpha",
}
PROCESSOR = {  # of attention processors in diffusers before 0.22
    "to_q_lora": ("to_q",),
    "to_k_lora": ("to_k",),
    "to_v_lora": ("to_v",),
    "to_out_lora": ("to_out", "0"),
}
OTHERS: Mapping[str, str] = {  # a part of a key -> the method that it belongs to
    **dict.fromkeys(("dora_scale", "lora_magnitude_vector"), "DoRA"),
    **dict.fromkeys(
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), "LoHa"
    ),
    **dict.fromkeys(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        "LoKr",
    ),
    "lora_mid": "LoCon with a Tucker core",
    **dict.fromkeys(("diff", "diff_b", "set_weight"), "differences of whole weights"),
    **dict.fromkeys(("w_norm", "b_norm"), "trained norms"),
    **dict.fromkeys(("oft_blocks", "oft_diag", "oft_R"), "OFT"),
    "on_input": "IA3",
    "lora_diag": "KaSA",
    "lora_velora_embed": "VeLoRA",
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), "LoRA of embeddings"),
    "base_layer": "the base's own weights",
}
NAMED: Mapping[str, PartName] = {"lora_A": "down", "lora_B": "up"}  # before an adapter's name
PREFIXES = (  # before a module's own name, of programs and of components
    "base_model.model.",
    "unet.",
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
)
TEXT_COMPONENTS = frozenset(
    {
        *("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoders", "text_model"),
        "bundle_emb",  # trained words, which kohya's trainer puts beside its LoRA
    }
)
TEXT_PREFIXES = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")
TEXT = "LoRA of text encoders"
LEAVE_OUT = '--leave-out-text-encoder (in Python: text_encoder="leave-out") leaves those out'


def bare_names(name: str) -> list[str]:
    """The name, and all that is left of it without one prefix after the other."""
    names = [name]
    for longer in names:  # which grows
        names += [longer.removeprefix(one) for one in PREFIXES if longer.startswith(one)]
    return names


def is_of_text(key: str) -> bool:
    """Whether a tensor belongs to a text encoder."""
    components = (name.partition(".")[0] for name in bare_names(key))
    return key.startswith(TEXT_PREFIXES) or not TEXT_COMPONENTS.isdisjoint(components)


def adapter_of(key: str) -> str | None:
    """The name of the adapter in a key, None without."""
    leaves = key.split(".")
    named = len(leaves) > 3 and leaves[-1] == "weight" and leaves[-3] in NAMED
    return leaves[-2] if named else None


def parse_key(key: str) -> tuple[str, PartName] | None:
    """The name of the module in the file and the part, or None for a key of another kind."""
    leaves = tuple(key.split("."))
    if leaves[-1] == "weight" and len(leaves) > 3 and leaves[-3] in PROCESSOR:
        part = {"down": "down", "up": "up"}.get(leaves[-2])
        attention = leaves[:-4] if leaves[-4] == "processor" else leaves[:-3]
        if part is not None:
            return ".".join(attention + PROCESSOR[leaves[-3]]), "down" if part == "down" else "up"
    if adapter_of(key) is not None:
        *module, end, _, _ = key.split(".")
        return ".".join(module), NAMED[end]
    for tail, part in TAILS.items():
        if leaves[-len(tail) :] == tail and len(leaves) > len(tail):
            return ".".join(leaves[: -len(tail)]), part
    return None


def check_kinds(keys: Collection[str], path: Path) -> None:
    """Raises: SmidgenError, naming all kinds, if a key is not of a plain LoRA of the denoiser."""
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for key in keys:
        kind = _other_kind(key)
        if kind is not None:
            kinds[kind] += 1
            examples.setdefault(kind, key)
    adapters = sorted({name for key in keys if (name := adapter_of(key)) is not None})
    if len(adapters) > 1:
        raise SmidgenError(f"{path} holds the adapters {some(adapters)}; save one of them alone")
    if kinds:
        listed = "; ".join(
            f"{kind} ({count} tensors, first {examples[kind]})" for kind, count in kinds.items()
        )
        hint = f"; {LEAVE_OUT}" if TEXT in kinds else ""
        raise SmidgenError(
            f"{path} holds what a delta cannot: {listed}. Only plain LoRA of the denoiser is read; "
            f"save that alone, or train the other parts here{hint}"
        )


def _other_kind(key: str) -> str | None:
    leaves = key.split(".")
    if is_of_text(key):
        return TEXT
    for leaf in leaves:
        if leaf in OTHERS:
            return OTHERS[leaf]
    if leaves[-1] == "bias":
        return "trained biases"
    return None if parse_key(key) is not None else "keys of an unknown kind"
