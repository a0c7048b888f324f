"""Shapes annotated in the source are enforced while the tests run."""

from jaxtyping import install_import_hook

CHECKED = ("core", "diffusion", "models", "evaluation.metrics")

install_import_hook([f"smidgen.{name}" for name in CHECKED], "beartype.beartype")
