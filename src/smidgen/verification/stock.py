"""A base's network beside the one of stock diffusers with the same weights. B images.

Of a DiT diffusers has a class of its own, which is given the weights. Of a pipeline the stock one
draws a first step, and what its network was given there goes through ours, with our conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.errors import SmidgenError
from smidgen.models.base import Base
from smidgen.models.calling import calling
from smidgen.models.components import class_of, load_autoencoder, load_encoders, load_network, quiet
from smidgen.models.dit import DiT
from smidgen.models.dit_diffusers import (
    DIFFUSERS_SHIFT,
    config_to_diffusers,
    to_diffusers,
)
from smidgen.models.dit_weights import build_dit, diffusers_folder
from smidgen.models.files import read_json
from smidgen.models.pipelines import INDEX, beside_prompts, pipeline_of
from smidgen.verification.check import Check

PROMPT, STEPS, SEED = "a photo of a cat", 2, 0
TOLERANCE = 1e-4  # of the largest output: float32, in other orders of adding
PLAIN = {"use_resolution_binning": False, "clean_caption": False}  # prompt and size as they are
TIMES = (1.0, 0.6, 0.3, 0.0)  # of the schedule's last step


class _Seen(Exception):
    """Ends a call at what was waited for."""


@torch.no_grad()
def check_forward(base: Base) -> Check:
    """The largest difference between the outputs. Raises: SmidgenError if it cannot be had."""
    # an accelerator's fast convolutions round to ten bits
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        of_dit = isinstance(base.denoiser, DiT)
        ours, stock, facts = _of_dit(base) if of_dit else _of_pipeline(base)
    largest, difference = float(stock.abs().max()), float((ours - stock).abs().max())
    same = difference <= TOLERANCE * largest  # False for NaN
    facts = {"largest_difference": difference, "largest_output": largest} | facts
    facts |= {"tolerance": TOLERANCE * largest}
    found = (
        f"outputs differ by at most {difference:.1e}, where the largest is {largest:.3g} "
        f"(at most {TOLERANCE * largest:.1e} is rounding)"
    )
    if note := facts.get("note"):
        found += f"; {note}"
    return Check(name="forward", status="pass" if same else "fail", found=found, facts=facts)


def _of_dit(base: Base) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """By DiTTransformer2DModel, whose timestep frequencies have a shift of their own: ours is given
    that shift, and what the shift changes is noted.
    """
    if base.positions is not None:
        raise SmidgenError(
            f"diffusers has positions of its own at {base.image_size} pixels; verify the base at "
            "the size that it was trained at"
        )
    denoiser: Any = base.denoiser
    config, state = denoiser.config, denoiser.state_dict()
    stock = _stock_dit(base).to(base.device)
    x, t, labels = _inputs(base)
    shifted = denoiser
    if config.frequency_shift != DIFFUSERS_SHIFT:
        same = replace(config, frequency_shift=DIFFUSERS_SHIFT)
        shifted = build_dit(same, state, device=base.device)
    # a padded table has its null label behind the padding
    null = stock.config.num_embeds_ada_norm
    theirs = torch.where(labels == base.null_label, null, labels)
    output = stock(x, timestep=t, class_labels=theirs, return_dict=False)[0]
    plain = float((denoiser(x, t, labels) - output).abs().max())
    facts: dict[str, Any] = {"stock": type(stock).__name__, "images": len(x)}
    if shifted is not denoiser:
        facts["largest_difference_with_own_frequencies"] = plain
        facts["note"] = (
            f"both with the timestep frequencies of diffusers (shift {DIFFUSERS_SHIFT:g}); with "
            f"those of the base (shift {config.frequency_shift:g}) by {plain:.1e}"
        )
    return shifted(x, t, labels), output, facts


def _stock_dit(base: Base) -> Any:
    """From the base's own folder of diffusers, else with the weights that the base holds."""
    denoiser: Any = base.denoiser
    kind = "DiTTransformer2DModel"
    folder = None if base.source is None else diffusers_folder(base.source)
    if folder is not None and read_json(folder / "config.json")["_class_name"] == kind:
        return load_network(folder, kind, torch.float32).eval()
    with quiet():
        stock = class_of(kind).from_config(config_to_diffusers(denoiser.config))
    given = to_diffusers(denoiser.state_dict(), denoiser.config.depth)
    absent, unknown = stock.load_state_dict(given, strict=False)
    absent = [name for name in absent if not name.startswith("pos_embed.pos_embed")]
    if absent or unknown:
        raise SmidgenError(f"the weights do not fit diffusers' {kind}: {[*absent, *unknown][:3]}")
    return stock.eval()


