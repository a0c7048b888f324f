"""A tiny pipeline of each family with a delta, and the images that stock diffusers draws of it."""

import copy
import logging

import torch

from smidgen.hosts.host import find_host
from smidgen.interop.pipeline_folder import open_pipeline
from tests.tiny.deltas import foldable
from tests.tiny.pipelines import TINY_PIPELINES

CASES = ("sd", "sdxl", "sd3", "flux")


class Case:
    """A pipeline folder with a delta, and the images of both with the delta attached. Tests share
    it: they leave the folder and the pipeline as they find them, or take a copy.
    """

    def __init__(self, family, root):
        for name in ("diffusers", "transformers"):  # their notices are no part of what is tested
            logging.getLogger(name).setLevel(logging.ERROR)
        self.tiny = TINY_PIPELINES[family]
        self.folder = self.tiny.save(root / "pipeline")
        self.pipeline = self.tiny.load(self.folder)
        self.denoiser = getattr(self.pipeline, open_pipeline(self.folder).denoiser)
        self.host = find_host(self.denoiser)
        self.delta = foldable(self.denoiser)
        self.stock = self.draw(self.pipeline)
        with self.delta.attach(self.denoiser):
            self.expected = self.draw(self.pipeline)
        assert (self.expected - self.stock).abs().max() > 0.02, "the delta must show"

    def fresh(self):
        """A pipeline of its own, for tests that change it."""
        return copy.deepcopy(self.pipeline)

    def draw(self, pipeline):
        return pipeline(
            "a red cat",
            height=16,
            width=16,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
