"""Every family's `predict` and `encode` against the stock pipeline: its calls are recorded, and the
prediction for the same latents and prompts has to be what the pipeline's network returned.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
)

from smidgen.errors import SmidgenError
from smidgen.hosts.host import find_family
from smidgen.sizes import ImageSize
from tests.tiny.networks import SD_3_5, network

HEIGHT, WIDTH = 4, 6  # of the latents: two sizes, so that rows and columns cannot be mixed up
PIXELS = 8  # per latent, without a codec in the pipeline
PROMPTS = ["an ant", "a big bee"]
SAME: dict[str, Any] = {
    "atol": 2e-5,
    "rtol": 2e-5,
}  # float32; sigma and sigma * 1000 / 1000 differ in the last bit


def words(size: int, length: int = 5, name: str = "text") -> Callable[..., torch.Tensor]:
    """A text encoder's stand-in: random numbers that depend on the prompt."""

    def encode(prompts):
        rows = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            generator = torch.Generator().manual_seed(sum(f"{name} {prompt}".encode()))
            rows.append(torch.randn(length, size, generator=generator))
        return torch.stack(rows)

    return encode


def lengths(prompts, length: int = 5) -> torch.Tensor:
    """A mask that keeps as many tokens as the prompt has words."""
    return torch.stack([(torch.arange(length) < len(prompt.split())).long() for prompt in prompts])


class Tokenizer:
    """The stand-in of a T5 tokenizer: a number for each prompt, repeated."""

    def __call__(self, text, **options):
        ids = torch.tensor([[sum(prompt.encode())] * 5 for prompt in text])
        return SimpleNamespace(input_ids=ids, attention_mask=lengths(text))


class TextEncoder(torch.nn.Module):
    """The stand-in of a T5."""

    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, ids, attention_mask=None):
        return (words(10)([str(row[0].item()) for row in ids]),)


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a stock pipeline is built around a transformer, and in which form its latents are."""

    family: str
    pipeline: type
    config: dict[str, Any] = field(default_factory=dict)
    components: tuple[str, ...] = ("text_encoder", "tokenizer", "vae")
    fakes: dict[str, type] = field(default_factory=dict)
    stubs: dict[str, Callable] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    dynamic: bool = False
    to_image: Callable = lambda tokens: tokens
    pixels: int = PIXELS


def unpacked(tokens):
    """By the pipeline's own function; the last axes are rows and columns."""
    pixels = HEIGHT * PIXELS, WIDTH * PIXELS
    return FluxPipeline._unpack_latents(tokens, *pixels, PIXELS)


def placed(tokens):
    """Flux.2: every token at the row and column that its ids say."""
    ids = Flux2Pipeline._prepare_latent_ids(torch.empty(len(tokens), 1, HEIGHT, WIDTH))
    return Flux2Pipeline._unpack_latents_with_ids(tokens, ids)


