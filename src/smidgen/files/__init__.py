"""Files: how they are written whole, read within limits and checked, and settings as TOML.

The ground floor: nothing here knows a model, and nothing imports torch.
"""
