"""The transformer blocks of diffusers written out from their parts, with every point of their data
flow in the open: `point(name, value)` sees the value there and says what goes on instead.

x is the image's stream, y the text's, m what modulates.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Point = Callable[[str, Tensor], Tensor]


def modulated(norm, x, shift, scale):
    return norm(x) * (1 + scale) + shift


def chunks(tensor, number):
    """(B, number * D) -> `number` tensors (B, 1, D)."""
    return tensor[:, None].chunk(number, dim=2)


def cross(block: Any, point: Point, x, text, mask, m, feed_forward) -> Tensor:
    """PixArt and Sana: one table of shifts, scales and gates, no norm before cross-attention."""
    shift, scale, gate, shift2, scale2, gate2 = (
        block.scale_shift_table[None] + m.reshape(len(x), 6, -1)
    ).chunk(6, dim=1)
    x = point("SA_in", x)
    x = x + gate * point("SA_out", block.attn1(modulated(block.norm1, x, shift, scale)))
    x, text = point("CA_in", x), point("CA_c", text)
    attended = block.attn2(x, encoder_hidden_states=text, attention_mask=mask)
    x = point("FFN_in", x + point("CA_out", attended))
    x = x + gate2 * point("FFN_out", feed_forward(modulated(block.norm2, x, shift2, scale2)))
    return point("Trans_out", x)


def pixart(block: Any, point: Point, x, *, encoder_hidden_states, encoder_attention_mask, **named):
    return cross(
        block, point, x, encoder_hidden_states, encoder_attention_mask, named["timestep"], block.ff
    )


def sana(block: Any, point: Point, x, _, text, mask, m, height, width):
    def feed_forward(tokens):
        image = tokens.transpose(1, 2).unflatten(2, (height, width))
        return block.ff(image).flatten(2).transpose(1, 2)

    return cross(block, point, x, text, mask, m, feed_forward)


def joint(point: Point, x, y, first, second, attention, norm2, ff) -> Tensor:
    """Two streams: `first` and `second` modulate the image's, `y` is the text's normed stream."""
    (norm1, shift, scale, gate), (shift2, scale2, gate2) = first, second
    x = point("SA_in", x)
    image, _ = attention(modulated(norm1, x, shift, scale), y)
    x = point("FFN_in", x + gate * point("SA_out", image))
    x = x + gate2 * point("FFN_out", ff(modulated(norm2, x, shift2, scale2)))
    return point("Trans_out", x)


def flux(block: Any, point: Point, *, hidden_states, encoder_hidden_states, temb, **named):
    """SD3's blocks without a second attention as well: they have no rotary embedding."""
    norm1 = block.norm1
    shift, scale, gate, shift2, scale2, gate2 = chunks(norm1.linear(norm1.silu(temb)), 6)
    rotary = {key: named[key] for key in ("image_rotary_emb",) if key in named}
    return joint(
        point,
        hidden_states,
        normed_text(block.norm1_context, encoder_hidden_states, temb),
        (norm1.norm, shift, scale, gate),
        (shift2, scale2, gate2),
        lambda x, y: block.attn(hidden_states=x, encoder_hidden_states=y, **rotary),
        block.norm2,
        block.ff,
    )


def normed_text(norm: Any, y, temb):
    """The last SD3 block's modulation has two chunks, the scale first."""
    first, second, *gates = chunks(
        norm.linear(norm.silu(temb)), norm.linear.out_features // y.shape[2]
    )
    shift, scale = (first, second) if gates else (second, first)
    return modulated(norm.norm, y, shift, scale)


def sd3_dual(block: Any, point: Point, *, hidden_states, encoder_hidden_states, temb, **_):
    """SD 3.5: a second attention reads the same norm with its own shift and scale."""
    norm1 = block.norm1
    shift, scale, gate, shift2, scale2, gate2, shift3, scale3, gate3 = chunks(
        norm1.linear(norm1.silu(temb)), 9
    )
    text = normed_text(block.norm1_context, encoder_hidden_states, temb)
    x = point("SA_in", hidden_states)
    image, _ = block.attn(modulated(norm1.norm, x, shift, scale), text)
    alone = block.attn2(modulated(norm1.norm, x, shift3, scale3))
    x = point("FFN_in", x + gate * point("SA_out", image) + gate3 * alone)
    x = x + gate2 * point("FFN_out", block.ff(modulated(block.norm2, x, shift2, scale2)))
    return point("Trans_out", x)


def flux2(block: Any, point: Point, *, hidden_states, encoder_hidden_states, **named):
    shift, scale, gate, shift2, scale2, gate2 = chunks(named["temb_mod_img"], 6)
    c_shift, c_scale = chunks(named["temb_mod_txt"], 6)[:2]
    return joint(
        point,
        hidden_states,
        modulated(block.norm1_context, encoder_hidden_states, c_shift, c_scale),
        (block.norm1, shift, scale, gate),
        (shift2, scale2, gate2),
        lambda x, y: block.attn(x, y, image_rotary_emb=named["image_rotary_emb"]),
        block.norm2,
        block.ff,
    )


def qwen_image(block: Any, point: Point, *, hidden_states, encoder_hidden_states, temb, **named):
    shift, scale, gate, shift2, scale2, gate2 = chunks(block.img_mod(temb), 6)
    c_shift, c_scale = chunks(block.txt_mod(temb), 6)[:2]
    options = {key: named[key] for key in ("encoder_hidden_states_mask", "image_rotary_emb")}
    return joint(
        point,
        hidden_states,
        modulated(block.txt_norm1, encoder_hidden_states, c_shift, c_scale),
        (block.img_norm1, shift, scale, gate),
        (shift2, scale2, gate2),
        lambda x, y: block.attn(x, y, **options),
        block.img_norm2,
        block.img_mlp,
    )


def flux_single(block: Any, point: Point, *, hidden_states, encoder_hidden_states, temb, **named):
    """Attention and feed-forward side by side on text and image; the image's part is the output."""
    both = torch.cat([encoder_hidden_states, point("SA_in", hidden_states)], dim=1)
    shift, scale, gate = chunks(block.norm.linear(block.norm.silu(temb)), 3)
    normed = modulated(block.norm.norm, both, shift, scale)
    attended = block.attn(normed, image_rotary_emb=named["image_rotary_emb"])
    hidden = block.act_mlp(block.proj_mlp(normed))
    both = both + gate * block.proj_out(torch.cat([attended, hidden], dim=2))
    return point("Trans_out", both[:, encoder_hidden_states.shape[1] :])


def flux2_single(block: Any, point: Point, *, hidden_states, temb_mod, **named):
    """Text and image are one stream already."""
    x = point("SA_in", hidden_states)
    shift, scale, gate = chunks(temb_mod, 3)
    normed = modulated(block.norm, x, shift, scale)
    return point(
        "Trans_out", x + gate * block.attn(normed, image_rotary_emb=named["image_rotary_emb"])
    )
