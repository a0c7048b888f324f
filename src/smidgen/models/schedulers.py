"""What a diffusers scheduler's configuration says of a model: the process that it was trained on.

Pure functions of dicts, after diffusers 0.42; how it is sampled there beyond that is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smidgen.diffusion.flow import (
    FlowSchedule,
    Shift,
    shift_by_tokens,
    shift_by_tokens_and_steps,
)
from smidgen.diffusion.process import Diffusion, Prediction
from smidgen.errors import SmidgenError
from smidgen.models.dit_diffusers import schedule_from_diffusers

PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}

# What changes a flow's sigmas in ways that `FlowSchedule` has no word for.
UNKNOWN_SIGMAS = (
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)


def diffusion_of(config: Mapping[str, Any], source: Path) -> Diffusion:
    """The process of a model that predicts noise or v.

    Raises: SmidgenError for another prediction, betas of an unknown kind, or ones rescaled to end
        in pure noise, where epsilon says nothing of the image.
    """
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in PREDICTIONS:
        raise SmidgenError(
            f'{source}: the network predicts "{predicted}"; expected {" or ".join(PREDICTIONS)}'
        )
    if config.get("rescale_betas_zero_snr"):
        raise SmidgenError(
            f"{source}: rescale_betas_zero_snr is set; schedules that end in pure noise are not "
            "supported"
        )
    schedule = schedule_from_diffusers({**config, "prediction_type": "epsilon"}, source)
    return Diffusion(schedule=schedule, prediction=PREDICTIONS[predicted])


def is_of_flow(config: Mapping[str, Any]) -> bool:
    """Whether this is the scheduler of a flow-matching model, where nothing else tells."""
    return "FlowMatch" in str(config.get("_class_name")) or bool(config.get("use_flow_sigmas"))


def flow_of(
    config: Mapping[str, Any], source: Path, *, even_to_fraction: bool, fitted_shift: bool
) -> FlowSchedule:
    """The sigmas of a flow-matching model.

    A pipeline either gives its scheduler even steps down to 1 / n itself (`even_to_fraction`) or
    leaves them to it. `fitted_shift`: it takes the shift of FLUX.2 where that depends on the image.

    Raises: SmidgenError for a scheduler of another kind, or with sigmas of an unknown kind.
    """
    kind = config.get("_class_name")
    for name in UNKNOWN_SIGMAS:
        if config.get(name):
            raise SmidgenError(f"{source}: {name} is set, which smidgen does not know")
    if kind == "DPMSolverMultistepScheduler" and config.get("use_flow_sigmas"):
        first = 1 - 1 / config.get("num_train_timesteps", 1000)
        return FlowSchedule(shift=float(config.get("flow_shift") or 1.0), first=first)
    if kind != "FlowMatchEulerDiscreteScheduler":
        raise SmidgenError(
            f"{source}: a {kind} for a flow-matching model; expected a "
            "FlowMatchEulerDiscreteScheduler, or a DPMSolverMultistepScheduler with use_flow_sigmas"
        )
    shift: float | Shift = float(config.get("shift", 1.0))
    least = 1 / config.get("num_train_timesteps", 1000)
    if not config.get("use_dynamic_shifting"):
        # the scheduler shifts its range once before the steps and the steps again
        last = shift * least / (1 + (shift - 1) * least)
    else:
        last = least
        shift = shift_by_tokens_and_steps if fitted_shift else _by_tokens(config)
    return FlowSchedule(
        shift=shift,
        last=None if even_to_fraction else last,
        terminal=config.get("shift_terminal") or None,
    )


def _by_tokens(config: Mapping[str, Any]) -> Shift:
    return shift_by_tokens(
        tokens=(config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)),
        values=(float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))),
        exponential=config.get("time_shift_type", "exponential") == "exponential",
    )
