"""The settings of a run and of its training; what they mean in the loop is in loop.py.

Nothing heavy is imported here, so that the command line checks them before torch loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from smidgen.data.names import CachePrecision, CaptionSource, LayoutName
from smidgen.errors import UsageError
from smidgen.fast.names import FrozenPrecision
from smidgen.files.checks import MOST_IMAGES, check_integer, check_number
from smidgen.files.settings import NO_FLAG, SWITCH, check_choices
from smidgen.models.prompts import CLASS, DREAMBOOTH
from smidgen.training.reward_config import RewardConfig
from smidgen.training.subject import CLASS_IMAGES, check_task

Objective = Literal["denoising", "clip-reward"]
CLIP_REWARD = "clip-reward"
TaskName = Literal["fine-tune", "dreambooth"]
Schedule = Literal["constant", "cosine"]
TimestepSampling = Literal["logit-normal", "uniform"]
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "adamw-8bit"]
AUTO, ADAMW_8BIT = "auto", "adamw-8bit"

# OpenMP notes every thread on the stack: some ten thousand end in a segmentation fault. This is
# more than common machines have processors, and the same on all, so that a recipe stays valid.
MOST_THREADS = 1024
LABEL_DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a delta is trained; the defaults are the DiffFit paper's, scaled to one machine.

    Raises: UsageError for a value that makes no sense.
    """

    objective: Objective = "denoising"
    """denoising: the noise of noised images is learned, as a diffusion or flow; clip-reward, beyond
    the paper: images are drawn in the step, and made to be what CLIP finds like their prompts."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Of the objective clip-reward."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 64
    """Images in one forward pass; for task dreambooth of the subject, and as many of its class."""
    lr: float | None = None
    """Learning rate of AdamW; none: the method's own (1e-3 for deltas, 1e-4 for full)."""
    optimizer: Optimizer = "adamw"
    """adamw-8bit: AdamW that keeps a byte in place of four for each of its moments: a quarter of
    their memory, which is much for full, at some time and noise of its rounding."""
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
    precision: TrainingPrecision = AUTO
    """Number format of the forward and backward pass; the delta itself stays in float32. auto: bf16
    where that is faster on this machine, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    activations: Literal["exact", "8bit"] = "exact"
    """8bit: what the forward pass of a DiT keeps for the backward pass takes a byte a number, in
    place of recomputing it; gradients differ by half a per cent."""
    train_labels: bool = True
    """Of a base that knows classes, also train the label table, with a row for each class of the
    images; without it the table stays as it is, and the classes are some of the base's own."""
    train_text_encoder: bool = False
    """Of a base that reads prompts, also train its text encoders that are CLIPs: with full, as
    DreamBooth does."""
    fast: bool = True
    """Fold the delta into what is small, where the base is a DiT and the method allows it, in place
    of hooks: the same gradients, sooner."""
    frozen_precision: FrozenPrecision = "exact"
    """Of products with the frozen weights of a DiT: numbers of 8 bit in the backward pass
    (8bit-backward) or in both (8bit); how far that is from exact is measured first."""
    compile: bool = False
    """Compile the network with torch.compile; on a CPU this needs a C++ compiler."""
    ema_decay: float | None = None
    """Largest decay d of the delta's average, which is min(d, (1 + n) / (10 + n)); none: 0.9999."""
    ema_warmup: bool = True
    """no: the decay is d from the first step on, as in DiT's code, so that an average of few steps
    is mostly the start."""
    label_dropout: float | None = None
    """Share of the images that are trained without their label, for classifier-free guidance; none:
    0.1, or 0 for task dreambooth and for objective clip-reward."""
    min_snr: float | None = None
    """Gamma of min-SNR weighting of the noise loss; none: no weighting."""
    vlb_weight: float = 1e-3
    """Weight of the variational bound, which trains the learned variance."""
    prior_weight: float | None = None
    """For task dreambooth: weight of the loss of the images of the class beside that of the
    subject's; 0: no such images; none: 1."""
    prompt: str | None = None
    """Of a base that reads prompts: that of a class, {class} in the place of its name; none: "a
    photo of a {class}", or for task dreambooth the instance prompt without the token."""
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
    """Newest deltas that are kept in RUN/deltas, besides the best one."""
    keep: Literal["last", "best"] = "last"
    """What the run ends with. last: the delta of its last step; best: of the steps at which it was
    judged that of the lowest validation loss or, with --metrics-every, of the lowest KID, the
    earliest of those whose intervals overlap."""
    patience: int | None = None
    """The run ends early after so many judgements in a row without a better one than before, judged
    as for keep best; none: it makes all its steps."""
    validation_share: float = 0.02
    """Share of the images that are held out for the validation loss; 0: none."""
    validate_every: int | None = None
    """Steps between validations; none: as checkpoint_every."""
    sample_every: int = 0
    """Steps between sample grids in RUN/samples; 0: none."""
    metrics_every: int = 0
    """Steps between metrics of samples against the training images; 0: none."""
    metrics_features: str = "glyphs"
    """The features of these metrics, as evaluate has them, with commas."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where the log also goes: tensorboard, or another tracker of accelerate that is installed; an
    empty list: nowhere."""
    num_threads: int | None = None
    """CPU threads; none: as PyTorch decides."""

    def __post_init__(self) -> None:
        counts = ("steps", "gradient_accumulation", "checkpoint_every", "validate_every")
        for name in (*counts, "keep_checkpoints", "keep_deltas", "patience"):
            check_integer(name, getattr(self, name), least=1)
        check_integer("batch_size", self.batch_size, most=MOST_IMAGES)
        check_integer("num_threads", self.num_threads, most=MOST_THREADS)
        for name in ("warmup_steps", "seed", "sample_every", "metrics_every"):
            check_integer(name, getattr(self, name), least=0)
        for name in ("lr", "weight_decay", "vlb_weight", "prior_weight", "embedded_guidance"):
            check_number(name, getattr(self, name))
        for name in ("max_grad_norm", "min_snr", "timestep_shift"):
            check_number(name, getattr(self, name), above=True)
        for name in ("ema_decay", "label_dropout", "validation_share"):
            check_number(name, getattr(self, name), most=1.0)
        if self.keep == "best" and not (self.validation_share or self.metrics_every):
            raise UsageError(
                "keep is best and nothing would judge it; give validation_share above 0, or "
                "metrics_every"
            )
        if self.patience is not None and not (self.validation_share or self.metrics_every):
            raise UsageError(
                f"patience is {self.patience} and nothing would judge it; give validation_share "
                "above 0, or metrics_every"
            )
        if self.validation_share == 1:
            raise UsageError(
                "validation_share is 1.0; expected less, or nothing is left to train on"
            )
        check_choices(self)
        if self.prompt is not None and (
            not isinstance(self.prompt, str) or CLASS not in self.prompt
        ):
            raise UsageError(f"prompt is {self.prompt!r}; expected text with {CLASS} in it")
        flags = ("gradient_checkpointing", "fast", "compile", "train_labels")
        for name in (*flags, "train_text_encoder", "ema_warmup"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected true or false")
        if self.activations == "8bit" and (self.compile or self.gradient_checkpointing):
            other = "compile" if self.compile else "gradient_checkpointing"
            raise UsageError(f"activations 8bit and {other} do not go together; give one of them")
        if self.frozen_precision != "exact" and not self.fast:
            raise UsageError(
                f"frozen_precision {self.frozen_precision} is there on the fast path alone; give "
                "fast too, or leave it out"
            )
        if isinstance(self.trackers, str) or not all(isinstance(t, str) for t in self.trackers):
            raise UsageError(f"trackers is {self.trackers!r}; expected a list of names")
        object.__setattr__(self, "trackers", tuple(self.trackers))
        self._check_objective()

    def _check_objective(self) -> None:
        """Raises: UsageError for settings that are of no use to the objective."""
        if self.objective != CLIP_REWARD:
            if self.reward != RewardConfig():
                raise UsageError(f"reward is of objective {CLIP_REWARD} alone; give that too")
            return
        none = ("min_snr", "timestep_sampling", "timestep_shift", "label_dropout", "prior_weight")
        for name in (*none, "compile", "activations", "frozen_precision"):
            if getattr(self, name) not in (None, 0, False, "exact"):
                raise UsageError(
                    f"{name} is of no use to objective {CLIP_REWARD}, which draws images in the "
                    "step; leave it out"
                )
        if self.vlb_weight not in (0, TrainingConfig.vlb_weight):
            raise UsageError(f"vlb_weight is of no use to objective {CLIP_REWARD}; leave it out")

    @property
    def rows(self) -> int:
        """Images in one forward pass, those of a subject's class among them."""
        return self.batch_size * (2 if self.prior_weight else 1)

    @property
    def calls_kept(self) -> int:
        """Calls of the network for an image of a step that are kept for its backward pass; about,
        as guidance makes two of one where it is no input.
        """
        if self.objective != CLIP_REWARD:
            return 1
        return self.reward.last_steps * (1 if self.reward.guidance == 1 else 2)

    def resolved(self, method: str, task: TaskName = "fine-tune") -> TrainingConfig:
        """With what `method` and `task` have where it is not given: the learning rate, the share of
        dropped labels and the weight of the prior.
        """
        from smidgen.methods import resolve

        of_subject, undropped = task == DREAMBOOTH, self.objective == CLIP_REWARD
        defaults = {
            "lr": lambda: resolve(method).default_lr,
            "label_dropout": lambda: 0.0 if of_subject or undropped else LABEL_DROPOUT,
            "prior_weight": lambda: 1.0 if of_subject else None,
        }
        missing = {n: make() for n, make in defaults.items() if getattr(self, n) is None}
        return replace(self, **missing)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to train on, how it is read, and where the result goes."""

    data: Path
    """Folder of images: a sub-folder for each class, or one class without sub-folders; or a data
    set of another --layout. For the objective clip-reward a text file with a prompt a line, too."""
    layout: LayoutName = "folder"
    """How the data lies there: a folder of images, a published data set as its archives unpack,
    webdataset (.tar shards) or hf (a Hugging Face image set: saved on disk, or a hub id)."""
    split: str | None = None
    """Which part of it, such as train or test; none: the layout's default."""
    method: str = "difffit"
    """What is trained: full, bitfit, difffit, adaptformer, vpt, lora, adapter, textual-inversion;
    or several at once, such as difffit+lora, whose flags then begin with the method: --lora.rank
    8."""
    task: TaskName = "fine-tune"
    """fine-tune: all images are learned alike; dreambooth: they show one subject, which the token
    will mean, while images of its class keep what the base knows of that."""
    token: str | None = None
    """For task dreambooth: the word that will mean the subject, such as sks. For the method
    textual-inversion: the new word, such as <owl>, which captions or the prompt hold."""
    class_name: str | None = None
    """For task dreambooth: what the subject is one of, such as owl."""
    instance_prompt: str | None = None
    """For task dreambooth: the prompt of the subject, with {token} and {class} in it; none: prompt
    with the token before the class or, without that too, "a photo of {token} {class}"."""
    class_data: Path | None = None
    """For task dreambooth: folder of images of the class; none: the base draws them, once."""
    class_images: int | None = None
    """For task dreambooth: how many images of the class the base draws; none: 200."""
    class_guidance: float | None = None
    """For task dreambooth: the guidance with which it draws them; none: 7, or 3.5 where that is an
    input of the base."""
    captions: CaptionSource = "auto"
    """What a base that reads prompts is told of each image: txt, of a text file beside it, a line a
    caption; jsonl, of metadata.jsonl or .csv; filename; none: the prompt of its class or subject;
    auto: text files or a table if there are any."""
    shuffle_tags: bool = False
    """Captions are tags with commas between them: shuffle them anew at every draw."""
    keep_tags: int = 0
    """With shuffle_tags: how many tags at the front of a caption stay there."""
    resize: Literal["crop", "resize"] = "crop"
    """crop: the centre of each image, in the shape of the training size or of its bucket; resize:
    all of it, squeezed to that shape."""
    buckets: bool | None = None
    """Images keep their shape: each is brought to the nearest of several sizes of about the area of
    the training size; a batch is of one size. none: where the base reads prompts, but not beside
    images of a subject's class."""
    flip: bool = False
    """Also train on the mirrored images."""
    max_bad_share: float = 0.05
    """Refuse to train if a larger share of the files cannot be used."""
    cache_dir: Path | None = None
    """Where latents are kept; none: the cache folder of this machine."""
    cache_precision: CachePrecision = "fp32"
    """Number format of the latents there: fp16 takes half of the disk and memory, and rounds each
    number by at most a two-thousandth of it."""
    init: Path | None = None
    """Begin from this delta, or LoRA file of another program, of the same method, in place of a
    fresh one."""
    init_other_base: bool = field(default=False, metadata=SWITCH)
    """That delta may be of another base with weights of the same names and shapes, such as an
    earlier version of this one."""
    output: Path
    """Folder for the run; its delta.safetensors is the result."""
    method_config: Any = field(default=None, metadata=NO_FLAG)
    training: TrainingConfig = field(default_factory=TrainingConfig, metadata=NO_FLAG)

    def __post_init__(self) -> None:
        check_number("max_bad_share", self.max_bad_share, most=1.0)
        check_integer("keep_tags", self.keep_tags, least=0)
        check_integer("class_images", self.class_images, most=MOST_IMAGES)
        check_number("class_guidance", self.class_guidance)
        check_choices(self)
        if self.init_other_base and self.init is None:
            raise UsageError("init_other_base is about init, which is not given; give both")
        if self.keep_tags and not self.shuffle_tags:
            raise UsageError("keep_tags says which tags are not shuffled; give shuffle_tags too")
        check_task(self)
        if self.training.objective == CLIP_REWARD and self.task == DREAMBOOTH:
            raise UsageError(
                f"task {DREAMBOOTH} and objective {CLIP_REWARD} do not go together; train the "
                "subject first, and begin from its delta with init"
            )

    @property
    def has_prompts_alone(self) -> bool:
        """Whether the data are a list of prompts, without images."""
        return self.training.objective == CLIP_REWARD and self.data.is_file()

    @property
    def encodes_in_step(self) -> bool:
        """Whether prompts are encoded in the step that trains on them, not before."""
        return self.shuffle_tags or self.trains_encoders

    @property
    def trains_encoders(self) -> bool:
        """Whether something is trained in the text encoders.

        Raises: UsageError if that was asked of a method that cannot do it.
        """
        from smidgen.methods import acts_in_encoders

        return acts_in_encoders(self.method, asked=self.training.train_text_encoder)

    def resolved(self) -> RunConfig:
        """With the split, the method's options, and what method and task have as defaults.

        Raises: UsageError for a method or a split that there is not, or settings that are of no use
            to the method.
        """
        from smidgen.data.layouts import resolve_split
        from smidgen.methods import configure

        _ = self.trains_encoders  # says so if it is asked of a method that cannot do it
        options = self.method_config
        training = self.training.resolved(self.method, self.task)
        draws = bool(training.prior_weight) and self.class_data is None
        return replace(
            self,
            class_images=(self.class_images or CLASS_IMAGES) if draws else None,
            split=resolve_split(self.layout, self.split),
            method_config=configure(self.method) if options is None else options,
            training=training,
        )
