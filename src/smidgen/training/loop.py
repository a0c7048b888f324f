"""The training loop: latents and a fresh delta in, the average of the trained delta out.

`run_steps` is the loop; `train_delta` sets it up. What a step is made of is in the modules imported
here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from smidgen.core.delta import Delta
from smidgen.core.sharding import group_of
from smidgen.data.latents import LatentSet
from smidgen.errors import UsageError
from smidgen.fast.acting import takes_fast_path
from smidgen.models.base import Base
from smidgen.models.calling import Network, calling, dtype_of
from smidgen.models.labels import labels_of
from smidgen.processes import from_main, gather_objects, shared, world_size
from smidgen.training import runtime
from smidgen.training.best import KID, LOSS, SPREAD, is_better, judged_by_kid, ran_out
from smidgen.training.buckets import BucketOrder
from smidgen.training.config import ADAMW_8BIT, TrainingConfig
from smidgen.training.ema import decay_after, update_average
from smidgen.training.frozen import check_frozen_errors, first_batch, frozen_errors
from smidgen.training.interrupt import Interrupted, StopRequest, stop_requests
from smidgen.training.journal import Journal, open_journal
from smidgen.training.mixed import MIXED, Place
from smidgen.training.network import averaged, training_network
from smidgen.training.objective import Task, batch_loss, draw_batch, total_loss
from smidgen.training.optimizer import make_optimizer
from smidgen.training.precision import with_precision
from smidgen.training.randomness import Shuffle, Streams
from smidgen.training.saving import Saver, identity_of
from smidgen.training.start import INIT
from smidgen.training.state import FAST, HOOKS, PATH, TrainingState, writing
from smidgen.training.together import average_over_processes
from smidgen.training.validation import Validation, held_out_of

# of an identity: where texts are read in the step; where images are rewarded
ENCODERS, CLIP = "the text encoders", "the CLIP of the reward"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What to run every `every` steps while the average of the delta acts in the base.

    `run(step)` returns numbers for the log.
    """

    every: int
    run: Callable[[int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The average of the trained delta, the last one or the best, and how it went.

    `first_step` is above 0 if the run resumed; `seconds` are those of the whole run,
    `images_per_second` of the steps that were made now. `frozen_error` is how far products in 8 bit
    were from exact ones before the first of these.
    """

    delta: Delta
    steps: int
    first_step: int
    seconds: float
    images_per_second: float
    best_step: int | None
    log: Path
    frozen_error: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the loop works with; only `state` changes. `plain` is the network as it is validated."""

    base: Base
    latents: LatentSet
    config: TrainingConfig
    state: TrainingState
    task: Task
    network: Network
    plain: Network
    accelerator: runtime.Accelerator
    journal: Journal
    saver: Saver
    stop: StopRequest
    validation: Validation | None
    evaluators: Sequence[Evaluator]
    on_step: Callable[[int, float], None] | None


def run_steps(session: Session) -> None:
    """The loop, from the state's step to the last one, or to the end of its patience."""
    base, config, state = session.base, session.config, session.state
    accelerator, optimizer = session.accelerator, state.optimizer
    device, dtype = base.device, dtype_of(base.denoiser)
    parameters, average = list(state.delta.parameters()), list(state.average.parameters())

    for step in range(state.step + 1, config.steps + 1):
        if ran_out(state.since_best, config.patience):
            return
        started = time.perf_counter()
        lr = optimizer.param_groups[0]["lr"] = learning_rate(config, step)

        # forward and backward
        losses, indices = [], []  # (B,) each
        for _ in range(config.gradient_accumulation):
            taken = state.take(config.batch_size * world_size())
            batch = draw_batch(session.latents, taken, state.streams, session.task, config)
            batch = batch.to(device)
            indices.append(batch.images)
            with accelerator.autocast():
                losses.append(batch_loss(session.network, batch, session.task, config, dtype))
            total = total_loss(losses[-1], config)
            accelerator.backward(total / config.gradient_accumulation)

        # judge before anything changes
        parts = [total_loss(part.detach(), config) for part in losses]
        loss = torch.stack(parts).mean().item()
        loss, told_to_stop = average_over_processes(parameters, loss, session.stop.signal)
        norm = runtime.clipped_norm(accelerator, optimizer, parameters, config.max_grad_norm).item()
        if not (math.isfinite(loss) and (math.isfinite(norm) or config.precision == "fp16")):
            session.saver.stop_at_non_finite(step, losses, indices, session.latents.names)

        # update
        runtime.optimizer_step(accelerator, optimizer)
        decay = decay_after(step - 1, config.ema_decay, warmup=config.ema_warmup)
        update_average(average, parameters, decay)
        state.step = step
        state.seconds += time.perf_counter() - started
        values = {"loss": loss, "lr": lr, "grad_norm": norm, "epoch": state.order.epoch}
        session.journal.step(step, values)
        if session.on_step is not None:
            session.on_step(step, loss)

        # look and save
        if _due(step, config.validate_every or config.checkpoint_every, config.steps):
            _validate(session)
        for evaluator in session.evaluators:
            if _due(step, evaluator.every, _last_step(session)):
                _evaluate(session, evaluator)
        last = _last_step(session)
        stopping = session.stop.signal if world_size() == 1 else told_to_stop
        if _due(step, config.checkpoint_every, last) or stopping is not None:
            session.saver.checkpoint(runtime.scaler_state(accelerator))
        if stopping is not None and step < last:
            words = f"stopped at step {step} of {config.steps}, saved"
            raise shared(Interrupted(f"{words}; run the same command again to resume", stopping))


def train_delta(
    base: Base,
    delta: Delta,
    latents: LatentSet,
    config: TrainingConfig,
    run_folder: Path,
    *,
    resume: bool = True,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    evaluators: Sequence[Evaluator] = (),
    task: Task | None = None,
    place: Place | None = None,
) -> TrainingResult:
    """Train `delta`, which changes, on `latents`, whose labels count its classes; the base stays as
    it is. `config` is resolved, but for a precision that is "auto", and fits this machine
    (`runtime.check_runtime`). `task` says for what, None: the base's own process and what labels
    mean with this delta. Of images that are told apart by their captions, any may be held out;
    those of a subject's class never are.
    Files are written below `run_folder`, where the newest checkpoint is gone on from if `resume`.
    `on_step(step, loss)` is called after each step. `place` is where it shares the network with
    other trainings (mixed.py).

    Raises: UsageError for settings that this base cannot serve, or a checkpoint of other data;
        SmidgenError for a loss that is not finite or a disk that refuses; Interrupted after a
        SIGINT or SIGTERM. What was saved before stays.
    """
    check_training(base, delta, latents, config)
    config = with_precision(config, base.denoiser, base.latent_shape, base.device, run_folder)
    with writing(run_folder):
        run_folder.mkdir(parents=True, exist_ok=True)
    trained, held_out = _held_out(latents, config)
    task = task or Task(process=base.process, labels=labels_of(base, delta))
    of_class = torch.arange(latents.num_own, len(latents))
    tags = task.texts is not None and task.texts.keep is not None
    state = fresh_state(delta, latents.in_buckets(trained), config, of_class, tags=tags)
    fast = config.fast and takes_fast_path(delta, base.denoiser)
    reduced = config.frozen_precision != "exact"
    path = MIXED if place is not None else FAST if fast else HOOKS
    identity = _identity(base, delta, latents, task, path)
    saver = Saver(run_folder, state, config, identity)
    scaler = saver.resume() if resume else {}
    first_step, first_seconds = state.step, state.seconds
    if first_step:
        logger.info("resuming %s at step %d", run_folder, first_step)
    with ExitStack() as stack:
        if place is None:  # else they are set for all that share the network
            stack.enter_context(runtime.cpu_threads(config.num_threads))
        accelerator = stack.enter_context(
            runtime.open_runtime(config, base.device, run_folder, first_step)
        )
        runtime.restore_scaler(accelerator, scaler)
        plain = calling(base.family, base.denoiser, config.embedded_guidance)
        if place is None:
            network = stack.enter_context(training_network(base, delta, task, config))
        else:
            accelerator = place.waiting(accelerator)
            network = plain = place.network(delta)
        frozen_error = None
        if reduced:
            first = first_batch(latents, trained, task, config).to(base.device)
            with accelerator.autocast():
                frozen_error = from_main(lambda: frozen_errors(base, delta, first, task, config))
            if not first_step:  # else it was small enough when the run was begun
                check_frozen_errors(frozen_error, config)
        journal = stack.enter_context(
            open_journal(
                run_folder,
                first_step,
                config,
                lambda values, step: accelerator.log(dict(values), step=step),
                progress=progress,
            )
        )
        run_steps(
            Session(
                base=base,
                latents=latents,
                config=config,
                state=state,
                task=task,
                network=network,
                plain=plain,
                accelerator=accelerator,
                journal=journal,
                saver=saver,
                stop=stack.enter_context(stop_requests()) if place is None else place.stop,
                validation=Validation(latents, held_out, task, config) if len(held_out) else None,
                evaluators=evaluators,
                on_step=on_step,
            )
        )
    kept = saver.finish()
    if state.step < config.steps:
        words = "ended at step %d of %d: not better since step %d"
        logger.info(words, state.step, config.steps, state.best["step"])
    num_images = (state.step - first_step) * journal.images_per_step
    return TrainingResult(
        delta=kept,
        steps=state.step,
        first_step=first_step,
        seconds=state.seconds,
        images_per_second=num_images / max(state.seconds - first_seconds, 1e-9),
        best_step=None if not state.best else int(state.best["step"]),
        log=journal.path,
        frozen_error=frozen_error,
    )


def check_training(base: Base, delta: Delta, latents: LatentSet, config: TrainingConfig) -> None:
    """What `train_delta` refuses before it changes anything. Raises: UsageError."""
    if bool(config.prior_weight) != (latents.class_images is not None):
        raise UsageError(
            f"prior_weight is {config.prior_weight} and the latents have "
            f"{len(latents) - latents.num_own} class images; it weighs these, give both or neither"
        )
    _held_out(latents, config)
    fast = config.fast and takes_fast_path(delta, base.denoiser)
    if config.frozen_precision != "exact" and not fast:
        raise UsageError(
            f"frozen_precision {config.frozen_precision} is there on the fast path alone, which "
            "cannot serve this base and delta; leave it out"
        )


def _held_out(latents: LatentSet, config: TrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    own = slice(latents.num_own)
    numbers, contents = latents.class_numbers[own], latents.contents[own]
    return held_out_of(numbers, contents, config, has_captions=latents.captions is not None)


def _identity(
    base: Base, delta: Delta, latents: LatentSet, task: Task, path: str
) -> dict[str, str]:
    """What a checkpoint is of; `path` is the way through the network."""
    found = identity_of(base, latents, delta.provenance.training.get(INIT)) | {PATH: path}
    if task.texts is not None and base.conditioner is not None and base.conditioner.files:
        found[ENCODERS] = base.conditioner.files.fingerprint
    if task.reward is not None:
        found[CLIP] = task.reward.clip.sha256
    return found


def fresh_state(
    delta: Delta,
    buckets: Sequence[torch.Tensor],
    config: TrainingConfig,
    of_class: torch.Tensor,
    *,
    tags: bool = False,
) -> TrainingState:
    """The state before the first step on the images with these indices, bucket by bucket, and on
    those `of_class` where there are any; `tags` are shuffled or not.

    Raises: UsageError if the delta is not in float32.
    """
    delta.requires_grad_(True)
    half = [name for name, p in delta.named_parameters() if p.dtype != torch.float32]
    if half:
        raise UsageError(
            f"{half[0]} would be trained in {delta.get_parameter(half[0]).dtype}, too coarse for "
            "small updates; load the base in float32, --precision still speeds up the passes"
        )
    average = delta.clone().requires_grad_(False)
    optimizer = make_optimizer(
        delta.parameters(),
        eight_bit=config.optimizer == ADAMW_8BIT,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )
    return TrainingState(
        delta=delta,
        average=average,
        optimizer=optimizer,
        streams=Streams(config.seed, tags=tags),
        order=BucketOrder(buckets, config.seed),
        class_order=Shuffle(of_class, config.seed, "class order") if len(of_class) else None,
    )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of a step counted from 1: a linear warm-up, then constant or a cosine towards 0."""
    peak = config.lr
    assert peak is not None, "the configuration of a training is resolved"
    if step <= config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return peak
    done = (step - 1 - config.warmup_steps) / (config.steps - config.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def _due(step: int, every: int, last: int) -> bool:
    return step == last or step % every == 0


def _last_step(session: Session) -> int:
    """The step with which the run ends, as far as is known now."""
    state, config = session.state, session.config
    return state.step if ran_out(state.since_best, config.patience) else config.steps


def _judged(state: TrainingState, values: Mapping[str, float]) -> bool:
    """Whether what is said of the average now is the best so far; the state notes it, or counts."""
    if is_better(values, state.best):
        known = {name: values[name] for name in (LOSS, KID, SPREAD) if name in values}
        state.best, state.since_best = {"step": state.step, **known}, 0
        return True
    state.since_best += 1
    return False


def _validate(session: Session) -> None:
    """Log the average's validation loss, note whether it is the best; keep a copy of it."""
    state, base = session.state, session.base
    if session.validation is not None:
        dtype, in_step = dtype_of(base.denoiser), group_of(base.denoiser) is not None
        with averaged(state), session.accelerator.autocast():
            loss = session.validation.loss(session.plain, base.device, dtype, in_step=in_step)
        session.journal.note(state.step, {"validation_loss": loss})
        if not judged_by_kid(session.config):
            _judged(state, {LOSS: loss})
    session.saver.keep_delta()


def _evaluate(session: Session, evaluator: Evaluator) -> None:
    """Log what the evaluator says of the average; if the best is that of KID, keep a copy of it."""
    state = session.state
    with averaged(state):
        values = evaluator.run(state.step)
    values = gather_objects(dict(values))[0]  # each measures; all go by the main process' numbers
    if not values:
        return
    session.journal.note(state.step, values)
    if judged_by_kid(session.config) and _judged(state, values):
        session.saver.keep_delta()
