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
from torch.utils.flop_counter import FlopCounterMode

from smidgen.api.weights import count_weights, reader_without_weights
from smidgen.data.captions import distinct
from smidgen.data.findings import Findings, findings_of
from smidgen.data.folder import ImageFolder, Look, Progress, check_bad_share, look_at_all
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from smidgen.files.run_files import DELTA
from smidgen.files.standing import Standing
from smidgen.hosts.host import find_family, find_host
from smidgen.models.architectures import meta_network
from smidgen.models.base import Base
from smidgen.models.dit import DiT
from smidgen.models.known import known_classes, known_size, prompt_files, refuse_dit_settings
from smidgen.models.labels import check_lengths, rows_of
from smidgen.models.names import is_architecture
from smidgen.models.placing import check_placing, check_processes, place
from smidgen.models.positions import given_positions, note_on_size, positions_at
from smidgen.models.prompts import DREAMBOOTH
from smidgen.processes import world_size
from smidgen.sizes import ImageSize, nearest
from smidgen.training.buckets import BUCKETS, identity_of_buckets, sizes_of
from smidgen.training.captions import (
    captions_for,
    look_at_subject,
    told_of_subject,
)
from smidgen.training.config import RunConfig
from smidgen.training.described import Described, check_run, settled
from smidgen.training.example import example_of
from smidgen.training.prompt_list import findings_of_prompts, read_prompts
from smidgen.training.rehearsal import rehearse
from smidgen.training.saving import identity_of_images
from smidgen.training.start import NO_START, START, identity_of_start
from smidgen.training.state import CLASS_IMAGES, check_identity, checkpoints, read_position
from smidgen.training.subject import subject_prompts
from smidgen.training.validation import held_out_of

Seen = tuple[ImageFolder, Sequence[Look]]

WARM_UP, TIMED = 2, 5  # steps of the estimate of time


