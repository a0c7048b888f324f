"""A node for ComfyUI that applies a delta of smidgen to a model: adapters, DiffFit, BitFit, LoRA
and full fine-tuning of the UNets of SD 1.x, 2.x and SDXL.

Put this one file into ComfyUI/custom_nodes, and smidgen into ComfyUI's environment (pip install).
The model's weights stay as they are: the edits act while the network is called, and no longer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smidgen.core.arithmetic import scaled
from smidgen.core.delta import Delta
from smidgen.files.reading import sha256_of
from smidgen.interop.original_unet import for_original_unet, is_base_of

logger = logging.getLogger("smidgen")


class ApplySmidgenDelta:
    """MODEL in, MODEL with the delta out."""

    CATEGORY = "loaders"
    DESCRIPTION = "Applies a delta.safetensors of smidgen to a model."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node asks for, in ComfyUI's form."""
        strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "delta": ("STRING", {"default": "runs/subject/delta.safetensors"}),
                "strength": ("FLOAT", strength),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model: Any, delta: str, strength: float) -> str:
        """The file's content: a delta that was trained on is loaded again."""
        return sha256_of(delta) if Path(delta).is_file() else ""

    def apply(self, model: Any, delta: str, strength: float) -> tuple[Any]:
        """A clone of the model's patcher, whose network is called with the delta attached.

        Raises: SmidgenError for a file that is no delta, one of another family or of other
            modules, or a strength that it does not have.
        """
        whole = Delta.load(Path(delta))
        network = model.model.diffusion_model
        found = scaled(for_original_unet(whole, network), strength)
        if whole.components:
            logger.warning(
                "smidgen: edits in %s are left out, of which a MODEL has nothing; "
                "smidgen fold writes them into text encoders",
                ", ".join(whole.components),
            )
        if not is_base_of(whole, network):
            logger.warning(
                'smidgen: the delta was made for base "%s", and this model has other weights',
                whole.provenance.base,
            )
        patched = model.clone()
        before = patched.model_options.get("model_function_wrapper")
        patched.set_model_unet_function_wrapper(attached(found, network, before))
        return (patched,)


def attached(
    delta: Delta, network: Any, before: Callable[[Any, dict[str, Any]], Any] | None
) -> Callable[[Any, dict[str, Any]], Any]:
    """What ComfyUI calls in place of `apply_model`: it, or the wrapper that was there `before`,
    with the delta attached.
    """

    def wrapper(apply_model: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        delta.to(arguments["input"].device)  # ComfyUI moves its models when it uses them
        with delta.attach(network):
            if before is not None:
                return before(apply_model, arguments)
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    return wrapper


NODE_CLASS_MAPPINGS = {"ApplySmidgenDelta": ApplySmidgenDelta}
NODE_DISPLAY_NAME_MAPPINGS = {"ApplySmidgenDelta": "Apply smidgen delta"}
