"""Checkpoints of Stable Diffusion 1.x, 2.x and SDXL in one file, under the names of their original
code: unpacked once into a folder of diffusers in the cache, which from then on is the base.
Configurations and vocabulary are in checkpoints/; nothing is fetched.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smidgen.core.weights import check_finite, open_safetensors
from smidgen.errors import SmidgenError
from smidgen.files.places import default_cache_dir
from smidgen.files.writing import write_json, write_text, writing
from smidgen.hosts.family import Original
from smidgen.hosts.host import families
from smidgen.hosts.original_parts import clip_shapes, read_clip, read_open_clip, vae_renaming
from smidgen.hosts.renaming import modules_of, restore
from smidgen.models.components import class_of, quiet
from smidgen.models.files import read_json, write_safetensors_file
from smidgen.models.names import ARCHITECTURES
from smidgen.processes import barrier, is_main

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "checkpoints"
MERGES = SHIPPED / "clip-merges.txt.gz"
FORMAT = 1  # of the folder
DENOISER = "model.diffusion_model."
TEXT_WIDTH = f"{DENOISER}input_blocks.{{}}.1.transformer_blocks.0.attn2.to_k.weight"
KINDS = {768: ("sd-1", "sd-1.5"), 1024: ("sd-2", "sd-2.1"), 2048: ("sdxl", "sdxl")}

# what files have besides the networks: averages, schedules, buffers, and layers that nothing reads
UNREAD = re.compile(
    r"(model_ema\.|first_stage_model\.loss\.|cond_stage_model\.(model\.)?(logit_scale|attn_mask)"
    r"|conditioner\.embedders\.\d\.(model\.)?(logit_scale|attn_mask)|denoiser\.sigmas$"
    r"|cond_stage_model\.text_projection(\.weight)?$"
    r"|cond_stage_model\.model\.(text_projection$|transformer\.resblocks\.23\.)"
    r"|(sqrt_|log_)?(recip_|recipm1_|one_minus_)?alphas_cumprod(_prev)?$|betas$|logvar$"
    r"|posterior_\w+$|sqrt_\w+$|lvlb_weights$|scale_factor$|v_pred$|ztsnr$|.*\.position_ids$)"
)

Part = Callable[[str], dict[str, Tensor]]  # prefix -> the tensors under it, without it


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """All of a pipeline's folder but its weights: the documents by their paths in it."""

    documents: Mapping[str, Any]

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's config.json."""
        return self.documents[f"{component}/config.json"]

    @property
    def original(self) -> Original:
        """The names of the code in which the file was written."""
        found = families()[str(self.config("unet")["_class_name"])].original
        assert found is not None, "the UNet has original names"
        return found

    @property
    def text_encoders(self) -> dict[str, str]:
        """Those that there are, with the prefix of their tensors in the file."""
        names = ("text_encoder", "text_encoder_2")
        found = [name for name in names if f"{name}/config.json" in self.documents]
        clip, open_clip = self.original.text_encoders[len(found)]
        return {
            name: open_clip if self.config(name).get("hidden_act") == "gelu" else clip
            for name in found
        }


