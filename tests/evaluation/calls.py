"""Evaluations as tests ask for them: settings as keywords, on the CPU."""

from pathlib import Path

from smidgen.evaluation import plan, run
from smidgen.evaluation.config import EvaluationConfig
from smidgen.files.settings import make

OF_BATCHES = ("sampling", "name", "classes", "num_images", "progress")


def config_of(settings):
    return make(EvaluationConfig, {"device": "cpu", **settings})


def evaluate(images, reference, *, progress=None, **settings):
    return run.evaluate(Path(images), reference, config_of(settings), progress)


def measure_batches(batches, reference, **settings):
    more = {name: settings.pop(name) for name in OF_BATCHES if name in settings}
    return run.measure_batches(batches, reference, config_of(settings), **more)


def make_plan(features, metrics=None, **settings):
    return plan.make_plan(config_of({"features": features, "metrics": metrics, **settings}), "cpu")
