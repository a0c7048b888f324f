"""The small network that judges glyph samples: its features give distances, its heads the classes.

B images, 3 x 32 x 32; 128 features; one head for each script on a shared trunk. Training it is no
part of the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from smidgen.errors import SmidgenError

NUM_FEATURES = 128
IMAGE_SIZE = 32
FORMAT = "smidgen-glyph-classifier"


def convolution(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class GlyphClassifier(nn.Module):
    """Features and class scores of 32 x 32 glyphs; `scripts` maps a script to its class names.

    Call `eval()` before judging: the normalisation then uses the statistics of training.
    """

    def __init__(self, scripts: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.scripts = {script: tuple(names) for script, names in scripts.items()}
        self.trunk = nn.Sequential(
            convolution(3, 32, 1),
            convolution(32, 64, 2),
            convolution(64, 64, 1),
            convolution(64, 128, 2),
            convolution(128, 128, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, NUM_FEATURES),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict(
            {script: nn.Linear(NUM_FEATURES, len(names)) for script, names in self.scripts.items()}
        )

    def features(self, images: Float[Tensor, "B 3 32 32"]) -> Float[Tensor, "B 128"]:
        """The trunk's last layer, not negative; images in [-1, 1]."""
        return self.trunk(images)

    def logits(self, images: Float[Tensor, "B 3 32 32"], script: str) -> Float[Tensor, "B K"]:
        """Class scores of one script, in the order of `scripts[script]`; images in [-1, 1].

        Raises: SmidgenError if the classifier does not know the script.
        """
        if script not in self.scripts:
            known = ", ".join(self.scripts)
            raise SmidgenError(f'the glyph classifier knows no script "{script}"; it has: {known}')
        return self.heads[script](self.features(images))

    def find_script(self, class_names: Sequence[str]) -> str | None:
        """The script whose classes include all these names; None if there is none."""
        for script, names in self.scripts.items():
            if class_names and set(class_names) <= set(names):
                return script
        return None

    def save(self, path: Path) -> None:
        """Writes float16 safetensors with the scripts' class names in the header."""
        tensors = {
            key: value.half().contiguous() if value.is_floating_point() else value
            for key, value in self.state_dict().items()
        }
        metadata = {"format": FORMAT, "scripts": json.dumps(self.scripts)}
        save_file(tensors, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> GlyphClassifier:
        """Reads what `save` wrote, as float32 on the CPU and in evaluation mode.

        Raises: SmidgenError if the file is missing, damaged or of another format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise SmidgenError(f"cannot read the glyph classifier {path}: {error}") from error
        if metadata.get("format") != FORMAT:
            raise SmidgenError(f"{path} is no glyph classifier: its header lacks {FORMAT}")
        model = cls(json.loads(metadata["scripts"]))
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        )
        return model.eval().requires_grad_(False)
