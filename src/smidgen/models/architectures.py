"""Networks on the meta device, by the name of an architecture or from a folder's configuration: no
weights. The configurations of known architectures are in architectures/.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line
from smidgen.models.components import class_of, quiet
from smidgen.models.files import read_json
from smidgen.models.hub import download
from smidgen.models.known import meta_denoiser
from smidgen.models.names import ARCHITECTURES, EMBEDDED, on_hub, shipped_names
from smidgen.models.schemas import Folder, check_sizes
from smidgen.models.single_files import folder_of, is_single_file

FILES = ("model_index.json", "config.json", "unet/config.json", "transformer/config.json")
DENOISERS = ("unet", "transformer")  # folders of a pipeline
OWN = ("DiTPipeline", "DiTTransformer2DModel")  # diffusers' classes of our own architecture


def architecture_names() -> tuple[str, ...]:
    """The architectures that have a name, besides DiT-{S,B,L,XL}/{2,4,8}."""
    return tuple(sorted(path.stem for path in ARCHITECTURES.glob("*.json")))


def meta_network(name: str | Path, num_classes: int | None = None) -> nn.Module:
    """The denoiser of an architecture, or of what `load_base` takes, without weights.

    Of a folder of diffusers, a pipeline's or a network's own, only configurations are read, and
    from the hub nothing else is fetched.
    `num_classes` is for a network that has labels; None: those of the base.

    Raises: UsageError for an unknown name, or fewer than one class; SmidgenError for a
        configuration that cannot be read, `num_classes` for one without labels, or if the hub does
        not answer.
    """
    if on_hub(name):
        name = download(str(name), patterns=FILES)
    config = _config_of(name)
    if config is None:
        return meta_denoiser(name, num_classes)
    if num_classes is not None:
        raise SmidgenError(
            f'"{name}" has no label table for {num_classes} classes: its conditions are prompts; '
            "leave the number of classes out"
        )
    return build_meta(config)


def build_meta(config: Mapping[str, Any]) -> nn.Module:
    """The network that `config` (a config.json with its `_class_name`) describes, on the meta
    device, frozen.

    Raises: SmidgenError if it names no network that is installed, or does not fit it.
    """
    kind = config.get("_class_name")
    check_sizes(config, Path(f"the configuration of a {kind}"))
    found = class_of(str(kind))
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SmidgenError(f"{kind} is no network; expected the configuration of a denoiser")
    # what is only about the file would be a warning or, for a quantised one, a missing package
    facts = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        with quiet(), torch.device("meta"):
            network = cast(Any, found).from_config(facts)
    except Exception as error:  # a damaged configuration gives whatever it leads diffusers to
        reason = in_one_line(error)
        raise SmidgenError(f"the configuration does not fit a {kind}: {reason}") from error
    return network.requires_grad_(False).eval()


def _config_of(name: str | Path) -> dict[str, Any] | None:
    """The configuration of a network of diffusers, None where our own DiT or nothing is meant."""
    if isinstance(name, str) and name in architecture_names():
        return read_json(ARCHITECTURES / f"{name}.json")
    shipped = isinstance(name, str) and name in shipped_names()
    folder = EMBEDDED / name if shipped else Path(name).expanduser()
    if is_single_file(folder):
        folder = folder_of(folder)
    if not folder.is_dir():
        return None
    index = folder / "model_index.json"
    if index.is_file():
        if read_json(index, Folder).get("_class_name") in OWN:
            return None
        folder = _denoiser_folder(folder)
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json", Folder)
    return config if "_class_name" in config and config["_class_name"] not in OWN else None


def _denoiser_folder(pipeline: Path) -> Path:
    for part in DENOISERS:
        if (pipeline / part / "config.json").is_file():
            return pipeline / part
    raise SmidgenError(
        f"{pipeline} has neither {' nor '.join(f'{part}/config.json' for part in DENOISERS)}; "
        "expected a pipeline's folder"
    )