def _inputs(base: Base) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, steps of the whole schedule, and labels with the null one among them."""
    count, last = len(TIMES), len(base.process.schedule.betas) - 1  # pyright: ignore
    x = torch.randn((count, *base.latent_shape), generator=torch.Generator().manual_seed(SEED))
    t = torch.tensor([round(share * last) for share in TIMES])
    labels = torch.linspace(0, base.null_label, count).round().long()
    return x.to(base.device), t.to(base.device), labels.to(base.device)


def _of_pipeline(base: Base) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """By the stock pipeline, from the base's folder."""
    network, family = base.denoiser, base.family
    pipeline = _stock_pipeline(base)
    given, stock = _first_call(base, pipeline)
    latents = next(iter(given.values()))  # the first argument of every network
    call = calling(family, network, 1.0)
    condition = base.conditions([PROMPT])(torch.zeros(1, dtype=torch.long, device=base.device))

    def fed(x: Tensor, t: Tensor) -> dict[str, Any]:
        with _stopped(network, "given") as seen:
            call(x, t, condition)
        return seen

    x, t = _inverted(base, fed, latents, given["timestep"])
    with _stopped(network, "said") as seen:
        call(x, t, condition)
    facts = {"stock": type(pipeline).__name__, "prompt": PROMPT}
    return seen["output"], stock, facts


def _inverted(
    base: Base, fed: Callable[[Tensor, Tensor], dict[str, Any]], latents: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Latents and time that our call turns into what the stock network was given: it rearranges
    the one, which numbered latents show, and scales the other.
    """
    device = base.device
    numbered = torch.arange(latents.numel(), dtype=torch.float32, device=device)
    shape = (1, *base.latent_shape)
    if numbered.numel() != torch.Size(shape).numel():
        raise SmidgenError(
            f"the stock network takes {tuple(latents.shape)}, which is not one image"
        )
    ones = torch.ones(1, device=device)
    probe = fed(numbered.view(shape), ones)
    first = next(iter(probe.values()))
    order = first.flatten().round().long()
    x = torch.empty_like(numbered)
    x[order] = latents.to(device, torch.float32).flatten()
    scale = probe["timestep"].flatten()[:1].to(torch.float32)
    t = time.to(device).flatten()[:1]
    return x.view(shape), t if scale == 1 else t / scale


def _first_call(base: Base, pipeline: Any) -> tuple[dict[str, Any], Tensor]:
    """What the stock pipeline gives its network at its first step, and what that says."""
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    known = signature(type(pipeline).__call__).parameters
    options: dict[str, Any] = {name: one for name, one in PLAIN.items() if name in known}
    if "guidance_scale" in known:
        options["guidance_scale"] = 1.0  # without: one image, not two
    with quiet(), _stopped(network, "said") as seen:
        pipeline(
            prompt=PROMPT,
            width=base.image_size.width,
            height=base.image_size.height,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **options,
        )
    return seen, seen.pop("output")


@contextmanager
def _stopped(network: nn.Module, at: str) -> Iterator[dict[str, Any]]:
    """The arguments of the next call by name, in their order; `at` "said": its output as well. The
    call then ends, and so does the block.
    """
    seen: dict[str, Any] = {}

    def given(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        bound = signature(module.forward).bind(*positional, **named)
        seen.update(bound.arguments)
        if at == "given":
            raise _Seen

    def said(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["output"] = output[0].detach().clone()
        raise _Seen

    handles = [
        network.register_forward_pre_hook(given, with_kwargs=True),
        network.register_forward_hook(said),
    ]
    try:
        yield seen
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _stock_pipeline(base: Base) -> Any:
    """The pipeline of the base's folder, its network loaded once more."""
    source = base.source
    if source is None:
        raise SmidgenError("the base comes from no folder, and stock diffusers reads one")
    index = read_json(source / INDEX)
    kind, described = pipeline_of(index, source)
    parts: dict[str, Any] = dict.fromkeys(beside_prompts(index, described))
    del parts["scheduler"]
    parts[described.denoiser] = load_network(source / described.denoiser, kind, torch.float32)
    codec: Any = base.codec
    parts["vae"] = load_autoencoder(codec.folder)
    pipeline = load_encoders(source, str(index["_class_name"]), kind, torch.float32, parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(base.device)
