"""An encoder and a generator that belong together."""

from torch import Tensor, nn

from trainer.networks.encoders import Encoder
from trainer.networks.generator import Generator, Noise


class Translation(nn.Module):
    """The pSp model: ``generator(encoder(image) + latent_avg)`` (equation 1 of arXiv:2008.00951).

    Args:
        encoder: Picture to code.
        generator: Code to picture.
        latent_avg: Added to every code: [L, D], [1, D], [D], or None for a model trained without it.
    """

    latent_avg: Tensor | None

    def __init__(self, encoder: Encoder, generator: Generator, latent_avg: Tensor | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator
        self.register_buffer("latent_avg", latent_avg)

    def encode(self, images: Tensor) -> Tensor:
        """Return codes [N, L, D] of network inputs [N, C, H, W]."""
        codes: Tensor = self.encoder(images)
        return codes if self.latent_avg is None else codes + self.latent_avg

    def forward(self, images: Tensor, *, noise: Noise = "const") -> Tensor:
        """Translate network inputs [N, C, H, W] into pictures [N, 3, S, S]."""
        pictures: Tensor = self.generator(self.encode(images), noise=noise)
        return pictures
