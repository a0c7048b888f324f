"""The process that a network was trained on, diffusion or flow: its times, noising, loss, what the
samplers read of the network's output, and how it is sampled.

b images, c latent channels, h and w latent rows and columns. t is what the network is told: a row
of the schedule (int64) of a diffusion, sigma in (0, 1] (float32) of a flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from smidgen.diffusion.flow import (
    FlowSchedule,
    TimestepSampling,
    euler,
    flow_loss,
    interpolate,
    shift_sigmas,
    sigmas_at,
)
from smidgen.diffusion.names import Sampler
from smidgen.diffusion.objective import (
    add_noise,
    epsilon_from_v,
    hybrid_loss,
    predict_x0,
    split_output,
    v_loss,
)
from smidgen.diffusion.sampler import SAMPLERS, After, Denoise
from smidgen.diffusion.schedule import Images, Output, PerImage, Schedule, Spacing

# "hybrid": noise, and its variance where that is learned; "epsilon": noise alone
Prediction = Literal["hybrid", "epsilon", "v"]

# A shift that depends on the steps of sampling (FLUX.2) is taken for this many, the pipeline's own.
USUAL_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Noise is added step by step; the network predicts it, or v."""

    schedule: Schedule
    prediction: Prediction = "hybrid"

    name = "diffusion"
    samplers = tuple(SAMPLERS)
    default_sampler: ClassVar[Sampler] = "ddpm"
    preview_sampler: ClassVar[Sampler] = "dpm++"

    @property
    def predicts_v(self) -> bool:
        """Whether the network predicts v."""
        return self.prediction == "v"

    def most_steps(self, sampler: str) -> int:
        """The most steps that this sampler takes."""
        return self.schedule.num_steps - (_spacing(sampler) == "half-open")

    def is_shifted(self, sampling: TimestepSampling | None) -> bool:
        """Whether a shift of the noise levels has a meaning for what training draws."""
        return sampling == "logit-normal"

    def times(
        self,
        quantiles: Float64[Tensor, " b"],
        sampling: TimestepSampling | None = None,
        shift: float | None = None,
    ) -> Shaped[Tensor, " b"]:
        """t at these quantiles, 0 to 1, of what training draws; None: uniform, not shifted."""
        if not self.is_shifted(sampling):
            count = self.schedule.num_steps
            return (quantiles * count).long().clamp(max=count - 1)
        sigmas = shift_sigmas(sigmas_at(quantiles, "logit-normal"), 1.0 if shift is None else shift)
        return self.schedule.rows_at(sigmas)

    def draw_times(
        self,
        count: int,
        generator: torch.Generator,
        sampling: TimestepSampling | None = None,
        shift: float | None = None,
    ) -> Shaped[Tensor, " b"]:
        """t of `count` images of a training step, `sampling` and `shift` as in `times`."""
        if not self.is_shifted(sampling):
            return torch.randint(self.schedule.num_steps, (count,), generator=generator)
        drawn = torch.rand(count, generator=generator, dtype=torch.float64)
        return self.times(drawn, sampling, shift)

    def level(self, t: Tensor) -> Tensor:
        """How far t is on the way from data, 0, to noise, 1."""
        return t / self.schedule.num_steps

    def noised(self, x0: Images, t: Tensor, noise: Images) -> Images:
        """x_t (DDPM, equation 4)."""
        return add_noise(self.schedule, x0, t, noise)

    def loss(
        self,
        output: Output,
        x0: Images,
        x_t: Images,
        t: Tensor,
        noise: Images,
        *,
        vlb_weight: float = 1e-3,
        min_snr: float | None = None,
    ) -> PerImage:
        """`hybrid_loss` or `v_loss` of the network's output at x_t, of each image."""
        if self.prediction == "v":
            output = without_variance(output, x0)
            return v_loss(output, x0, t, noise, self.schedule, min_snr=min_snr)
        if self.prediction == "epsilon":
            output = without_variance(output, x0)
        return hybrid_loss(
            output, x0, x_t, t, noise, self.schedule, vlb_weight=vlb_weight, min_snr=min_snr
        )

    def predicted(self, output: Output, x_t: Images, t: Tensor) -> Float[Tensor, "b e h w"]:
        """The noise as the samplers read it, with its variance behind where that is in use."""
        if self.prediction == "hybrid":
            return output
        output = without_variance(output, x_t)
        if self.prediction == "epsilon":
            return output
        return epsilon_from_v(output.to(x_t.dtype), x_t, t, self.schedule)

    def x0(self, predicted: Output, x_t: Images, t: Tensor) -> Images:
        """What x_t would be without the predicted noise."""
        epsilon, _ = split_output(predicted, x_t.shape[1])
        return predict_x0(epsilon, x_t, t, self.schedule)

    def below(self, sigma: float, steps: int) -> Diffusion:
        """The process whose samplers begin at the first t with at least this share of noise, sigma
        in (0, 1] as in a flow, whatever their number of `steps`.
        """
        return replace(self, schedule=self.schedule.below(sigma))

    def sampled_times(
        self, sampler: str, steps: int, first: int | None = None
    ) -> Int64[Tensor, " n"]:
        """t at which `sample` calls the network, in that order."""
        return self.schedule.respace(steps, _spacing(sampler)).timesteps[:first].flip(0)

    def sample(
        self,
        denoise: Denoise,
        noise: Images,
        generators: Sequence[torch.Generator],
        *,
        sampler: str,
        steps: int,
        first: int | None = None,
        after: After | None = None,
        gradients: bool = False,
    ) -> Images:
        """x_0 from noise, in so many steps; image i draws from generator i alone. `first`, `after`:
        as in the samplers. `gradients`: they flow back through all calls of `denoise` that have
        such.
        """
        how = {"spacing": _spacing(sampler), "first": first, "after": after}
        with torch.set_grad_enabled(gradients):
            return SAMPLERS[sampler](denoise, noise, self.schedule, steps, generators, **how)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A straight path from data to noise; the network predicts the velocity, noise - x_0.

    Sigmas are shifted as where images of `num_tokens` tokens are sampled.
    """

    schedule: FlowSchedule
    num_tokens: int

    name = "flow"
    predicts_v = False
    samplers = ("euler",)
    default_sampler: ClassVar[Sampler] = "euler"
    preview_sampler: ClassVar[Sampler] = "euler"

    def most_steps(self, sampler: str) -> int | None:
        """None: there is no largest number of steps."""
        return None

    def is_shifted(self, sampling: TimestepSampling | None) -> bool:
        """A flow's sigmas are always shifted."""
        return True

    def times(
        self,
        quantiles: Float64[Tensor, " b"],
        sampling: TimestepSampling | None = None,
        shift: float | None = None,
    ) -> Shaped[Tensor, " b"]:
        """t at these quantiles, 0 to 1, of what training draws; None: logit-normal, and shifted as
        where the base is sampled.
        """
        if shift is None:
            shift = self.schedule.factor(self.num_tokens, USUAL_STEPS)
        return shift_sigmas(sigmas_at(quantiles, sampling or "logit-normal"), shift)

    def draw_times(
        self,
        count: int,
        generator: torch.Generator,
        sampling: TimestepSampling | None = None,
        shift: float | None = None,
    ) -> Shaped[Tensor, " b"]:
        """t of `count` images of a training step, `sampling` and `shift` as in `times`."""
        drawn = torch.rand(count, generator=generator, dtype=torch.float64)
        return self.times(drawn, sampling, shift)

    def level(self, t: Tensor) -> Tensor:
        """How far t is on the way from data, 0, to noise, 1."""
        return t

    def noised(self, x0: Images, t: Tensor, noise: Images) -> Images:
        """x_t = (1 - t) x_0 + t noise."""
        return interpolate(x0, t, noise)

    def loss(
        self,
        output: Output,
        x0: Images,
        x_t: Images,
        t: Tensor,
        noise: Images,
        *,
        vlb_weight: float = 1e-3,
        min_snr: float | None = None,
    ) -> PerImage:
        """`flow_loss` of each image; the weights are those of a diffusion and mean nothing here."""
        return flow_loss(without_variance(output, x0), x0, noise)

    def predicted(self, output: Output, x_t: Images, t: Tensor) -> Images:
        """The velocity as the sampler reads it."""
        return without_variance(output, x_t)

    def x0(self, predicted: Output, x_t: Images, t: Tensor) -> Images:
        """Where the velocity leads from x_t at sigma 0."""
        return x_t - t.to(x_t.dtype).reshape(-1, 1, 1, 1) * predicted

    def below(self, sigma: float, steps: int) -> Flow:
        """The process whose samplers begin at this sigma in so many steps."""
        return replace(self, schedule=self.schedule.below(sigma, steps, self.num_tokens))

    def sampled_times(
        self, sampler: str, steps: int, first: int | None = None
    ) -> Float[Tensor, " n"]:
        """t at which `sample` calls the network, in that order."""
        return self._sigmas(steps, first)[:-1].float()

    def _sigmas(self, steps: int, first: int | None) -> Float64[Tensor, " n"]:
        """Those of the last `first` steps, None: of all."""
        sigmas = self.schedule.sigmas(steps, self.num_tokens)
        return sigmas if first is None else sigmas[-first - 1 :]

    def sample(
        self,
        denoise: Denoise,
        noise: Images,
        generators: Sequence[torch.Generator],
        *,
        sampler: str,
        steps: int,
        first: int | None = None,
        after: After | None = None,
        gradients: bool = False,
    ) -> Images:
        """x_0 from noise, in so many steps of Euler's method, which draws nothing. `first`,
        `after`: as in the samplers; `gradients` as of a diffusion.
        """
        with torch.set_grad_enabled(gradients):
            return euler(denoise, noise, self._sigmas(steps, first), after=after)


Process = Diffusion | Flow


def _spacing(sampler: str) -> Spacing:
    """How a sampler's steps lie in the schedule."""
    return "half-open" if sampler == "dpm++" else "uniform"


def without_variance(output: Output, x: Images) -> Images:
    """The prediction without variance channels behind it."""
    return output[:, : x.shape[1]]
