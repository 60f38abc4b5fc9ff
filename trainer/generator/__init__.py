"""Train a StyleGAN2 generator."""