def is_single_file(path: Path) -> bool:
    """Whether this is a checkpoint with the denoiser of Stable Diffusion in it, by its header."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with open_safetensors(path) as file:
        return any(name.startswith(DENOISER) for name in file.keys())  # noqa: SIM118


def folder_of(path: Path) -> Path:
    """The folder of diffusers that a single file was unpacked into, now or before, by its place,
    size, time and header.

    Raises: SmidgenError for a file that is no such checkpoint, or not whole, or of SD 2.x that does
        not say what it predicts; or if the disk refuses.
    """
    facts = path.stat()
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = raw.read(length)
    place = (FORMAT, str(path.resolve()), facts.st_size, facts.st_mtime_ns, beside(path))
    key = hashlib.sha256(repr(place).encode() + header).hexdigest()[:32]
    folder = default_cache_dir() / "bases" / f"{path.stem[:40]}-{key}"
    if is_main() and not folder.is_dir():
        logger.info("unpacking %s once into %s", path, folder)
        unpack(path, folder, blueprint_of(path))
    barrier()
    return folder


def beside(path: Path) -> str | None:
    """What the YAML beside a file, as the original code has it, says that the network predicts."""
    with suppress(OSError, UnicodeDecodeError):
        text = path.with_suffix(".yaml").read_text(encoding="utf-8")[:100_000]
        return "v" if re.search(r"^\s*parameterization:\s*[\"']?v\b", text, re.M) else "epsilon"
    return None


def blueprint_of(path: Path) -> Blueprint:
    """The configurations that fit a file. Raises: SmidgenError as `folder_of`."""
    with open_safetensors(path) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return blueprint_by(shapes, beside(path) or _recorded(file.metadata() or {}), path)


def blueprint_by(shapes: Mapping[str, Any], predicts: str | None, path: Path) -> Blueprint:
    """The configurations that fit the tensors of a file at `path`; `predicts`: "v" or "epsilon" if
    it is known. Raises: SmidgenError as `folder_of`.
    """
    found = [shapes.get(TEXT_WIDTH.format(number), ()) for number in (1, 2, 4)]
    width = next((shape[1] for shape in found if len(shape) == 2), None)
    if width not in KINDS:
        raise SmidgenError(
            f"{path} is no checkpoint of SD 1.x, 2.x or SDXL (its UNet reads texts of {width} "
            "channels); give its folder of diffusers"
        )
    first = tuple(shapes.get(f"{DENOISER}input_blocks.0.0.weight", ()))
    if first[1:2] != (4,):
        raise SmidgenError(
            f"{path} has a UNet whose first layer is {first}: that of inpainting or another task; "
            "expected one that reads the 4 channels of a text-to-image model"
        )
    name, unet = KINDS[width]
    if predicts is None and name == "sd-2":
        raise SmidgenError(
            f"{path} is of SD 2.x and does not say what it predicts: put {path.stem}.yaml beside "
            'it with the line "parameterization: v" (2.0 and 2.1 of 768 pixels) or '
            '"parameterization: eps" (of 512)'
        )
    documents = read_json(SHIPPED / f"{name}.json")
    documents["unet/config.json"] = read_json(ARCHITECTURES / f"{unet}.json")
    scheduler = documents["scheduler/scheduler_config.json"]
    is_v = predicts == "v" or (predicts is None and "v_pred" in shapes)
    scheduler["prediction_type"] = "v_prediction" if is_v else "epsilon"
    scheduler["rescale_betas_zero_snr"] = "ztsnr" in shapes
    if name == "sd-2" and not is_v:
        documents["unet/config.json"]["sample_size"] = 64
    return Blueprint(documents=documents | _vocabulary(documents))


def _recorded(metadata: Mapping[str, str]) -> str | None:
    """What the network of a file predicts, by its own record in the form of ModelSpec."""
    said = metadata.get("modelspec.prediction_type")
    architecture = metadata.get("modelspec.architecture", "")
    if said is None and architecture.startswith("stable-diffusion-v2"):
        said = "v" if architecture.endswith("-v") else "epsilon"
    return said if said in ("v", "epsilon") else None


def _vocabulary(documents: Mapping[str, Any]) -> dict[str, Any]:
    """The files of each CLIP tokenizer: its merges, and the vocabulary that follows from them, as
    CLIP's own code numbers it.
    """
    merges = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    signs = list(_byte_signs().values())
    pieces = [*signs, *(f"{sign}</w>" for sign in signs)]
    pieces += ["".join(merge.split()) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    text = "\n".join(["#version: 0.2", *merges, ""])
    folders = [name.partition("/")[0] for name in documents if name.startswith("tokenizer")]
    return {
        name: value
        for folder in folders
        for name, value in (
            (f"{folder}/vocab.json", vocabulary),
            (f"{folder}/merges.txt", text),
        )
    }


def _byte_signs() -> dict[int, str]:
    """A printable sign for each byte, in the order of CLIP's (and GPT-2's) own code."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def unpack(path: Path, folder: Path, blueprint: Blueprint) -> None:
    """Write the pipeline in a single file as `folder`, in the file's own precision; as a whole or
    not at all.

    Raises: SmidgenError for tensors that are missing, unknown, of other shapes or not finite, or if
        the disk refuses.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        with open_safetensors(path) as file:
            keys = [key for key in file.keys() if not UNREAD.match(key)]  # noqa: SIM118
            _check_parts(path, keys, blueprint)

            def part(prefix: str) -> dict[str, Tensor]:
                own = (key for key in keys if key.startswith(prefix))
                return {key.removeprefix(prefix): file.get_tensor(key) for key in own}

            for name, tensors in components(part, blueprint, str(path)):
                stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
                check_finite(tensors, f"{path}: {name}")
                write_safetensors_file(tensors, partial / name / f"{stem}.safetensors")
        for name, document in blueprint.documents.items():
            (write_text if isinstance(document, str) else write_json)(document, partial / name)
        with writing(folder):
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # which another process wrote in the meantime
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def components(
    part: Part, blueprint: Blueprint, what: str
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The networks of a file by the names of their components, one after the other; `what` names
    the file.

    Raises: SmidgenError for tensors that are missing, unknown or of other shapes.
    """
    original = blueprint.original
    shapes = network_shapes(blueprint.config("unet"))
    names = original.names(modules_of(shapes))
    yield "unet", restore(part(DENOISER), names, shapes, f"{what}: the UNet")
    shapes = network_shapes(blueprint.config("vae"))
    names = vae_renaming(modules_of(shapes))
    yield "vae", restore(part(original.codec), names, shapes, f"{what}: the codec")
    for name, prefix in blueprint.text_encoders.items():
        config = blueprint.config(name)
        kind = blueprint.documents["model_index.json"][name][1]
        shapes = clip_shapes(config, projected=kind == "CLIPTextModelWithProjection")
        read = read_open_clip if config.get("hidden_act") == "gelu" else read_clip
        yield name, read(part(prefix), shapes)


def _check_parts(path: Path, keys: Iterable[str], blueprint: Blueprint) -> None:
    """Raises: SmidgenError for tensors of a part that is not known, or a part without any."""
    prefixes = (DENOISER, blueprint.original.codec, *blueprint.text_encoders.values())
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in keys):
            raise SmidgenError(
                f"{path} has no tensors under {prefix}: it is not the whole pipeline; give a whole "
                "checkpoint, or the folder of diffusers"
            )
    left = [key for key in keys if not key.startswith(prefixes)]
    if left:
        raise SmidgenError(f"{path} has {left[0]}, of a part that is not known; give its folder")


def network_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a network of diffusers of this configuration."""
    found = class_of(str(config["_class_name"]))
    with quiet(), torch.device("meta"):
        network = found.from_config(dict(config))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
