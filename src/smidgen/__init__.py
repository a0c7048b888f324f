"""smidgen fine-tunes a pretrained diffusion model by a smidgen of its parameters."""
