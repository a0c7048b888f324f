"""What `import smidgen` offers: plain functions over everything below.

training.py trains, planning.py says what a training would do, sampling.py draws images,
evaluation.py measures, explaining.py shows what was learned, distilling.py makes reliefs,
statistics.py analyses tables of measurements, library.py judges deltas before they are served and
finds orphans, weights.py counts, folding.py folds and converts, hub.py pushes and pulls,
verification.py verifies bases; bases and deltas come from models and core.
"""

from smidgen.api.distilling import sds
from smidgen.api.evaluation import evaluate
from smidgen.api.explaining import explain
from smidgen.api.folding import (
    export_embeddings,
    export_lora,
    fold,
    import_embeddings,
    import_lora,
)
from smidgen.api.hub import pull, push
from smidgen.api.library import gate, orphans
from smidgen.api.sampling import sample, sample_arrays
from smidgen.api.statistics import anova
from smidgen.api.training import train
from smidgen.api.verification import verify
from smidgen.api.weights import inspect
from smidgen.core.delta import Delta
from smidgen.evaluation.compare import compare
from smidgen.models.pretrained import load_base
from smidgen.sampling.config import SamplingConfig

__all__ = [
    "Delta",
    "SamplingConfig",
    "anova",
    "compare",
    "evaluate",
    "explain",
    "export_embeddings",
    "export_lora",
    "fold",
    "gate",
    "import_embeddings",
    "import_lora",
    "inspect",
    "load_base",
    "orphans",
    "pull",
    "push",
    "sample",
    "sample_arrays",
    "sds",
    "train",
    "verify",
]
