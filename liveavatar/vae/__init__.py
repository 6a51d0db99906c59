"""The video VAE: images to latents, latents to frames as they come."""
