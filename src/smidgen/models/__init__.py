"""What is loaded, never what is trained: the Diffusion Transformer, its files, pretrained bases."""
