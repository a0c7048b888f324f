"""A relief that a base, with or without a delta, takes for what it knows: score distillation."""
