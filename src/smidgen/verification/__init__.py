"""Whether a base with its released weights is what was published."""
