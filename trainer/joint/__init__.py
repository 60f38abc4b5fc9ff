"""Train a small generator and encoders of several tasks together, from nothing but photos.

The paper trains an encoder against a finished generator. Where there is none, and little to compute
with, all can learn at once: the encoders and the generator from the reconstruction (L2 and LPIPS with
the paper's weights, 1 and 0.8), then also from a discriminator (StyleGAN2, arXiv:1912.04958), which
asks for detail where the input leaves it open. Part of its pictures come from random latents, so that
the mapping network learns as well. This is how the demonstration models are made.
"""