SD3_STUBS = {
    "_get_clip_prompt_embeds": lambda prompt, clip_model_index=0, **_: (
        words(4, 3, f"clip {clip_model_index}")(prompt),
        words((2, 3)[clip_model_index], 1, f"pooled {clip_model_index}")(prompt)[:, 0],
    ),
    "_get_t5_prompt_embeds": lambda prompt, **_: words(6, name="t5")(prompt),
}
SD3_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3")
FLUX_STUBS = {
    "_get_clip_prompt_embeds": lambda prompt, **_: words(5, 1, "pooled")(prompt)[:, 0],
    "_get_t5_prompt_embeds": lambda prompt, **_: words(6)(prompt),
}
FLUX_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae")
SD3 = {
    "pipeline": StableDiffusion3Pipeline,
    "components": (*SD3_PARTS, "tokenizer_3", "vae"),
    "stubs": SD3_STUBS,
    "call": {"guidance_scale": 1.0},
}
T5 = {"tokenizer": Tokenizer, "text_encoder": TextEncoder}
BINNED = {"use_resolution_binning": False, "guidance_scale": 1.0}
SANA_STUB = {
    "_get_gemma_prompt_embeds": lambda prompt, complex_human_instruction, **_: (
        words(6, 300, f"gemma {bool(complex_human_instruction)}")(prompt),
        lengths([f"{prompt}" for prompt in prompt], 300),
    )
}
CASES = {
    "pixart-alpha": Case(
        family="pixart",
        pipeline=PixArtAlphaPipeline,
        config={"sample_size": 128},
        fakes=T5,
        call=BINNED | {"clean_caption": False},
    ),
    "pixart-sigma": Case(
        family="pixart",
        pipeline=PixArtSigmaPipeline,
        config={"use_additional_conditions": False},
        fakes=T5,
        call=BINNED | {"clean_caption": False},
    ),
    "sd3": Case(family="sd3", **SD3),
    "sd3.5": Case(family="sd3", config=SD_3_5, **SD3),
    "flux-dev": Case(
        family="flux",
        pipeline=FluxPipeline,
        components=FLUX_PARTS,
        stubs=FLUX_STUBS,
        call={"guidance_scale": 2.5},
        dynamic=True,
        to_image=unpacked,
    ),
    "flux-schnell": Case(
        family="flux",
        pipeline=FluxPipeline,
        config={"guidance_embeds": False},
        components=FLUX_PARTS,
        stubs=FLUX_STUBS,
        to_image=unpacked,
    ),
    "sana": Case(
        family="sana",
        pipeline=SanaPipeline,
        config={"timestep_scale": 0.7},
        stubs=SANA_STUB,
        pixels=32,
        call=BINNED,
    ),
    "flux2": Case(
        family="flux2",
        pipeline=Flux2Pipeline,
        stubs={"_get_mistral_3_small_prompt_embeds": lambda prompt, **_: words(6)(prompt)},
        call={"guidance_scale": 2.5},
        dynamic=True,
        to_image=placed,
        pixels=2 * PIXELS,  # squares of 2 x 2 latents are one with 4 times the channels
    ),
    "qwen-image": Case(
        family="qwen_image",
        pipeline=QwenImagePipeline,
        stubs={"_get_qwen_prompt_embeds": lambda prompt, *_: (words(6)(prompt), lengths(prompt))},
        call={"true_cfg_scale": 1.0},
        dynamic=True,
        to_image=unpacked,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def recorded(request):
    """A run of the stock pipeline over three steps, as a list of its network's calls."""
    return record(CASES[request.param])


def record(case: Case) -> SimpleNamespace:
    transformer = network(case.family, **case.config)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    if case.family != "pixart":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=case.dynamic)
    components = dict.fromkeys(case.components) | {key: make() for key, make in case.fakes.items()}
    pipe: Any = case.pipeline(transformer=transformer, scheduler=scheduler, **components)
    for name, stub in case.stubs.items():
        setattr(pipe, name, stub)
    pipe.set_progress_bar_config(disable=True)
    calls: list[SimpleNamespace] = []

    def before(module, arguments, named):
        x = named["hidden_states"] if "hidden_states" in named else arguments[0]
        calls.append(SimpleNamespace(x=case.to_image(x).clone()))

    def after(module, arguments, output):
        calls[-1].output = case.to_image(output[0]).clone()

    transformer.register_forward_pre_hook(before, with_kwargs=True)
    transformer.register_forward_hook(after)
    final = pipe(
        prompt=PROMPTS,
        height=HEIGHT * case.pixels,
        width=WIDTH * case.pixels,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        return_dict=False,
        **case.call,
    )[0]
    assert len(calls) == 3
    family = find_family(transformer)
    assert family.encode is not None
    condition = dict(family.encode(pipe, PROMPTS, ImageSize.of(HEIGHT * case.pixels)))
    if "guidance_scale" in case.call:
        condition["guidance"] = torch.full((len(PROMPTS),), case.call["guidance_scale"])
    return SimpleNamespace(
        case=case,
        family=family,
        network=transformer,
        scheduler=scheduler,
        steps=calls[:],
        final=case.to_image(final),
        condition=condition,
    )


def times(recorded) -> torch.Tensor:
    """What `predict` takes as t at each step: the scheduler's own timesteps or sigmas."""
    if recorded.family.parameterisation == "flow":
        return recorded.scheduler.sigmas[:-1]
    return recorded.scheduler.timesteps


def test_the_prediction_is_what_the_pipelines_network_returned(recorded):
    for step, t in zip(recorded.steps, times(recorded), strict=True):
        output = recorded.family.predict(
            recorded.network, step.x, t.expand(len(PROMPTS)), recorded.condition
        )
        torch.testing.assert_close(output, step.output, **SAME)


def test_another_time_another_order_of_prompts_or_a_mirrored_latent_is_another_prediction(recorded):
    step, t = recorded.steps[1], times(recorded)[1].expand(len(PROMPTS))
    predict, network, condition = recorded.family.predict, recorded.network, recorded.condition
    swapped = {key: value.flip(0) for key, value in condition.items()}
    later = (t * 0.5).to(t.dtype)
    mirrored = predict(network, step.x.transpose(2, 3), t, condition).transpose(2, 3)
    for other in (
        predict(network, step.x, later, condition),
        predict(network, step.x, t, swapped),
        mirrored,
    ):
        assert (other - step.output).abs().max() > 1e-3


def test_the_pipelines_step_is_that_of_the_parameterisation(recorded):
    """Euler's step along noise - x_0, or DDIM's with epsilon, leads to the pipeline's latents."""
    latents = [step.x for step in recorded.steps] + [recorded.final]
    for index, t in enumerate(times(recorded)):
        x_t, channels = latents[index], latents[index].shape[1]
        output = recorded.family.predict(
            recorded.network, x_t, t.expand(len(PROMPTS)), recorded.condition
        )[:, :channels]
        if recorded.family.parameterisation == "flow":
            following = x_t + (recorded.scheduler.sigmas[index + 1] - t) * output
        else:
            following = ddim(recorded.scheduler, x_t, output, index)
        torch.testing.assert_close(latents[index + 1], following, atol=1e-4, rtol=1e-4)


def ddim(scheduler, x_t, epsilon, index):
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0."""
    t = scheduler.timesteps[index]
    before = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = scheduler.alphas_cumprod[t]
    alpha_before = scheduler.alphas_cumprod[max(before, 0)]
    x_0 = (x_t - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
    return alpha_before.sqrt() * x_0 + (1 - alpha_before).sqrt() * epsilon


def test_what_a_condition_lacks_is_named(recorded):
    step, t = recorded.steps[0], times(recorded)[0].expand(len(PROMPTS))
    with pytest.raises(SmidgenError, match=r'needs "text" in the condition, which has: labels'):
        recorded.family.predict(recorded.network, step.x, t, {"labels": torch.zeros(2)})
