"""Makes `glyphs-text` and `clip-glyphs`: letters and named pictographs with captions, the base that
reads them, and the CLIP that judges it.
"""
