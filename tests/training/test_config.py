import math

import pytest

from smidgen.errors import UsageError
from smidgen.training.config import TrainingConfig

NONSENSE = {
    "steps": (0, -1, 1.5, True, "10"),
    "batch_size": (0, -8),
    "num_threads": (0, 1025, 999_999),
    "lr": (-1e-3, math.nan, math.inf, "1e-3", True),
    "max_grad_norm": (0, -1.0, math.nan),
    "ema_decay": (-0.1, 1.1, math.nan),
    "label_dropout": (-0.1, 1.5),
    "validation_share": (1.0, -0.1),
    "seed": (-1, 0.5),
    "precision": ("fp64",),
    "lr_schedule": ("linear",),
    "compile": (1, "yes"),
    "trackers": ("tensorboard", (1,)),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in NONSENSE.items() for v in vs])
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=f"^{name} is "):
        TrainingConfig(**{name: value})


def test_none_means_a_default_where_it_is_allowed():
    names = ("lr", "max_grad_norm", "ema_decay", "validate_every", "min_snr", "num_threads")
    config = TrainingConfig(**dict.fromkeys(names))
    assert all(getattr(config, name) is None for name in names)


def test_a_list_of_trackers_is_taken():
    assert TrainingConfig(trackers=["tensorboard"]) == TrainingConfig()
