"""Image folders and published data sets, their checks and transforms, and the cache of latents.

Start with layouts.open_images, encoded_folder.encode_folder and split.hold_out.
"""
