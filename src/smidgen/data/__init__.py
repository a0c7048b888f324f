"""Image folders, their checks and transforms, and the cache of their latents.

Start with folder.scan, cache.LatentCache.build and split.hold_out.
"""
