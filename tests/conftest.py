"""Shapes annotated in the source are enforced while the tests run."""

from jaxtyping import install_import_hook

METRICS = ("metrics", "kernels", "neighbours", "similarity")
CHECKED = ("core", "diffusion", "models", *(f"evaluation.{name}" for name in METRICS))

install_import_hook([f"smidgen.{name}" for name in CHECKED], "beartype.beartype")
