"""The video VAE: pictures to latents, latents to pictures as they come."""
