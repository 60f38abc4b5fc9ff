"""One training step: the discriminator learns, then the generator.

Random numbers are seeded from the progress, not from what ran before, so a resumed run continues
exactly as if it had never stopped, and two processes use the numbers that one would use in two passes.

The losses are those of StyleGAN2 (arXiv:1912.04958, section 3.2 and appendix B). The two regularizations
differentiate a gradient once more, so they are computed in full precision and only every few steps; they
are multiplied by that interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.photos import PhotoSet
from trainer.generator import augment
from trainer.generator.run import Run
from trainer.loop import average
from trainer.loop.average import half_precision
from trainer.loop.distributed import Team
from trainer.loop.loop import Losses
from trainer.networks import Generator

ADJUST_STEPS = 4  # between two adjustments of the augmentation; each waits for the device
PATH_SHRINK = 2  # path lengths are measured on this part of a batch (stylegan2-ada)
PATH_DECAY = 0.01  # of the mean length, at each measurement

Part = Literal["discriminator", "penalty", "generator", "path"]
PARTS: tuple[Part, ...] = ("discriminator", "penalty", "generator", "path")


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The networks as the plain losses call them. Compiled ones cannot be differentiated twice."""

    generator: Callable[..., Tensor]
    discriminator: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, run: Run, *, compiled: bool = False) -> "Forward":
        """Return the networks of a run."""
        if compiled:
            return cls(generator=torch.compile(run.generator), discriminator=torch.compile(run.discriminator))
        return cls(generator=run.generator, discriminator=run.discriminator)


def train_step(run: Run, forward: Forward, photos: PhotoSet, team: Team) -> Losses:
    """Take one step of both networks and update the average; return the losses."""
    config = run.config
    losses = update_discriminator(run, forward, photos, team)
    if run.step % config.r1_interval == 0:
        losses |= gradient_penalty_step(run, photos, team)
    losses |= update_generator(run, forward, team)
    if config.path_weight and run.step % config.path_interval == 0:
        losses |= path_length_step(run, team)

    run.images_seen += config.batch
    average.update(
        run.average,
        run.generator,
        images=config.batch,
        images_seen=run.images_seen,
        halflife_images=config.halflife_images,
    )
    if config.augment and run.step % ADJUST_STEPS == 0:
        adjust_augmentation(run, team)
    return losses


def update_discriminator(run: Run, forward: Forward, photos: PhotoSet, team: Team) -> Losses:
    """Train the discriminator to recognize real pictures."""

    def loss(place: int, count: int, rng: np.random.Generator) -> Losses:
        reals = photos.batch(place, count, mirror=run.config.mirror)
        with torch.no_grad():
            codes = draw_codes(run.generator, count, mixing=run.config.mixing)
        with mixed_precision(run, team):
            with torch.no_grad():
                fakes = forward.generator(codes, noise="random")
            real_scores = forward.discriminator(seen(run, reals, rng))
            fake_scores = forward.discriminator(seen(run, fakes, rng))
        run.signs += torch.stack([real_scores.detach().sign().sum(), torch.ones_like(real_scores[0]) * count])
        return {
            "discriminator_loss": discriminator_loss(real_scores, fake_scores),
            "real_score": real_scores.mean(),
            "fake_score": fake_scores.mean(),
        }

    return optimizer_step(run, team, run.discriminator, run.discriminator_optimizer, "discriminator", loss)


def gradient_penalty_step(run: Run, photos: PhotoSet, team: Team) -> Losses:
    """Penalize the gradient of the discriminator at real pictures, augmented as it sees them (R1)."""
    weight = run.config.r1_weight
    assert weight is not None

    def loss(place: int, count: int, rng: np.random.Generator) -> Losses:
        reals = seen(run, photos.batch(place, count, mirror=run.config.mirror), rng)
        penalty = gradient_penalty(run.discriminator, reals)
        return {"penalty_loss": penalty * (weight / 2 * run.config.r1_interval), "gradient_penalty": penalty}

    return optimizer_step(run, team, run.discriminator, run.discriminator_optimizer, "penalty", loss)


def update_generator(run: Run, forward: Forward, team: Team) -> Losses:
    """Train the generator to make what the discriminator takes for real."""

    def loss(_place: int, count: int, rng: np.random.Generator) -> Losses:
        codes = draw_codes(run.generator, count, mixing=run.config.mixing)
        with mixed_precision(run, team):
            fakes = forward.generator(codes, noise="random")
            scores = forward.discriminator(seen(run, fakes, rng))
        return {"generator_loss": generator_loss(scores)}

    run.discriminator.requires_grad_(False)  # its gradients are not needed
    losses = optimizer_step(run, team, run.generator, run.generator_optimizer, "generator", loss)
    run.discriminator.requires_grad_(True)
    return losses


