"""The names of layouts, the keys of LAYOUTS, of the places of captions and of what latents are kept
in: the command line knows them before torch loads.
"""

from typing import Literal

LayoutName = Literal[
    "folder",
    "food-101",
    "sun397",
    "df20m",
    "caltech-101",
    "cub-200-2011",
    "artbench-10",
    "flowers-102",
    "stanford-cars",
    "imagenet",
    "webdataset",
    "hf",
]

CaptionSource = Literal["auto", "txt", "jsonl", "filename", "none"]

CachePrecision = Literal["fp32", "fp16"]
