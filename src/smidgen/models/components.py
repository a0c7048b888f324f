"""Components of pipelines from checked folders: networks, autoencoders, text encoders. The only
importer of diffusers, which takes seconds: it is imported when the first of them is wanted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.core.storage import keep
from smidgen.core.weights import check_finite
from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line
from smidgen.files.writing import writing
from smidgen.hosts.host import library_of
from smidgen.models.files import read_json, variant_of
from smidgen.models.schemas import Autoencoder


def load_encoders(
    folder: Path, kind: str, network: str, dtype: torch.dtype, parts: Mapping[str, Any]
) -> Any:
    """A pipeline of this class, which is beside that of its network, with these components instead
    of the folder's, None for without.

    Raises: SmidgenError if it cannot be loaded, or has weights that are not finite.
    """
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True} | dict(parts)
    bars = contextlib.redirect_stderr(io.StringIO())  # both libraries draw their own
    with bars, quiet(), _readable(folder, "no pipeline"):
        found = class_of(kind, beside=network)
        options |= _of_variants(folder, dtype, options)
        pipeline = found.from_pretrained(str(folder), torch_dtype=dtype, **options)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name not in parts:
            check_finite(part.state_dict(), folder / name)
    return pipeline


def load_part(folder: Path, library: str, kind: str) -> Any:
    """A text encoder or tokenizer of a pipeline, from its checked folder, in the files' precision.

    Raises: SmidgenError if it cannot be loaded.
    """
    bars = contextlib.redirect_stderr(io.StringIO())
    with bars, quiet(), _readable(folder, f"no {kind}"):
        found: Any = getattr(import_module(library), kind)
        options: dict[str, Any] = {"local_files_only": True}
        is_network = issubclass(found, nn.Module)
        if is_network:
            options |= {"use_safetensors": True, "torch_dtype": "auto"}
            options["variant"] = variant_of(folder)
        return found.from_pretrained(str(folder), **options)


def save_part(part: Any, folder: Path) -> None:
    """Write it as its library does, without notices. Raises: SmidgenError if the disk refuses."""
    with writing(folder), contextlib.redirect_stderr(io.StringIO()), quiet():
        part.save_pretrained(str(folder))


def meta_encoder(folder: Path, library: str, kind: str, dtype: torch.dtype) -> nn.Module:
    """The text encoder that a checked folder's configuration describes, on the meta device, frozen.

    Raises: SmidgenError if it does not fit its class.
    """
    with quiet(), _readable(folder, f"no {kind}"):
        found = getattr(import_module(library), kind)
        config = found.config_class.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            return found(config).to(dtype).requires_grad_(False).eval()


def _of_variants(folder: Path, dtype: torch.dtype, given: Mapping[str, Any]) -> dict[str, Any]:
    """The components of a pipeline, but those given, whose weights are there as a variant only: all
    others would have to have the same one.
    """
    loaded: dict[str, Any] = {}
    for name, entry in read_json(folder / "model_index.json").items():
        variant = None if name in given else variant_of(folder / name)
        if variant is not None:
            library, kind = entry
            loaded[name] = getattr(import_module(library), kind).from_pretrained(
                str(folder / name),
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                torch_dtype=dtype,
            )
    return loaded


def class_of(name: str, beside: str | None = None) -> Any:
    """A class by its name: from where HOSTS says that it is, or the one that it is `beside`, and of
    diffusers if that says nothing.

    Raises: SmidgenError if there is none of this name, or its library cannot be imported.
    """
    library = library_of(beside or name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = import_module(library)
            return getattr(module, name)
        except ImportError as error:
            raise SmidgenError(f"a {name} needs {library}, which cannot be imported") from error
        except AttributeError as error:
            release = getattr(module, "__version__", "as installed")
            raise SmidgenError(f"{library} {release} has no {name}") from error


def load_network(
    folder: Path, kind: str, dtype: torch.dtype, stored: torch.dtype | None = None
) -> nn.Module:
    """A network from a checked folder, without the notices of diffusers, that computes in `dtype`
    with weights in `stored`, None: the same.

    Raises: SmidgenError if it cannot be loaded, or weights are missing, unknown or not finite.
    """
    network = _load_complete(class_of(kind), folder, f"no {kind}", stored or dtype)
    if stored not in (None, dtype):
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)
        keep(network, dtype)
    return network


def load_autoencoder(folder: Path) -> nn.Module:
    """The codec in a folder of diffusers, without its notices. Raises: as `load_network`."""
    kind = read_json(folder / "config.json", Autoencoder).get("_class_name", "AutoencoderKL")
    return _load_complete(class_of(kind), folder, "no codec", torch.float32)


def _load_complete(kind: Any, folder: Path, what: str, dtype: torch.dtype) -> nn.Module:
    with quiet(), _readable(folder, what):
        loaded: Any = kind.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            variant=variant_of(folder),
            torch_dtype=dtype,
            output_loading_info=True,
        )
    network, found = loaded
    # diffusers would leave what is missing at random values.
    wrong = [f"{key} is missing" for key in found["missing_keys"]]
    wrong += [f"{key} is unknown" for key in found["unexpected_keys"]]
    if wrong:
        raise SmidgenError(f"{folder} does not fit its config.json: {'; '.join(wrong[:3])}")
    check_finite(network.state_dict(), folder)
    return network


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices of diffusers and transformers."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    """Turn what diffusers raises for a folder into one line."""
    try:
        yield
    except SmidgenError:
        raise
    except Exception as error:  # a damaged folder gives whatever it leads the libraries to
        reason = in_one_line(error)
        raise SmidgenError(f"{folder} is {what} that diffusers can load: {reason}") from error
