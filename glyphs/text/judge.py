"""Which pictograph a picture of the glyph world shows: the nearest name in a CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from glyphs.text.captions import PICTURE_STYLES, Caption

BATCH = 256


class Clip:
    """Unit embeddings (B, P) of pictures and of captions."""

    def __init__(self, folder: Path) -> None:
        self.model = CLIPModel.from_pretrained(folder).float().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def images(self, images: np.ndarray) -> Tensor:
        """Of images (B, 32, 32, 3) uint8."""
        found = []
        for first in range(0, len(images), BATCH):
            part = torch.from_numpy(images[first : first + BATCH]).permute(0, 3, 1, 2)
            pooled = self.model.vision_model(part.float() / 127.5 - 1).pooler_output
            found.append(self.model.visual_projection(pooled))
        return functional.normalize(torch.cat(found), dim=1)

    @torch.inference_mode()
    def captions(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        pooled = self.model.text_model(tokens).pooler_output
        return functional.normalize(self.model.text_projection(pooled), dim=1)

    def names(self, names: list[str]) -> Tensor:
        """The mean (K, P) of each name's captions in every style."""
        looks = [(), *((style,) for style in PICTURE_STYLES if style != "line")]
        captions = [
            str(Caption(noun=name, picture=True, look=look)) for look in looks for name in names
        ]
        every = self.captions(captions).reshape(len(looks), len(names), -1)
        return functional.normalize(every.mean(0), dim=1)

    def nearest(self, images: np.ndarray, names: list[str]) -> np.ndarray:
        """Places (B,) of the names nearest to pictures."""
        return (self.images(images) @ self.names(names).T).argmax(1).numpy()
