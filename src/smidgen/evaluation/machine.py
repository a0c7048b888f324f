"""Where numbers were measured, and with what: beside every record that others should believe."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from smidgen.evaluation.protocol import version_of

PACKAGES = ("smidgen", "torch", "diffusers", "numpy", "pillow")


def machine() -> dict[str, Any]:
    """Where the numbers were measured, and with what."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    devices = torch.cuda.device_count()
    accelerators = [torch.cuda.get_device_name(number) for number in range(devices)]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "accelerators": accelerators,
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in PACKAGES},
        },
    }
