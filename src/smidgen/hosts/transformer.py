"""What the hosts of diffusers' transformers share: a host from a table of block parts and the
model's own modules. D is the width of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from smidgen.core.fold import Refused, Target
from smidgen.core.sites import Site
from smidgen.hosts.host import Block, Host, Position
from smidgen.hosts.modules import Role, read_modules, with_rows

NUM_TIMESTEPS = 1000  # of every scheduler of these families; sigma 1 is timestep 1000

# Linears of an attention and of the feed-forwards, by their name below the block -> LoRA's role.
SELF_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
TEXT_ATTENTION = {
    "add_q_proj": "text.q",
    "add_k_proj": "text.k",
    "add_v_proj": "text.v",
    "to_add_out": "text.o",
}

FEED_FORWARD = MappingProxyType({"net.0.proj": "ff1", "net.2": "ff2"})


def named(part: str, roles: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """The roles of the linears of one part of a block, by their name below the block."""
    return {f"{part}.{leaf}": f"{prefix}{role}" for leaf, role in roles.items()}


@dataclass(frozen=True, kw_only=True)
class Joint:
    """What the parts of a block with two streams, image and text, are called.

    `last` and `ff_roles` are the feed-forwards' last linear and their linears' roles.
    """

    norm1: str = "norm1.norm"
    norm2: str = "norm2"
    ff: str = "ff"
    text_ff: str = "ff_context"
    last: str = "net.2"
    ff_roles: Mapping[str, str] = field(default_factory=lambda: FEED_FORWARD)

    def roles(self) -> dict[str, str]:
        """The roles of all linears of the block."""
        return (
            named("attn", SELF_ATTENTION | TEXT_ATTENTION)
            | named(self.ff, self.ff_roles)
            | named(self.text_ff, self.ff_roles, "text.")
        )


@dataclass(kw_only=True)
class Sheet:
    """The facts of a host as they are gathered, block by block.

    `outputs`: sites that carry a linear's output -> that linear. `modulations`: norm modules
    without affine -> what takes up a created one. `rows`: linears of which LoRA may take the rows
    from start to stop, with the role of each part.
    """

    model: nn.Module
    blocks: list[Block] = field(default_factory=list)
    outputs: dict[Site, str] = field(default_factory=dict)
    modulations: dict[str, Target] = field(default_factory=dict)
    rows: dict[str, tuple[tuple[str, int, int], ...]] = field(default_factory=dict)

    @cached_property
    def width(self) -> int:
        """D, from the model's configuration."""
        config: Any = self.model.config
        return config.num_attention_heads * config.attention_head_dim

    def add_joint(
        self,
        name: str,
        parts: Joint,
        *,
        text: bool = True,
        tokens: bool,
        companions: tuple[Site, ...] = (),
    ) -> None:
        """A block of two streams that returns (text, image) and whose attention returns (image,
        text). `text`: whether the text's stream goes on behind the attention; `tokens`: whether
        the image's takes more tokens, and `companions` what else then has to grow.
        """
        taps = {}
        if text:
            attention = Site(f"{name}.attn", index=1)
            feed = Site(f"{name}.{parts.text_ff}")
            taps["text.attn.out"] = attention
            taps |= {"text.ff.in": Site(feed.module, "in"), "text.ff.out": feed}
            self.outputs[attention] = f"{name}.attn.to_add_out"
            self.outputs[feed] = f"{feed.module}.{parts.last}"
        self._add_stream(
            name,
            norms=(parts.norm1, parts.norm2),
            attention=Site(f"{name}.attn", index=0),
            ff=Site(f"{name}.{parts.ff}"),
            last=parts.last,
            leave=Site(name, index=1),
            others=taps,
            tokens=tokens,
            companions=companions,
        )

    def add_cross(self, name: str, *, ff: Site, last: str, context: int, tokens: bool) -> None:
        """A block of self-attention `attn1`, cross-attention `attn2` to text of `context` channels
        and feed-forward, where `norm2` stands before the feed-forward (PixArt, Sana).
        """
        leave, cross = Site(name), Site(f"{name}.attn2")
        before_cross = Site(cross.module, "in", "hidden_states")
        before_ff = Site(f"{name}.norm2", "in")
        text = Site(cross.module, "in", "encoder_hidden_states")
        self.outputs[cross] = f"{name}.attn2.to_out.0"
        self._add_stream(
            name,
            norms=("norm1", "norm2"),
            attention=Site(f"{name}.attn1"),
            ff=ff,
            last=last,
            leave=leave,
            others={"cross.out": cross},
            between={
                # behind the gate: no module returns the stream, so it is written where it is read
                "CA_in": self._position(before_cross, before_cross, before_ff, leave),
                "CA_c": Position(read=text, writes=(text,), size=context, form="tokens"),
                "CA_out": self._position(cross),
            },
            tokens=tokens,
        )

    def add_single(self, name: str, *, norm: str, projection: str, leave: Site) -> None:
        """A block of one stream, in which attention and feed-forward run side by side and share
        the linear `projection` at their end.
        """
        enter, out = Site(name, "in", "hidden_states"), Site(f"{name}.{projection}")
        taps = {
            "block.in": enter,
            "norm1.out": Site(f"{name}.{norm}"),
            "proj.out": out,
            "block.out": leave,
        }
        positions = {
            "SA_in": self._position(enter, enter),
            "Trans_out": self._position(leave, leave),
        }
        self.blocks.append(
            Block(module=name, kind="single", taps=taps, positions=positions, tokens=None)
        )

    def _add_stream(
        self,
        name: str,
        *,
        norms: tuple[str, str],
        attention: Site,
        ff: Site,
        last: str,
        leave: Site,
        others: Mapping[str, Site],
        between: Mapping[str, Position] = MappingProxyType({}),
        tokens: bool,
        companions: tuple[Site, ...] = (),
    ) -> None:
        """A block by the image's way through it: norm, attention, norm, feed-forward, with the
        positions `between` the two sub-layers, and `others`, the taps beside this way.
        """
        norm1, norm2 = (f"{name}.{norm}" for norm in norms)
        enter, stream = Site(name, "in", "hidden_states"), Site(norm2, "in")
        taps = {
            "block.in": enter,
            "norm1.out": Site(norm1),
            **{f"attn.{part}.out": Site(f"{attention.module}.to_{part}") for part in "qkv"},
            "attn.proj.out": Site(f"{attention.module}.to_out.0"),
            "attn.out": attention,
            "norm2.out": Site(norm2),
            "ff.in": Site(ff.module, "in", axis=ff.axis),
            "ff.out": ff,
            "block.out": leave,
            **others,
        }
        self.outputs |= {attention: f"{attention.module}.to_out.0", ff: f"{ff.module}.{last}"}
        positions = {
            "SA_in": self._position(enter, enter),
            "SA_out": self._position(attention),
            **between,
            "FFN_in": self._position(stream, stream, leave),
            "FFN_out": self._position(ff),
            "Trans_out": self._position(leave, leave),
        }
        self.blocks.append(
            Block(
                module=name,
                kind="transformer",
                taps=taps,
                positions=positions,
                tokens=(enter, leave) if tokens else None,
                companions=companions if tokens else (),
            )
        )

    def _position(self, read: Site, *writes: Site) -> Position:
        return Position(read=read, writes=writes, size=self.width, form="tokens")

    def names(self, blocks: str) -> list[str]:
        """The module names of the blocks in the list of this name."""
        count = len(self.model.get_submodule(blocks)._modules)
        return [f"{blocks}.{index}" for index in range(count)]

    def host(
        self,
        *,
        taps: Mapping[str, Site],
        roles: Mapping[str, str],
        shared: str,
        beside: Mapping[str, Role] = MappingProxyType({}),
        **facts: Any,
    ) -> Host:
        """The host of the model: the blocks of the sheet, all else from the modules that it has.

        `taps` are those of the whole model, `roles` those of the linears by their name below a
        block. `shared` says why a created affine does not fold where the sheet knows no modulation
        of its own. `beside`: what is known of modules outside the blocks. `facts`: the family, and
        what it refuses.
        """
        known = {
            f"{block.module}.{leaf}": Role(name=roles.get(leaf, "other"), block=index)
            for index, block in enumerate(self.blocks)
            for leaf, _ in self.model.get_submodule(block.module).named_modules()
        }
        parts = read_modules(self.model, known | dict(beside))
        sizes, folds = parts.sizes, parts.folds
        for norm in parts.bare_norms:
            folds[norm] = self.modulations.get(norm.module) or Refused(shared)
        for site, linear in self.outputs.items():
            sizes[site] = self.width
            folds[site] = folds[replace(site, module=linear, index=None)]
        for block in self.blocks:
            sizes |= {block.taps[name]: self.width for name in ("block.in", "block.out")}
            for position in block.positions.values():
                sizes |= dict.fromkeys((position.read, *position.writes), position.size)
        parts.linears = list(with_rows(parts.linears, self.rows))
        final = taps["final.out"].module
        return parts.host(blocks=tuple(self.blocks), taps=taps, final=final, half=True, **facts)


def model_taps(patch: Site, time: str, norm: str) -> dict[str, Site]:
    """The taps of a whole model whose last layer is `proj_out`."""
    return {
        "patch.out": patch,
        "time.out": Site(time),
        "norm.out": Site(norm),
        "final.out": Site("proj_out"),
    }
