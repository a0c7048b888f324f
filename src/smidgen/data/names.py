"""The names of layouts, which the command line knows before torch loads: the keys of LAYOUTS."""

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
