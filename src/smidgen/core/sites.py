"""Sites: where in a frozen network an edit acts, and how a function is put there with a hook.

A site is the input or the output of one module. Nothing here changes a module's class or weights.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from smidgen.errors import SmidgenError

Function = Callable[[Tensor], Tensor]
# dotted, in one line
Name = Annotated[str, Meta(max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z")]
Index = Annotated[int, Meta(ge=-64, le=63)]


@dataclass(frozen=True)
class Site:
    """One end of the module with this dotted name ("" is the whole network).

    `in` takes the name of an argument of `forward` (None: the first). `index` is into the tuple or
    list that is the output, or the named argument (None: it is one tensor). `axis` is where the
    tensor has its channels. `repeats` is how many leading entries in a row belong to one image,
    which a bank must know (PixArt embeds the height and the width of an image as two entries); it
    says nothing about where the site is, so sites that differ in it only are equal.
    """

    module: str
    end: Literal["in", "out"] = "out"
    argument: str | None = None
    index: int | None = None
    axis: int = -1
    repeats: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        if self.end == "in" and self.index is not None and self.argument is None:
            raise ValueError(f"{self}: an index into an input needs the argument's name")
        if self.end == "out" and self.argument is not None:
            raise ValueError(f"{self}: an output is chosen by an index, not by an argument")

    def spec(self) -> dict[str, Any]:
        """The arguments that make this site, as JSON, without those at their default."""
        values = {each.name: (getattr(self, each.name), each.default) for each in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __str__(self) -> str:
        parts = (part for part in (self.argument, self.index) if part is not None)
        return f"{self.module or 'root'}.{self.end}" + "".join(f"[{part}]" for part in parts)


class SiteSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of a site in a file: `Site.spec`."""

    module: Name
    end: Literal["in", "out"] = "out"
    argument: Name | None = None
    index: Index | None = None
    axis: Index = -1
    repeats: Annotated[int, Meta(ge=1, le=2**16)] = 1

    def site(self) -> Site:
        """Raises: ValueError for an index or an argument at the wrong end."""
        return Site(**asdict(self))


def bind(
    root: nn.Module, site: Site, function: Function, *, first: bool = False
) -> RemovableHandle:
    """Let `function` replace the tensor at `site` in every call from now on; `remove()` ends it.

    Functions at one site run in the order in which they were bound, or this one before those, if
    `first`. An argument or output that is absent or None is left alone.

    Raises: SmidgenError if `root` has no such module or its `forward` no such argument; in a call,
        if there is something other than a tensor at the site.
    """
    module = module_at(root, site.module)
    if site.end == "in":
        hook = _input_hook(module, site, function)
        return module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)
    return module.register_forward_hook(
        lambda module, arguments, output: _apply(site, function, output), prepend=first
    )


def module_at(root: nn.Module, name: str) -> nn.Module:
    """The module of `root` with this dotted name. Raises: SmidgenError if there is none."""
    try:
        return root.get_submodule(name)
    except AttributeError:
        raise misfit(f'{type(root).__name__} has no module "{name}"') from None


def misfit(what: str) -> SmidgenError:
    """The error of a delta that does not fit the network."""
    return SmidgenError(f"{what}; give the base that the delta was made for")


def num_channels(module: nn.Module, end: Literal["in", "out"]) -> int | None:
    """The channels that a layer of PyTorch reads (`in`) or returns (`out`); None if only a call
    can tell.
    """
    match module:
        case nn.Linear():
            return module.in_features if end == "in" else module.out_features
        case _ConvNd():
            return module.in_channels if end == "in" else module.out_channels
        case nn.Embedding():
            return module.embedding_dim if end == "out" else None
        case nn.LayerNorm():
            return module.normalized_shape[-1]
        case nn.GroupNorm():
            return module.num_channels
    # linears in 4 or 8 bit are classes of other packages, with the attributes of PyTorch's
    features = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    if all(isinstance(count, int) for count in features):
        return features[0 if end == "in" else 1]
    return None


def compiled_module(root: nn.Module) -> str | None:
    """The name of the first module that `torch.compile` or `.compile()` has compiled, if any."""
    for name, module in root.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            return name
    return None


def check_attachable(root: nn.Module) -> None:
    """Compiled code ignores hooks that come after it, without a word; so refuse it with one.

    Raises: SmidgenError if `root` or a module in it is compiled.
    """
    name = compiled_module(root)
    if name is not None:
        where = f'module "{name}"' if name else type(root).__name__
        raise SmidgenError(
            f"{where} is compiled, and compiled code would ignore the delta: "
            "attach to the model as it was before torch.compile, then compile"
        )


def _input_hook(module: nn.Module, site: Site, function: Function) -> Callable[..., Any]:
    name, position = _argument(module, site)

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if name in named:
            return arguments, named | {name: _apply(site, function, named[name])}
        if position is not None and position < len(arguments):
            value = _apply(site, function, arguments[position])
            return (*arguments[:position], value, *arguments[position + 1 :]), named
        return None  # left to its default

    return hook


def _argument(module: nn.Module, site: Site) -> tuple[str, int | None]:
    """The name of the site's argument and its position, None where it goes by keyword only."""
    parameters = inspect.signature(module.forward).parameters
    keyword_only = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    positional = [name for name, p in parameters.items() if p.kind not in keyword_only]
    name = site.argument or next(iter(positional), "")
    if name in positional:
        return name, positional.index(name)
    if name in parameters or any(p.kind is keyword_only[1] for p in parameters.values()):
        return name, None
    raise misfit(f"{site}: {type(module).__name__}.forward takes only {', '.join(parameters)}")


def _apply(site: Site, function: Function, value: Any) -> Any:
    """What `function` makes of the tensor that is `value`, or that is in it at the site's index."""
    if site.index is None or (value is None and site.end == "in"):
        return _replace(site, function, value)
    if not isinstance(value, tuple | list) or not -len(value) <= site.index < len(value):
        what = "the module returns no output" if site.end == "out" else "the argument has no entry"
        raise SmidgenError(f"{site}: {what} number {site.index}")
    parts = list(value)
    parts[site.index] = _replace(site, function, parts[site.index])
    return parts if isinstance(value, list) else tuple(parts)


def _replace(site: Site, function: Function, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise SmidgenError(
            f"{site} carries a {type(value).__name__}, not a tensor; a site may need an index"
        )
    return function(value)
