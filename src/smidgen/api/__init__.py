"""What `import smidgen` offers: plain functions over everything below.

training.py trains, sampling.py draws images, evaluation.py measures, weights.py counts and folds;
bases and deltas come from models and core.
"""

from smidgen.api.evaluation import SamplingConfig, evaluate
from smidgen.api.sampling import sample, sample_arrays
from smidgen.api.training import train
from smidgen.api.weights import fold, inspect
from smidgen.core.delta import Delta
from smidgen.evaluation.compare import compare
from smidgen.models.pretrained import load_base

__all__ = [
    "Delta",
    "SamplingConfig",
    "compare",
    "evaluate",
    "fold",
    "inspect",
    "load_base",
    "sample",
    "sample_arrays",
    "train",
]
