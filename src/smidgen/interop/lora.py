"""LoRA deltas to and from the files of other programs: PEFT, diffusers, kohya, ComfyUI.

A LoRA here is a linear bypass from the input of a linear or convolution to its output. Shapes and
stacking are in factors.py, the names in lora_names.py, the keys in lora_keys.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smidgen.core.bypass import Bottleneck, Bypass, Conv
from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit
from smidgen.core.sites import Site
from smidgen.core.weights import check_finite
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.writing import whole_file
from smidgen.hosts.host import Host
from smidgen.interop.factors import Factors, without_start
from smidgen.interop.lora_files import LoraFile, TextEncoder, read_lora_file
from smidgen.interop.lora_keys import TEXT, bare_names, parse_key
from smidgen.interop.lora_names import CONVOLUTIONS, Names
from smidgen.interop.modelspec import file_of
from smidgen.models.base import Base

LoraFormat = Literal["peft", "kohya"]

MOST_SCALE = 1e6


def write_lora(
    delta: Delta,
    path: Path | str,
    model: nn.Module,
    *,
    format: LoraFormat,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a LoRA delta for other programs, with `metadata`; of `model` only names and sizes are
    read.

    "peft": for `load_lora_weights` of diffusers and for PEFT; a scale other than 1 is multiplied
    into the up-projection, as those files have no place for one that all programs read. "kohya":
    for ComfyUI and kohya's scripts, with one alpha for all modules; under the original code's names
    except for SD 1.x and 2.x, as there.

    Raises: UsageError for another format; SmidgenError if an edit is no LoRA, the format has no
        name for its module, or a number is not finite.
    """
    if format not in get_args(LoraFormat):
        raise UsageError(
            f'unknown format "{format}"; choose from: {", ".join(get_args(LoraFormat))}'
        )
    factors = factors_of(delta)
    names = Names(model)
    path = Path(path)
    if format == "peft":
        tensors = _peft_tensors(names.to_diffusers(factors), names.prefix)
    else:
        placed = names.to_original(factors) if names.kohya_is_original else names.merged(factors)
        tensors = _kohya_tensors(placed)
    check_finite(tensors, f"cannot write {path}", "train anew, or lower the delta's strength")
    with whole_file(path) as partial:
        partial.write_bytes(file_of(tensors, metadata))
    return path


def read_lora(path: Path | str, base: Base, text_encoder: TextEncoder = "refuse") -> Delta:
    """The delta of a LoRA file of PEFT, diffusers, kohya or ComfyUI on `base`; `path` may be the
    folder of a PEFT adapter. `text_encoder` "leave-out": without those of text encoders, which
    `training.left_out` then counts.

    Raises: SmidgenError if the file is damaged, holds anything but plain LoRA of the denoiser (all
        kinds are named) or numbers that are not finite, sets what is not read, or names a module
        that this base has not.
    """
    file = read_lora_file(Path(path), text_encoder)
    path, names = file.path, Names(base.denoiser)
    found = [
        factors
        for name, parts in _by_module(file).items()
        for factors in _split(name, parts, names, file)
    ]
    order = {name: index for index, name in enumerate(names.modules)}
    found.sort(key=lambda factors: (order[factors.module], factors.rows or (0, 0)))
    edits: dict[str, Edit] = {}
    repeats = {linear.module: linear.repeats for linear in base.host.linears}
    for factors in found:
        edit_name = _edit_name(factors, base.host)
        if edit_name in edits:
            raise SmidgenError(f"{path} has two LoRAs of {factors.module}; keep one of them")
        module = names.modules[factors.module]
        edits[edit_name] = _edit(factors, module, repeats.get(factors.module, 1), path)
    if not edits:
        raise SmidgenError(f"{path} holds no LoRA that changes anything")
    provenance = Provenance(
        method="lora",
        config={},
        host=base.host.family,
        base=base.name,
        fingerprint=base.fingerprint,
        classes=(),
        training={"read_from": path.name}
        | ({"left_out": {TEXT: file.num_left_out}} if file.num_left_out else {}),
    )
    return Delta(edits, provenance)


def factors_of(delta: Delta) -> list[Factors]:
    """The LoRAs of a delta in its order.

    Raises: SmidgenError, naming the edit, if one is anything else.
    """
    found = []
    for name, edit in delta.edits.items():
        reason = not_lora(edit)
        if reason is not None:
            raise SmidgenError(
                f'"{name}" is {reason}, which LoRA files cannot hold; fold the delta, or attach it'
            )
        assert isinstance(edit, Bypass)
        body = edit.body
        assert isinstance(body, Bottleneck)
        found.append(
            Factors(
                module=edit.sites[0].module,
                down=body.down.weight.detach(),
                up=body.up.weight.detach(),
                scale=edit.scale,
                rows=edit.rows,
            )
        )
    return found


def not_lora(edit: Edit) -> str | None:
    """What the edit is in place of LoRA, for a message; None if it is LoRA."""
    if not isinstance(edit, Bypass):
        return f"a {edit.kind}"
    body, (read, *writes) = edit.body, edit.sites
    if not isinstance(body, Bottleneck) or body.activation != "identity":
        return "a bypass that is not linear"
    if body.down.bias is not None or body.up.bias is not None:
        return "a bypass with biases"
    ends = [read.end, *(site.end for site in writes)]
    if ends != ["in", "out"] or read.module != writes[0].module:
        return "a bypass from one module to another"
    return None