def plan_run(
    base: str | Path,
    config: RunConfig,
    *,
    given: Mapping[str, Any],
    image_size: ImageSize | None = None,
    device: str = "cpu",
    offload: bool = False,
    shard: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The facts of a training on `base`, loaded with the settings `given` at this image size (None:
    its own), `offload` and `shard` as in `load_base`: `images`, the Findings, `precision` that of
    the passes, `run` how it stands to what is in the output, the counts of `inspect` with `memory`,
    `refusal`, the line with which it would end, or None, and `warning`, that the base was trained
    at another size or has no weights, or None. `base` may be the name of an architecture.

    Every image is read and decoded, as training would; progress(done, total) is called for each.

    Raises: as the training, for what leaves nothing to count.
    """
    config = config.resolved()
    check_placing(device, offload=offload, shard=shard)
    check_processes(shard=shard)
    described, warning = _described(base, given, image_size, device, offload=offload, shard=shard)
    config = settled(described, config, force=force)
    facts: dict[str, Any] = {"images": None, "refusal": None, "warning": warning}
    facts["precision"] = config.training.precision
    folder, classes, prompts = None, (), ()
    if config.has_prompts_alone:
        prompts = read_prompts(config.data)
        facts["images"] = findings_of_prompts(config.data, prompts)
    else:
        folder = open_images(config.data, layout=config.layout, split=config.split, decode=False)
        classes = folder.classes
    has_labels = find_host(described.denoiser).has_labels  # else classes are prompts
    train_labels = config.training.train_labels
    try:
        facts["run"] = standing = check_run(described, config, force=force)
        if folder is None:
            check_lengths(prompt_files(base), prompts, str(base))
            numbers = torch.zeros(len(prompts))
            held_out_of(numbers, (), config.training, has_captions=True)
            identity = identity_of_images(prompts, numbers, ())
            facts["run"] = _standing(config, standing, {"the images": identity})
        else:
            folder, looks = look_at_all(folder, progress)
            classes = folder.classes
            sizes = sizes_of(described, config)
            facts["images"] = findings_of(folder, looks, sizes)
            check_bad_share(folder, config.max_bad_share)
            if not train_labels and (known_names := known_classes(base)) is not None:
                rows_of(classes, known_names, str(base))
            facts["images"] = _with_captions(facts["images"], base, config, folder, has_labels)
            held_out_of(
                torch.tensor(folder.class_numbers),
                [look.content for look in looks],
                config.training,
                has_captions=config.task == DREAMBOOTH or facts["images"].captions is not None,
            )
            others = None
            if config.task == DREAMBOOTH:
                facts["subject"], others = _subject(base, config, folder)
            identity = {"the images": _identity(folder, looks)} | _identity_of_buckets(looks, sizes)
            if others is not None:
                identity[CLASS_IMAGES] = _identity(*others)
            facts["run"] = _standing(config, standing, identity)
    except SmidgenError as error:
        facts["refusal"] = str(error)
        if folder is not None and facts["images"] is None:
            facts["images"] = findings_of(folder)
    _, height, width = described.latent_shape
    reads = config.encodes_in_step and not has_labels
    counts = count_weights(
        base,
        num_classes=len(classes) if has_labels and train_labels else None,
        method=config.method,
        method_config=config.method_config,
        training=config.training,
        latent_size=(height, width),
        reader=reader_without_weights(base, described.image_size) if reads else None,
        trains_encoders=reads and config.trains_encoders,
        token=config.token,
        base_precision=given.get("base_precision"),
        offload=offload,
        num_shards=world_size() if shard else 1,
        device=torch.device(device).type,
    )
    # tensor by tensor is what `smidgen inspect` shows
    return facts | {name: fact for name, fact in counts.items() if name != "tensors"}


def _described(
    base: str | Path,
    given: Mapping[str, Any],
    image_size: ImageSize | None,
    device: str,
    *,
    offload: bool,
    shard: bool,
) -> tuple[Described, str | None]:
    """The base without its weights, and what `plan_run` says as warning. Raises: as that."""
    known = known_size(base, given.get("codec"))
    trained = None if known is None else known.trained
    size = image_size or trained
    if image_size is not None and known is not None:
        known.sides.check(image_size, str(base))
    network = meta_network(base)
    place(network, "meta", offload=offload, shard=shard)
    positions = positions_at(trained, size, given.get("positions"))
    if not isinstance(network, DiT):
        refuse_dit_settings(positions=given.get("positions"))
    latent_size = (
        None
        if size is None or known is None
        else (size.height // known.factor, size.width // known.factor)
    )
    example = example_of(network)
    channels, *own_size = example.latent_shape
    described = Described(
        name=str(base),
        given={name: value for name, value in given.items() if name != "positions"}
        | given_positions(positions),
        image_size=size,
        sides=None if known is None else known.sides,
        denoiser=network,
        latent_shape=(channels, *(latent_size or own_size)),
        family=find_family(network),
        process=example.task.process,
        device=torch.device(device),
    )
    warning = None
    if isinstance(network, DiT):
        warning = note_on_size(base, trained, size, positions)
    if is_architecture(base):
        warning = f'"{base}" is an architecture: this counts, and training needs its weights'
    return described, warning


def _with_captions(
    found: Findings, base: str | Path, config: RunConfig, folder: ImageFolder, has_labels: bool
) -> Findings:
    """With what is said of captions. Raises: UsageError, SmidgenError as the training."""
    captions = captions_for(config, folder, base=str(base), reads_prompts=not has_labels)
    if captions is None:
        return found
    files = None if captions.source == "none" else prompt_files(base)
    cut = None if files is None else files.cut(distinct(captions.of(folder)))
    if config.task == DREAMBOOTH:
        names = [folder.name(file.path) for file in folder.files]
        told_of_subject(names, captions.of(folder), config)
        if captions.source == "none":
            return found
    return replace(found, captions=captions.findings(folder, cut))


def _subject(
    base: str | Path, config: RunConfig, folder: ImageFolder
) -> tuple[dict[str, Any], Seen | None]:
    """What is known of a personalisation's subject and of its class, and the images of that where
    they are in a folder. Raises: UsageError, SmidgenError as the training.
    """
    files = prompt_files(base)
    warning = look_at_subject(files, config, folder, str(base))
    prompts = subject_prompts(config)
    facts = {"prompt": prompts.instance} | ({"warning": warning} if warning else {})
    if not config.training.prior_weight:
        return facts | {"class_images": "none, as prior_weight is 0"}, None
    facts["class_prompt"] = prompts.of_class
    if config.class_data is None:
        drawn = f"{config.class_images:,}, drawn by the base where the cache lacks them"
        return facts | {"class_images": drawn}, None
    others, looks = look_at_all(open_images(config.class_data, decode=False))
    check_bad_share(others, config.max_bad_share)
    return facts | {"class_images": findings_of(others, looks).lines()[0]}, (others, looks)


def _standing(config: RunConfig, standing: Standing, identity: dict[str, str]) -> str:
    """How the run stands to what is in its output. Images of the class that the base would draw are
    not compared, nor what would have to be loaded: text encoders and the CLIP of a reward.

    Raises: UsageError if that is of other images or of another start.
    """
    found = [] if standing == "new" else checkpoints(config.output)
    if not found:
        return standing
    position = read_position(found[-1])
    identity[START] = identity_of_start(config.init, config.output / DELTA) or NO_START
    check_identity(config.output, position, identity)
    return f"begun, at step {position.step}" if standing == "begun" else standing


def _identity_of_buckets(looks: Sequence[Look], sizes: Sequence[ImageSize]) -> dict[str, str]:
    """That of the run, where the sizes are known."""
    if not sizes:
        return {}
    brought = [nearest(look.facts.width, look.facts.height, sizes) for look in looks]
    return {BUCKETS: identity_of_buckets(brought, sizes[0])}


def _identity(folder: ImageFolder, looks: Sequence[Look]) -> str:
    names = [folder.name(file.path) for file in folder.files]
    contents = [look.content for look in looks]
    return identity_of_images(names, torch.tensor(folder.class_numbers), contents)


def time_steps(base: Base, config: RunConfig, num_classes: int) -> dict[str, float]:
    """`seconds_per_step` of such a training on this machine now, the median of a few steps on
    random latents, and the `seconds` of all its steps; loading and encoding are not in them.
    """
    ends = [time.perf_counter()]
    with TemporaryDirectory(prefix="smidgen-") as folder:
        rehearse(
            base,
            config,
            num_classes,
            Path(folder),
            steps=WARM_UP + TIMED,
            on_step=lambda *_: ends.append(time.perf_counter()),
        )
    each = sorted(b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False))
    median = each[len(each) // 2]
    return {
        "seconds_per_step": round(median, 4),
        "seconds": round(median * config.training.steps, 1),
    }


def flops_of_image(base: Base, config: RunConfig, num_classes: int) -> int:
    """Floating-point operations of a step of such a training, forward and backward, for each of its
    images: of products with weights and of convolutions. PyTorch's counter passes over the products
    within attention on a CPU, which are the same whatever is trained.
    """
    one = replace(config.training, batch_size=1, gradient_accumulation=1)
    with TemporaryDirectory(prefix="smidgen-") as folder, FlopCounterMode(display=False) as counted:
        rehearse(base, replace(config, training=one), num_classes, Path(folder), steps=1)
    return counted.get_total_flops()
