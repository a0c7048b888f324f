"""Training a delta: the visible loop, its state on disk, and what it costs in memory.

Start with run.fine_tune (a folder of images -> a delta) or loop.train_delta (latents -> a delta).
"""
