"""Training a StyleGAN2 generator, for users who have none (arXiv:1912.04958, arXiv:2006.06676)."""
