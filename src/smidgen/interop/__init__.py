"""Other people's file formats: LoRA files of PEFT, diffusers and kohya, single-file checkpoints.

Weights are renamed as plain state dicts; nothing here imports diffusers. What a format cannot hold
is refused, with the reason.
"""
