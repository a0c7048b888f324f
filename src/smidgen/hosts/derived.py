"""Hosts derived from the modules of any model, for classes that have no table of their own.

What a module does with its linears is not known without its code, so a derived host says only what
names and shapes of modules prove: linears, norms, and, where a module holds an attention, its
attentions and feed-forwards by the last linear of each. That linear returns one tensor whatever the
module around it returns, so a gamma on it is a gamma on the sub-layer's output. What is not known:
the residual stream, gates, where the network begins and ends, and how it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from smidgen.core.fold import Refused
from smidgen.core.sites import Site
from smidgen.hosts.host import Block, Host
from smidgen.hosts.modules import Role, callable_modules, read_modules

# Names of the children that make a module an attention -> roles of its linears. The first three are
# needed; "o" ends the image's stream, "text" is the second one.
ATTENTIONS: tuple[Mapping[str, str], ...] = (
    {
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "o",
        "add_q_proj": "text.q",
        "add_k_proj": "text.k",
        "add_v_proj": "text.v",
        "to_add_out": "text.o",
    },
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o", "o_proj": "o"},
    {"query": "q", "key": "k", "value": "v", "proj": "o"},
)
# Linears of a feed-forward -> roles, all needed; "ff1" may be several that are multiplied.
FEED_FORWARDS: tuple[Mapping[str, str], ...] = (
    {"net.0.proj": "ff1", "net.2": "ff2"},
    {"linear_1": "ff1", "linear_2": "ff1", "out_projection": "ff2"},
    {"linear_1": "ff1", "linear_3": "ff1", "linear_2": "ff2"},
    {"linear_in": "ff1", "linear_out": "ff2"},
    {"fc1": "ff1", "fc2": "ff2"},
    {"w1": "ff1", "w3": "ff1", "w2": "ff2"},
    {"gate_proj": "ff1", "up_proj": "ff1", "down_proj": "ff2"},
)
TAPS = {  # role of a linear -> the tap that its output is
    "q": "attn.q.out",
    "k": "attn.k.out",
    "v": "attn.v.out",
    "o": "attn.out",
    "cross.o": "cross.out",
    "text.o": "text.attn.out",
    "ff2": "ff.out",
    "text.ff2": "text.ff.out",
}
UNKNOWN = "{} needs the data flow of a block, which is unknown for a class without a host; "
UNKNOWN += "docs/add-a-host.md says how to add one"
CREATED = "what uses the output of a norm is unknown for a class without a host"


@dataclass(kw_only=True)
class _Found:
    """The linears and taps of one block as they are found."""

    roles: dict[str, str] = field(default_factory=dict)
    taps: dict[str, Site] = field(default_factory=dict)

    def add(self, part: str, roles: Mapping[str, str], module: nn.Module, prefix: str) -> None:
        """The linears of one sub-layer, `prefix` before their roles where it is not the first."""
        for leaf, role in roles.items():
            if _linear(module, leaf) is None:
                continue
            name, role = f"{part}.{leaf}", f"{prefix}{role}"
            self.roles[name] = role
            if role in TAPS:
                self.taps.setdefault(TAPS[role], Site(name))


def host(model: nn.Module) -> Host:
    """The sites of `model`, from its modules alone."""
    found = tuple(_blocks(model))
    roles = {
        linear: Role(name=role, block=index)
        for index, (_, block) in enumerate(found)
        for linear, role in block.roles.items()
    }
    parts = read_modules(model, roles)
    return parts.host(
        family="derived",
        blocks=tuple(
            Block(module=name, kind="transformer", taps=block.taps, positions={}, tokens=None)
            for name, block in found
        ),
        taps={},
        folds=parts.folds | dict.fromkeys(parts.bare_norms, Refused(CREATED)),
        final="",
        half=False,
        refusals={
            "adapter": UNKNOWN.format("an adapter"),
            "adaptformer": UNKNOWN.format("an adapter"),
            "vpt": "where tokens enter and leave is unknown for a class without a host; "
            "docs/add-a-host.md says how to add one",
        },
    )


def _blocks(model: nn.Module) -> Iterator[tuple[str, _Found]]:
    """The modules that hold an attention, with what else they hold, in module order."""
    for name, module in callable_modules(model):
        children = [(key, child) for key, child in module._modules.items() if child is not None]
        attentions = [(key, child) for key, child in children if _match(child, ATTENTIONS, 3)]
        if not attentions:
            continue
        block, path = _Found(), f"{name}." if name else ""
        for number, (key, child) in enumerate(attentions):
            roles = _match(child, ATTENTIONS, 3)
            block.add(f"{path}{key}", roles, child, "cross." if number else "")
        text = any(role == "text.o" for role in block.roles.values())
        feeds = [(key, child, _match(child, FEED_FORWARDS)) for key, child in children]
        for number, (key, child, roles) in enumerate(feed for feed in feeds if feed[2]):
            block.add(f"{path}{key}", roles, child, "text." if number and text else "")
        yield name, block


def _match(
    module: nn.Module, tables: Sequence[Mapping[str, str]], needed: int | None = None
) -> Mapping[str, str]:
    """The first table whose first `needed` names (None: all) are linears of `module`; else none."""
    for roles in tables:
        if all(_linear(module, leaf) is not None for leaf in list(roles)[:needed]):
            return roles
    return {}


def _linear(module: nn.Module, leaf: str) -> nn.Linear | None:
    """The linear of this dotted name in `module`, if there is one."""
    found: nn.Module | None = module
    for part in leaf.split("."):
        found = None if found is None else found._modules.get(part)
    return found if isinstance(found, nn.Linear) else None
