"""Shapes annotated in the source are enforced while the tests run."""

from jaxtyping import install_import_hook

CORE = ("arithmetic", "bank", "bodies", "bypass", "edit", "edits", "fingerprint", "fold", "mixed")
METRICS = ("metrics", "kernels", "neighbours", "similarity")
CHECKED = (
    *(f"core.{name}" for name in (*CORE, "tokens")),  # those with shapes: checking hooks is slow
    *("diffusion", "models"),
    *(f"evaluation.{name}" for name in METRICS),
)

install_import_hook([f"smidgen.{name}" for name in CHECKED], "beartype.beartype")
