"""A CLIP that needs no weights: the colours of images, the letters of texts."""

import dataclasses

import torch

from .conftest import colour_extractor


def read_texts(texts):
    """Unit vectors made of the letters of each text."""
    rows = [[text.count(letter) for letter in "aeiotn"] for text in texts]
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def clip(device, *, name="clip-b32", **_):
    return dataclasses.replace(
        colour_extractor(), name=name, heads={}, text=read_texts, domain=None
    )


def seen(images):
    extractor = clip("cpu")
    stack = torch.stack([extractor.prepare(image) for image in images])
    return extractor.read(stack)[0].double().numpy()
