"""Example inputs of foreign networks: they run, and the memory of a step is counted with them."""

import pytest
import torch

from smidgen.hosts import pixart, unet
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.calling import calling
from smidgen.models.labels import Labels
from smidgen.models.pretrained import load_base
from smidgen.training.config import TrainingConfig
from smidgen.training.example import example_of
from smidgen.training.memory import estimate_memory, step_bytes
from smidgen.training.objective import Batch, Task, batch_loss
from smidgen.training.peak import Peak, copies_of_a_cpu
from tests.tiny.pipelines import TINY_PIPELINES


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_the_estimate_counts_what_a_real_step_on_prompts_allocates(tmp_path, kind):
    base = load_base(TINY_PIPELINES[kind].save(tmp_path / "pipeline"))
    delta = build_delta("lora", base, configure("lora"), (), torch.Generator().manual_seed(0))
    config = TrainingConfig(batch_size=4)
    found = base.conditioner.encode(["a"])
    example = example_of(base.denoiser, base)
    assert example.latent_shape == base.latent_shape
    assert set(example.condition) == set(found)
    for name, shape in example.condition.items():
        assert shape[-1] == found[name].shape[-1]
    task = Task(
        process=base.process,
        labels=Labels(
            names=(),
            conditions=lambda labels: {k: v.expand(4, *v.shape[1:]) for k, v in found.items()},
        ),
    )
    labels = torch.zeros(4, dtype=torch.long)
    batch = Batch(
        images=labels,
        latents=torch.randn(4, *base.latent_shape),
        noise=torch.randn(4, *base.latent_shape),
        timesteps=task.process.times(torch.full((4,), 0.5, dtype=torch.float64)),
        labels=labels,
    )
    with (
        delta.attach(base),
        Peak(base.denoiser, delta, own_copies=copies_of_a_cpu) as peak,
    ):
        network = calling(base.family, base.denoiser)
        batch_loss(network, batch, task, config, torch.float32).mean().backward()
    counted = step_bytes(base.denoiser, delta, config, example)
    # the example has as many tokens as the released pipelines: 77, or 333 instead of 77 + 256
    assert counted == pytest.approx(peak.highest, rel=0.15)
    assert estimate_memory(base.denoiser, delta, config, example).total > counted
    assert not any(module._forward_hooks for module in base.denoiser.modules())


def test_the_shapes_of_sdxl_and_pixart_come_from_their_configurations():
    sdxl = {
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    assert unet.FAMILY.condition_shapes(sdxl) == {
        "text": (77, 2048),
        "pooled": (1280,),
        "time_ids": (6,),
    }
    config = {"cross_attention_dim": 1152, "caption_channels": 4096}
    assert pixart.FAMILY.condition_shapes(config) == {"text": (300, 4096)}
