"""Train pSp encoders and StyleGAN2 generators in PyTorch."""