def path_length_step(run: Run, team: Team) -> Losses:
    """Make equal steps in the code move the picture equally far (path-length regularization)."""
    config, measured = run.config, torch.zeros(2, device=team.device)

    def loss(_place: int, count: int, _rng: np.random.Generator) -> Losses:
        codes = draw_codes(run.generator, max(count // PATH_SHRINK, 1), mixing=config.mixing)
        pictures = run.generator(codes, noise="random")
        lengths = path_lengths(pictures, codes, directions=torch.randn_like(pictures))
        measured.add_(torch.stack([lengths.detach().sum(), torch.ones_like(lengths[0]) * len(lengths)]))
        mean = run.path_mean.lerp(lengths.detach().mean(), PATH_DECAY)
        unevenness = (lengths - mean).square().mean()
        return {
            "path_loss": unevenness * (config.path_weight * config.path_interval),
            "path_length": lengths.mean(),
        }

    losses = optimizer_step(run, team, run.generator, run.generator_optimizer, "path", loss)
    total, count = team.add_up(measured)
    run.path_mean.lerp_(total / count, PATH_DECAY)
    return losses


def adjust_augmentation(run: Run, team: Team) -> None:
    """Augment more if the discriminator recognizes real pictures too well, otherwise less."""
    total, count = team.add_up(run.signs.clone()).tolist()
    run.augmentation = augment.adjusted(
        run.augmentation,
        total / count,
        images=int(count),
        target=run.config.augment_target,
        images_to_full=run.config.augment_images,
    )
    run.signs.zero_()


def draw_codes(generator: Generator, count: int, *, mixing: float) -> Tensor:
    """Return codes of random latents, [N, L, D]; some take their later rows from another latent.

    So no row can rely on the rows before it (style mixing, arXiv:1812.04948, section 3.1).
    """
    rows, length = generator.config.num_styles, generator.config.style_dim
    device = generator.input.input.device
    first, second = generator.mapping(torch.randn(2 * count, length, device=device)).chunk(2)
    start = torch.randint(1, rows, (count, 1), device=device)
    start = start.masked_fill(torch.rand(count, 1, device=device) >= mixing, rows)
    later = torch.arange(rows, device=device) >= start  # [N, L]
    return torch.where(later[:, :, None], second[:, None], first[:, None])


def seen(run: Run, pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Return pictures as the discriminator sees them."""
    return augment.augment(pictures, probability=run.augmentation, rng=rng)


def mixed_precision(run: Run, team: Team) -> torch.autocast:
    """Compute in bfloat16 where that is safe: neither the regularizations nor the mapping network."""
    return half_precision(team.device, wanted=run.config.precision == "bf16")


def optimizer_step(
    run: Run,
    team: Team,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: Part,
    loss: Callable[[int, int, np.random.Generator], Losses],
) -> Losses:
    """Take one optimizer step along the first value that `loss` returns; return the means of all."""
    count, passes = run.config.pass_size(team.size), run.config.accumulate
    losses: Losses = {}
    optimizer.zero_grad(set_to_none=True)
    for turn in range(passes):
        place = run.images_seen + (turn * team.size + team.rank) * count
        rng = np.random.default_rng([run.config.seed, place, PARTS.index(part)])
        torch.manual_seed(int(rng.integers(2**62)))
        values = loss(place, count, rng)
        (next(iter(values.values())) / passes).backward()
        for name, value in values.items():
            losses[name] = losses.get(name, 0) + value.detach() / passes
    team.average_gradients(network)
    optimizer.step()
    return losses


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Return the logistic loss: real pictures should score above 0, generated ones below."""
    return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Return the non-saturating loss: generated pictures should score above 0."""
    return F.softplus(-fake_scores).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Return the mean squared gradient of the scores by the pictures [N, C, H, W] (R1, arXiv:1801.04406)."""
    pictures = pictures.detach().requires_grad_(True)
    (gradients,) = torch.autograd.grad(discriminator(pictures).sum(), pictures, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(pictures: Tensor, codes: Tensor, *, directions: Tensor) -> Tensor:
    """Return how far pictures [N, C, S, S] move in random directions when codes [N, L, D] do, [N].

    Args:
        pictures: Made of the codes, with a graph between them.
        codes: Latent codes.
        directions: Standard normal, in the pictures' shape.
    """
    side = pictures.shape[-1]
    projected = (pictures * directions).sum() / side  # 1 / sqrt(H * W), so that sizes compare
    (gradients,) = torch.autograd.grad(projected, codes, create_graph=True)
    return gradients.square().sum(dim=2).mean(dim=1).sqrt()
