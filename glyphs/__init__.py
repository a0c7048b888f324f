"""The glyph world: renders free fonts and trains the small bases that ship with the package.

Run from the repository root, e.g. `python -m glyphs.render`; not part of the wheel.
"""
