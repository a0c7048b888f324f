"""A UNet of SD 1.x as the original code has it, around the layers of one of diffusers; and what
ComfyUI has around it, as far as a node sees that.

Modules and calls are those of the code that came out with latent diffusion (arXiv 2112.10752),
which ComfyUI runs: arguments have other names than in diffusers, and sums are made in place.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional


class ResBlock(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(own.norm1, nn.SiLU(), own.conv1)
        self.emb_layers = nn.Sequential(nn.SiLU(), own.time_emb_proj)
        self.out_layers = nn.Sequential(own.norm2, nn.SiLU(), nn.Dropout(0.0), own.conv2)
        self.skip_connection = own.conv_shortcut or nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = self.out_layers(h + self.emb_layers(emb)[..., None, None])
        return self.skip_connection(x) + h


class CrossAttention(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.heads = own.heads
        self.to_q, self.to_k, self.to_v = own.to_q, own.to_k, own.to_v
        self.to_out = nn.Sequential(own.to_out[0], nn.Dropout(0.0))

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None) -> Tensor:
        context = x if context is None else context
        parts = (self.to_q(x), self.to_k(context), self.to_v(context if value is None else value))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(found.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(own.attn1), CrossAttention(own.attn2)
        self.norm1, self.norm2, self.norm3 = own.norm1, own.norm2, own.norm3
        self.ff = own.ff  # in both codes net.0.proj and net.2

    def forward(self, x, context=None, transformer_options=None) -> Tensor:
        x = self.attn1(self.norm1(x), context=None, transformer_options={}) + x
        n = self.attn2(self.norm2(x), context=context, value=None, transformer_options={})
        x += n
        skip = x
        x = self.ff(self.norm3(x))
        x += skip
        return x


class SpatialTransformer(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = own.norm, own.proj_in, own.proj_out
        self.transformer_blocks = nn.ModuleList(map(TransformerBlock, own.transformer_blocks))

    def forward(self, x, context=None, transformer_options=None) -> Tensor:
        height, width = x.shape[2:]
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        for block in self.transformer_blocks:
            h = block(h, context=context, transformer_options=transformer_options)
        return self.proj_out(h.transpose(1, 2).unflatten(2, (height, width))) + x


class Downsample(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.op = own.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.conv = own.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Layers(nn.Sequential):
    """Called with what each layer wants."""

    def forward(self, x, emb, context) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, {})
            else:
                x = layer(x)
        return x


class OriginalUNet(nn.Module):
    """The network of `unet`, whose layers are copied."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        own = copy.deepcopy(unet)
        self.width = own.config.block_out_channels[0]
        embedding = own.time_embedding
        self.time_embed = nn.Sequential(embedding.linear_1, nn.SiLU(), embedding.linear_2)
        self.input_blocks = nn.ModuleList([Layers(own.conv_in)])
        for block in own.down_blocks:
            for layers in _layers(block):
                self.input_blocks.append(Layers(*layers))
            for sampler in block.downsamplers or ():
                self.input_blocks.append(Layers(Downsample(sampler)))
        middle = own.mid_block
        self.middle_block = Layers(
            ResBlock(middle.resnets[0]),
            SpatialTransformer(middle.attentions[0]),
            ResBlock(middle.resnets[1]),
        )
        self.output_blocks = nn.ModuleList()
        for block in own.up_blocks:
            every = [list(layers) for layers in _layers(block)]
            every[-1] += [Upsample(sampler) for sampler in block.upsamplers or ()]
            self.output_blocks.extend(Layers(*layers) for layers in every)
        self.out = nn.Sequential(own.conv_norm_out, nn.SiLU(), own.conv_out)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **_):
        told = get_timestep_embedding(timesteps, self.width, True, 0).to(x)
        emb, kept = self.time_embed(told), []
        for layers in self.input_blocks:
            x = layers(x, emb, context)
            kept.append(x)
        x = self.middle_block(x, emb, context)
        for layers in self.output_blocks:
            x = layers(torch.cat([x, kept.pop()], dim=1), emb, context)
        return self.out(x)


def _layers(block: Any) -> list[tuple[nn.Module, ...]]:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return [
        (ResBlock(resnet), *([] if attention is None else [SpatialTransformer(attention)]))
        for resnet, attention in zip(block.resnets, attentions, strict=True)
    ]


class Model:
    """ComfyUI's BaseModel around a network."""

    def __init__(self, network: nn.Module) -> None:
        self.diffusion_model = network

    def apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more
    ) -> Tensor:
        assert c_concat is None
        return self.diffusion_model(
            x, t, context=c_crossattn, control=control, transformer_options={}, **more
        )


class Patcher:
    """ComfyUI's ModelPatcher: clones share the model and have options of their own."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        other = Patcher(self.model)
        other.model_options = copy.copy(self.model_options)
        return other

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options["model_function_wrapper"] = wrapper

    def sampled(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """One call, as ComfyUI's samplers make it."""
        c = {"c_crossattn": text, "transformer_options": {}}
        if "model_function_wrapper" in self.model_options:
            told = {"input": x, "timestep": t, "c": c, "cond_or_uncond": [0]}
            return self.model_options["model_function_wrapper"](self.model.apply_model, told)
        return self.model.apply_model(x, t, **c)
