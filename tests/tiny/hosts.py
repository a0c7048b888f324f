"""How a network of each family is called and what is known of it: what the laws run on.

A new host is covered by one entry of FAMILIES (networks.py) and one of TINY_HOSTS, a new method by
its line in METHODS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.hosts.host import find_family
from tests.tiny.networks import TEXT, network

IN_FLOAT32 = 1e-5  # `rounding` of families that compute a part in float32 whatever they are given
STEPS = ("dit", "unet", "pixart")  # whose times are steps; those of the others are sigmas


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"
    )


def latents(family: str, number: int) -> Tensor:
    """(number, C, 4, 4): what the networks of this family denoise."""
    channels = {"pixart": 2, "sd3": 2, "flux": 2, "qwen_image": 2, "sana": 8, "flux2": 8}
    return _random(number, channels.get(family, 4), 4, 4, seed=7)


def times(family: str, number: int) -> Tensor:
    """From the first to the last, as this family counts them."""
    if family in STEPS:
        return torch.linspace(5, 995, number).long()
    return torch.linspace(0.1, 0.95, number, dtype=torch.float64)


def conditions(family: str, labels: Tensor) -> dict[str, Tensor]:
    """What `predict` of this family needs besides latents and time: the labels, or random texts."""
    number = len(labels)
    if family == "dit":
        return {"labels": labels}
    condition = {"text": _random(number, 3, 10 if family == "pixart" else TEXT, seed=8)}
    if family in ("pixart", "sana", "qwen_image"):  # the last word of every second text is padding
        condition["mask"] = torch.ones(number, 3, dtype=torch.long)
        condition["mask"][::2, 2] = 0
    if family in ("sd3", "flux"):
        condition["pooled"] = _random(number, 5, seed=9)
    if family in ("flux", "flux2"):
        condition["guidance"] = torch.full((number,), 2.5, dtype=torch.float64)
    return condition


@dataclass(frozen=True, kw_only=True)
class TinyHost:
    """How the laws handle one family.

    `without_gradient`: tensors of the base, or edits of a delta, whose gradient is zero by
    mathematics -> the range of their elements. `rounding`: how far two ways to compute one thing in
    float64 may be apart; more where the family's own code goes through float32.
    """

    family: str
    without_gradient: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rounding: float = 1e-12

    def make(self, num_classes: int) -> Any:
        """A network; one that reads texts has no classes."""
        return network(self.family, **({"num_classes": num_classes} if self.labelled else {}))

    @property
    def labelled(self) -> bool:
        return self.family == "dit"

    def inputs(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Tensors, the image first; a host without labels takes their number alone."""
        number = len(labels)
        condition = conditions(self.family, labels)
        return latents(self.family, number), times(self.family, number), *condition.values()

    def call(self, model: nn.Module, x: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        """The prediction as one tensor; of a class without a host by its own signature."""
        if self.family == "auraflow":
            return model(x, *condition, t, return_dict=False)[0]
        if self.family == "lumina2":
            mask = torch.ones(condition[0].shape[:2], dtype=torch.int64)
            return model(x, t, *condition, mask, return_dict=False)[0]
        names = conditions(self.family, torch.zeros(1, dtype=torch.long))
        named = dict(zip(names, condition, strict=True))
        within = getattr(model, "_orig_mod", model)  # of a compiled one
        return find_family(within).predict(model, x, t, named)

    def alive(self, name: str, tensor: Tensor) -> Tensor:
        """Which elements of this trained tensor have a gradient by mathematics."""
        alive = torch.ones(tensor.numel(), dtype=torch.bool)
        for dead, bounds in self.without_gradient.items():
            # as a trained copy of a module's or of all parameters, as a shift, as a scale
            if name in (dead, f"root.{dead}", f"{dead}.offset", f"{dead}.gain"):
                alive[slice(*bounds)] = False
        return alive

    def checkpoint(self, model: Any) -> None:
        """Turns gradient checkpointing on."""
        if self.family == "dit":
            model.gradient_checkpointing = True
        else:
            model.enable_gradient_checkpointing()


LAST = "transformer_blocks.1"  # of those with two blocks
UNREAD = {  # queries of text whose attention nothing reads: SD3's and Qwen-Image's last block
    f"{LAST}.attn.add_q_proj.weight": (0, 256),
    f"{LAST}.attn.add_q_proj.bias": (0, 16),
    f"{LAST}.attn.add_q_proj.lora.down.weight": (0, 128),
    f"{LAST}.attn.add_q_proj.lora.up.weight": (0, 128),
}
WITHOUT_GRADIENT: Mapping[str, Mapping[str, tuple[int, int]]] = {
    # a bias of the keys adds the same to all of a query's logits: softmax does not see it
    "dit": {f"blocks.{n}.attn.qkv.bias": (16, 32) for n in range(2)},
    "pixart": {
        f"transformer_blocks.{block}.{attention}.to_k.bias": (0, 24)
        for block in range(2)
        for attention in ("attn1", "attn2")
    },
    "sana": {f"transformer_blocks.{block}.attn2.to_k.bias": (0, 16) for block in range(2)},
    "auraflow": {"single_transformer_blocks.0.attn.norm_k.bias": (0, 8)},  # of all keys there
    "sd3": UNREAD,
    # all that the last block makes of the text behind the keys and values for the image
    "qwen_image": UNREAD
    | {
        f"{LAST}.attn.norm_added_q.weight": (0, 8),
        f"{LAST}.attn.to_add_out.weight": (0, 256),
        f"{LAST}.attn.to_add_out.bias": (0, 16),
        f"{LAST}.txt_mod.1.weight": (2 * 256, 6 * 256),  # but shift and scale of the first norm
        f"{LAST}.txt_mod.1.bias": (2 * 16, 6 * 16),
        f"{LAST}.txt_norm2.weight": (0, 16),  # created, as is the next
        f"{LAST}.txt_norm2.bias": (0, 16),
        f"{LAST}.txt_mlp.net.0.proj.weight": (0, 1024),
        f"{LAST}.txt_mlp.net.0.proj.bias": (0, 64),
        f"{LAST}.txt_mlp.net.2.weight": (0, 1024),
        f"{LAST}.txt_mlp.net.2.bias": (0, 16),
    },
}
# rotary embeddings; Sana's linear attention
FLOAT32 = ("flux", "flux2", "qwen_image", "sana", "lumina2")
TINY_HOSTS: dict[str, TinyHost] = {
    family: TinyHost(
        family=family,
        without_gradient=WITHOUT_GRADIENT.get(family, {}),
        rounding=IN_FLOAT32 if family in FLOAT32 else TinyHost.rounding,
    )
    for family in (
        *("dit", "unet", "auraflow", "lumina2"),
        *("pixart", "sd3", "flux", "sana", "flux2", "qwen_image"),
    )
}


def all_labels(classes: Sequence[str]) -> Tensor:
    """Every class once, then the null label."""
    return torch.arange(len(classes) + 1)
