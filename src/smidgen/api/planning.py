"""What a training would do, before it does it: the images as it would find them, what it would
train, the memory it would take, and the refusal if there will be one. No weights are read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from smidgen.api.weights import count_weights
from smidgen.data.captions import distinct
from smidgen.data.findings import Findings, findings_of
from smidgen.data.folder import ImageFolder, Look, Progress, check_bad_share, look_at_all
from smidgen.data.latents import LatentSet
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from smidgen.files.standing import Standing
from smidgen.hosts.host import find_family, find_host
from smidgen.methods.build import build_delta
from smidgen.models.architectures import meta_network
from smidgen.models.base import Base
from smidgen.models.dit import DiT
from smidgen.models.pipeline_base import check_size
from smidgen.models.pretrained import note_on_size, prompt_files, trained_size
from smidgen.models.prompts import PROMPTS
from smidgen.training.captions import captions_for
from smidgen.training.config import RunConfig
from smidgen.training.example import example_of
from smidgen.training.loop import train_delta
from smidgen.training.recipe import DELTA
from smidgen.training.run import Described, check_run
from smidgen.training.saving import identity_of_images
from smidgen.training.start import NO_START, START, identity_of_start
from smidgen.training.state import check_identity, checkpoints, read_position

WARM_UP, TIMED = 2, 5  # steps of the estimate of time


def plan_run(
    base: str | Path,
    config: RunConfig,
    *,
    given: Mapping[str, Any],
    image_size: int | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The facts of a training on `base`, loaded with the settings `given` at this image size (None:
    its own): `images`, the Findings, `run` how it stands to what is in the output, the
    counts of `inspect` with `memory`, `refusal`, the line with which it would end, or None, and
    `warning`, that the base was trained at another size, or None.

    Every image is read and decoded, as training would; progress(done, total) is called for each.

    Raises: as the training, for what leaves nothing to count.
    """
    config = config.resolved()
    trained, factor = trained_size(base, given.get("codec"))
    size = image_size or trained
    if image_size is not None and factor is not None:
        check_size(image_size, factor)
    network = meta_network(base)
    warning = note_on_size(base, trained, size) if isinstance(network, DiT) else None
    facts: dict[str, Any] = {"images": None, "refusal": None, "warning": warning}
    folder = open_images(config.data, layout=config.layout, split=config.split, decode=False)
    has_labels = find_host(network).has_labels  # else classes are prompts
    try:
        described = Described(
            name=str(base),
            given=given,
            image_size=size,
            family=find_family(network),
            process=example_of(network).task.process,
            device=torch.device(device),
        )
        standing = check_run(described, config, force=force)
        folder, looks = look_at_all(folder, progress)
        facts["images"] = findings_of(folder, looks, size)
        check_bad_share(folder, config.max_bad_share)
        facts["images"] = _with_captions(facts["images"], base, config, folder, has_labels)
        facts["run"] = _standing(config, standing, folder, looks)
    except SmidgenError as error:
        facts["refusal"] = str(error)
        if facts["images"] is None:
            facts["images"] = findings_of(folder)
    counts = count_weights(
        base,
        num_classes=len(folder.classes) if has_labels else None,
        method=config.method,
        method_config=config.method_config,
        training=config.training,
        latent_side=None if size is None or factor is None else size // factor,
        base_precision=given.get("base_precision"),
        device=torch.device(device).type,
    )
    # tensor by tensor is what `smidgen inspect` shows
    return facts | {name: fact for name, fact in counts.items() if name != "tensors"}


def _with_captions(
    found: Findings, base: str | Path, config: RunConfig, folder: ImageFolder, has_labels: bool
) -> Findings:
    """With what is said of captions. Raises: UsageError, SmidgenError as the training."""
    captions = captions_for(config, folder, base=str(base), reads_prompts=not has_labels)
    if captions is None:
        return found
    files = None if captions.source == "none" else prompt_files(base)
    cut = None if files is None else files.cut(distinct(captions.of(folder)))
    return replace(found, captions=captions.findings(folder, cut))


def _standing(
    config: RunConfig, standing: Standing, folder: ImageFolder, looks: Sequence[Look]
) -> str:
    """How the run stands to what is in its output. Raises: UsageError if that is of other images or
    of another start.
    """
    found = [] if standing == "new" else checkpoints(config.output)
    if not found:
        return standing
    position = read_position(found[-1])
    names = [folder.name(file.path) for file in folder.files]
    contents = [look.content for look in looks]
    identity = {
        "the images": identity_of_images(names, torch.tensor(folder.class_numbers), contents),
        START: identity_of_start(config.init, config.output / DELTA) or NO_START,
    }
    check_identity(config.output, position, identity)
    return f"begun, at step {position.step}" if standing == "begun" else standing


def time_steps(base: Base, config: RunConfig, num_classes: int) -> dict[str, float]:
    """`seconds_per_step` of such a training on this machine now, the median of a few steps on
    random latents, and the `seconds` of all its steps; loading and encoding are not in them.
    """
    config = config.resolved()
    steps = WARM_UP + TIMED
    training = replace(
        config.training,
        steps=steps,
        warmup_steps=0,
        checkpoint_every=steps,
        validation_share=0.0,
        trackers=(),
    )
    count = max(num_classes, training.batch_size * training.gradient_accumulation)
    noise = torch.randn((count, 1, *base.latent_shape), generator=torch.Generator().manual_seed(0))
    names = tuple(f"{number}" for number in range(count))
    class_numbers = torch.arange(count) % num_classes
    latents = LatentSet(
        mean=noise, std=torch.zeros_like(noise), class_numbers=class_numbers, names=names
    )
    classes = [f"class {number}" for number in range(num_classes)]
    reads_prompts = base.conditioner is not None
    delta = build_delta(
        config.method,
        base,
        config.method_config,
        () if reads_prompts else classes,
        torch.Generator(),
        training={PROMPTS: {"classes": classes}} if reads_prompts else {},
    )
    ends = [time.perf_counter()]
    with TemporaryDirectory(prefix="smidgen-") as folder:
        train_delta(
            base,
            delta,
            latents,
            training,
            Path(folder),
            on_step=lambda *_: ends.append(time.perf_counter()),
        )
    each = sorted(b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False))
    median = each[len(each) // 2]
    return {
        "seconds_per_step": round(median, 4),
        "seconds": round(median * config.training.steps, 1),
    }
