"""The settings of one training; what they mean in the loop is in loop.py.

Nothing heavy is imported here, so that the command line checks them before torch loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from smidgen.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "cosine"]
TimestepSampling = Literal["logit-normal", "uniform"]

CLASS = "{class}"  # what stands for the name in a prompt
DEFAULT_PROMPT = "a photo of a {class}"
# OpenMP notes every thread on the stack: some ten thousand end in a segmentation fault. This is
# more than common machines have processors, and the same on all, so that a recipe stays valid.
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a delta is trained; the defaults are the DiffFit paper's, scaled to one machine.

    Raises: UsageError for a value that makes no sense.
    """

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 64
    """Images in one forward pass."""
    lr: float | None = None
    """Learning rate of AdamW; none: the method's own (1e-3 for deltas, 1e-4 for full)."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    lr_schedule: Schedule = "constant"
    """After the warm-up: constant, or a cosine to 0 at the last step."""
    max_grad_norm: float | None = 1.0
    """Gradients are clipped to this norm; none: not at all."""
    gradient_accumulation: int = 1
    """Forward passes of batch_size images in one step."""
    precision: Precision = "fp32"
    """Number format of the forward and backward pass; the delta itself stays in float32."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the network with torch.compile; on a CPU this needs a C++ compiler."""
    ema_decay: float | None = None
    """Largest decay d of the delta's average, which is min(d, (1 + n) / (10 + n)); none: 0.9999."""
    label_dropout: float = 0.1
    """Share of the images that are trained without their label, for classifier-free guidance."""
    min_snr: float | None = None
    """Gamma of min-SNR weighting of the noise loss; none: no weighting."""
    vlb_weight: float = 1e-3
    """Weight of the variational bound, which trains the learned variance."""
    prompt: str | None = None
    """Of a base that reads prompts: that of a class, {class} in the place of its name; none: "a
    photo of a {class}"."""
    timestep_sampling: TimestepSampling | None = None
    """How noise levels are drawn. "uniform": evenly, over the steps of a diffusion or the sigmas of
    a flow; "logit-normal": the log of noise over signal is standard normal; none: uniform for a
    diffusion, logit-normal for a flow."""
    timestep_shift: float | None = None
    """Of what is drawn, noise over signal is multiplied by this: above 1 more noise; none: as the
    base's sampler does it, 1 for a diffusion."""
    embedded_guidance: float | None = None
    """Of a base that has the guidance scale as an input (FLUX), the one in training; none: 1."""
    seed: int = 0
    """Everything random depends on this and nothing else."""
    checkpoint_every: int = 500
    """Steps between checkpoints; a killed run resumes at the last one."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    keep_deltas: int = 3
    """Newest deltas that are kept in RUN/deltas, besides the best by validation loss."""
    validation_share: float = 0.02
    """Share of the images that are held out for the validation loss; 0: none."""
    validate_every: int | None = None
    """Steps between validations; none: as checkpoint_every."""
    sample_every: int = 0
    """Steps between sample grids in RUN/samples; 0: none."""
    metrics_every: int = 0
    """Steps between metrics of samples against the training images; 0: none."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where the log also goes: tensorboard, or another tracker of accelerate that is installed; an
    empty list: nowhere."""
    num_threads: int | None = None
    """CPU threads; none: as PyTorch decides."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "gradient_accumulation", "checkpoint_every")
        for name in (*counts, "keep_checkpoints", "keep_deltas", "validate_every", "num_threads"):
            _check_integer(name, getattr(self, name), least=1)
        if self.num_threads is not None and self.num_threads > MOST_THREADS:
            raise UsageError(f"num_threads is {self.num_threads}; expected at most {MOST_THREADS}")
        for name in ("warmup_steps", "seed", "sample_every", "metrics_every"):
            _check_integer(name, getattr(self, name), least=0)
        for name in ("lr", "weight_decay", "vlb_weight", "embedded_guidance"):
            _check_number(name, getattr(self, name))
        for name in ("max_grad_norm", "min_snr", "timestep_shift"):
            _check_number(name, getattr(self, name), above=True)
        for name in ("ema_decay", "label_dropout", "validation_share"):
            _check_number(name, getattr(self, name), most=1.0)
        if self.validation_share == 1:
            raise UsageError(
                "validation_share is 1.0; expected less, or nothing is left to train on"
            )
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("lr_schedule", self.lr_schedule, get_args(Schedule))
        if self.timestep_sampling is not None:
            choices = get_args(TimestepSampling)
            _check_choice("timestep_sampling", self.timestep_sampling, choices)
        if self.prompt is not None and (
            not isinstance(self.prompt, str) or CLASS not in self.prompt
        ):
            raise UsageError(f"prompt is {self.prompt!r}; expected text with {CLASS} in it")
        for name in ("gradient_checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected true or false")
        if isinstance(self.trackers, str) or not all(isinstance(t, str) for t in self.trackers):
            raise UsageError(f"trackers is {self.trackers!r}; expected a list of names")
        object.__setattr__(self, "trackers", tuple(self.trackers))

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    @property
    def validation_steps(self) -> int:
        """Steps between validations."""
        return self.validate_every or self.checkpoint_every


def _check_integer(name: str, value: object, *, least: int) -> None:
    """None passes: which settings may be None is a matter of types."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}; expected an integer of at least {least}")


def _check_number(name: str, value: object, *, above: bool = False, most: float = math.inf) -> None:
    if value is None:
        return
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value <= most
        and not (above and value == 0)
    )
    if not fits:
        bound = "above 0" if above else ("of at least 0" if math.isinf(most) else "from 0 to 1")
        raise UsageError(f"{name} is {value!r}; expected a finite number {bound}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; choose from: {', '.join(choices)}")
