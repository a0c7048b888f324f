"""The heart of smidgen: sites, edits, deltas, folding. Knows PyTorch and no model family.

A `Site` is one end of one module of a frozen base, an `Edit` acts at one or two sites, a `Delta` is
all edits of one fine-tune: attached with hooks, saved as one file, folded into a state dict.
"""
