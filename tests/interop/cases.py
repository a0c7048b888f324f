"""A tiny pipeline of each family with a delta, and the images that stock diffusers draws of it."""

import copy

import diffusers
import torch

from smidgen.hosts.host import find_host
from smidgen.interop.pipeline_folder import open_pipeline
from tests.interop import pipelines
from tests.interop.deltas import foldable

SD3 = diffusers.StableDiffusion3Pipeline
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
WITHOUT_TEXT = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))


def prompt():
    return {"prompt": "a red cat", "negative_prompt": "a cat"}


def embeddings():
    generator = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(1, 6, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
    }


# how the folder is made, the class that reads it, what it must be told, how it is called
CASES = {
    "sd": (pipelines.stable_diffusion, diffusers.StableDiffusionPipeline, {}, prompt),
    "sdxl": (pipelines.stable_diffusion_xl, diffusers.StableDiffusionXLPipeline, {}, prompt),
    "sd3": (pipelines.stable_diffusion_3, SD3, WITHOUT_T5, prompt),
    "flux": (pipelines.flux, diffusers.FluxPipeline, WITHOUT_TEXT, embeddings),
}


class Case:
    """A pipeline folder with a delta, and the images of both with the delta attached. Tests share
    it: they leave the folder and the pipeline as they find them, or take a copy.
    """

    def __init__(self, family, root):
        make, self.kind, self.absent, self.call = CASES[family]
        self.folder = make(root)
        self.pipeline = self.load(self.folder)
        self.denoiser = getattr(self.pipeline, open_pipeline(self.folder).denoiser)
        self.host = find_host(self.denoiser)
        self.delta = foldable(self.denoiser)
        self.stock = self.draw(self.pipeline)
        with self.delta.attach(self.denoiser):
            self.expected = self.draw(self.pipeline)
        assert (self.expected - self.stock).abs().max() > 0.02, "the delta must show"

    def load(self, folder, **parts):
        return pipelines.quiet(self.kind.from_pretrained(folder, **self.absent, **parts))

    def fresh(self):
        """A pipeline of its own, for tests that change it."""
        return copy.deepcopy(self.pipeline)

    def draw(self, pipeline):
        return pipeline(
            height=16,
            width=16,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **self.call(),
        ).images