def _peft_tensors(placed: Mapping[str, Factors], prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for module, factors in placed.items():
        up = factors.up if factors.scale == 1 else factors.up * factors.scale
        tensors[f"{prefix}.{module}.lora_A.weight"] = factors.down.clone()
        tensors[f"{prefix}.{module}.lora_B.weight"] = up.clone()
    return tensors


def _kohya_tensors(placed: Mapping[str, Factors]) -> dict[str, Tensor]:
    """One alpha for the whole file, the most common: diffusers reads mixed ones wrongly."""
    alphas = Counter(factors.scale * factors.rank for factors in placed.values() if factors.scale)
    alpha = alphas.most_common(1)[0][0] if alphas else 1.0
    tensors = {}
    for module, factors in placed.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        ratio = factors.scale * factors.rank / alpha
        tensors[f"{name}.lora_down.weight"] = factors.down.clone()
        tensors[f"{name}.lora_up.weight"] = factors.up * ratio
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _by_module(file: LoraFile) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        parsed = parse_key(key)
        assert parsed is not None, "check_kinds has refused other keys"
        name, part = parsed
        if part in found.setdefault(name, {}):
            raise SmidgenError(
                f"{file.path} has two tensors for {part} of {name}; get the file again"
            )
        found[name][part] = tensor
    return found


def _factors(name: str, parts: Mapping[str, Tensor], file: LoraFile) -> Factors:
    path = file.path
    lacking = [part for part in ("down", "up") if part not in parts]
    if lacking:
        raise SmidgenError(f"{path}: the {lacking[0]} of {name} is missing; get the file again")
    down, up = parts["down"], parts["up"]
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != len(down) or not len(down):
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise SmidgenError(f"{path}: down and up of {name} have shapes {shapes}, which do not fit")
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        raise SmidgenError(f"{path}: the alpha of {name} is no number but {tuple(alpha.shape)}")
    given = None if alpha is None else float(alpha)
    scale = file.scaling.scale(bare_names(name)[-1], len(down), given)
    if not 0 < abs(scale) < MOST_SCALE:
        raise SmidgenError(
            f"{path}: the LoRA of {name} is scaled by {scale:g}, so that nothing, or nothing "
            "finite, is left of it; get the file again"
        )
    return Factors(module=name, down=down.clone(), up=up.clone(), scale=scale)


def _split(name: str, parts: Mapping[str, Tensor], names: Names, file: LoraFile) -> list[Factors]:
    """The LoRA of a name in the file as those of the model's modules."""
    place, factors = names.place(name, file.path), _factors(name, parts, file)
    size = sum(part.size for part in place.parts)
    if len(factors.up) != size:
        raise SmidgenError(
            f"{file.path}: the up of {name} has {len(factors.up)} rows, the base's needs {size}; "
            "give the base that it was trained on"
        )
    if file.scaling.start is not None:
        weight = place.weight(names.modules)
        if factors.down.shape[1:] != weight.shape[1:]:
            raise _misfit(file.path, name, factors.down, (factors.rank, *weight.shape[1:]))
        factors = without_start(factors, weight, file.scaling.start)
    return place.split(factors)


def _misfit(path: Path, name: str, down: Tensor, expected: tuple[int, ...]) -> SmidgenError:
    return SmidgenError(
        f"{path}: the LoRA of {name} has shape {tuple(down.shape)}, the base's needs {expected}; "
        "give the base that it was trained on"
    )


def _edit(factors: Factors, module: nn.Module, repeats: int, path: Path) -> Bypass:
    """The bypass of this LoRA; from half precision in float32, as it may be trained on."""
    down, up = (
        t.to(torch.promote_types(t.dtype, torch.float32)) for t in (factors.down, factors.up)
    )
    conv, axis = None, -1
    if isinstance(module, CONVOLUTIONS):
        conv, axis = Conv.of(module), 1
        size_in, kernel = module.in_channels, tuple(module.kernel_size)
        if module.groups > 1:
            raise SmidgenError(f"{path} has a LoRA of {factors.module}, a grouped convolution")
    else:
        linear: Any = module  # quantised ones too
        size_in, kernel = int(linear.in_features), ()
    ones = (1,) * len(kernel)
    # a 1x1 convolution and a linear are one matrix, and files write it either way
    if math.prod(down.shape[2:]) == math.prod(kernel) == 1:
        down = down.reshape(*down.shape[:2], *kernel)
    expected = (factors.rank, size_in, *kernel)
    if down.shape != expected or math.prod(up.shape[2:]) != 1:
        raise _misfit(path, factors.module, down, expected)
    up = up.reshape(*up.shape[:2], *ones)
    size_out = up.shape[0]
    body = Bottleneck(size_in, factors.rank, size_out, activation="identity", bias=False, conv=conv)
    with torch.no_grad():
        body.down.weight.copy_(down)
        body.up.weight.copy_(up)
    read = Site(factors.module, "in", axis=axis, repeats=repeats)
    write = Site(factors.module, axis=axis, repeats=repeats)
    return Bypass(read, (write,), body, scale=factors.scale, rows=factors.rows)


def _edit_name(factors: Factors, host: Host) -> str:
    """As the method `lora` names it: the module, and the role of the rows if it has some."""
    if factors.rows is None:
        return f"{factors.module}.lora"
    roles = {(one.module, one.rows): one.role for one in host.linears}
    role = roles.get((factors.module, factors.rows), f"{factors.rows[0]}_{factors.rows[1]}")
    return f"{factors.module}.lora_{role}"
