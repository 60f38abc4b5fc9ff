"""One training step: the discriminator learns, then the generator.

Random numbers are seeded from the progress, not from what ran before, so a resumed run goes on
exactly as if it had never stopped, and two processes draw what one would draw in two passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.real_photos import RealPhotos
from trainer.generator import augment, losses
from trainer.generator.run import Run
from trainer.loop import average
from trainer.loop.distributed import Team
from trainer.loop.precision import half_precision
from trainer.networks import Generator

ADJUST_STEPS = 4  # between two adjustments of the augmentation; each waits for the device
PATH_SHRINK = 2  # path lengths are measured on this part of a batch (stylegan2-ada)
PATH_DECAY = 0.01  # of the mean length, at each measurement

Report = dict[str, Tensor]
Part = Literal["discriminator", "penalty", "generator", "path"]
PARTS: tuple[Part, ...] = ("discriminator", "penalty", "generator", "path")


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The networks as the plain losses call them; compiled, they cannot be differentiated twice."""

    generator: Callable[..., Tensor]
    discriminator: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, run: Run, *, compiled: bool = False) -> "Forward":
        """Return the networks of a run."""
        if compiled:
            return cls(generator=torch.compile(run.generator), discriminator=torch.compile(run.discriminator))
        return cls(generator=run.generator, discriminator=run.discriminator)


def train_step(run: Run, forward: Forward, photos: RealPhotos, team: Team) -> Report:
    """Take one step of both networks and update the average; return what there is to report."""
    config = run.config
    report = update_discriminator(run, forward, photos, team)
    if run.step % config.r1_interval == 0:
        report |= penalise_gradients(run, photos, team)
    report |= update_generator(run, forward, team)
    if config.path_weight and run.step % config.path_interval == 0:
        report |= even_paths(run, team)

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
    return report


def update_discriminator(run: Run, forward: Forward, photos: RealPhotos, team: Team) -> Report:
    """Teach the discriminator which pictures are real."""

    def loss(place: int, count: int, rng: np.random.Generator) -> Report:
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
            "discriminator_loss": losses.discriminator_loss(real_scores, fake_scores),
            "real_score": real_scores.mean(),
            "fake_score": fake_scores.mean(),
        }

    return _descend(run, team, run.discriminator, run.discriminator_optimizer, "discriminator", loss)


def penalise_gradients(run: Run, photos: RealPhotos, team: Team) -> Report:
    """Keep the discriminator flat around real pictures, as it sees them: augmented."""
    weight = run.config.r1_weight
    assert weight is not None

    def loss(place: int, count: int, rng: np.random.Generator) -> Report:
        reals = seen(run, photos.batch(place, count, mirror=run.config.mirror), rng)
        penalty = losses.gradient_penalty(run.discriminator, reals)
        return {"penalty_loss": penalty * (weight / 2 * run.config.r1_interval), "gradient_penalty": penalty}

    return _descend(run, team, run.discriminator, run.discriminator_optimizer, "penalty", loss)


def update_generator(run: Run, forward: Forward, team: Team) -> Report:
    """Teach the generator what the discriminator takes for real."""

    def loss(_place: int, count: int, rng: np.random.Generator) -> Report:
        codes = draw_codes(run.generator, count, mixing=run.config.mixing)
        with mixed_precision(run, team):
            fakes = forward.generator(codes, noise="random")
            scores = forward.discriminator(seen(run, fakes, rng))
        return {"generator_loss": losses.generator_loss(scores)}

    run.discriminator.requires_grad_(False)  # its gradients would be computed and thrown away
    report = _descend(run, team, run.generator, run.generator_optimizer, "generator", loss)
    run.discriminator.requires_grad_(True)
    return report


def even_paths(run: Run, team: Team) -> Report:
    """Make equal steps in the code equal steps in the picture."""
    config, measured = run.config, torch.zeros(2, device=team.device)

    def loss(_place: int, count: int, _rng: np.random.Generator) -> Report:
        codes = draw_codes(run.generator, max(count // PATH_SHRINK, 1), mixing=config.mixing)
        pictures = run.generator(codes, noise="random")
        lengths = losses.path_lengths(pictures, codes, directions=torch.randn_like(pictures))
        measured.add_(torch.stack([lengths.detach().sum(), torch.ones_like(lengths[0]) * len(lengths)]))
        mean = run.path_mean.lerp(lengths.detach().mean(), PATH_DECAY)
        unevenness = (lengths - mean).square().mean()
        return {
            "path_loss": unevenness * (config.path_weight * config.path_interval),
            "path_length": lengths.mean(),
        }

    report = _descend(run, team, run.generator, run.generator_optimizer, "path", loss)
    total, count = team.add_up(measured)
    run.path_mean.lerp_(total / count, PATH_DECAY)
    return report


def adjust_augmentation(run: Run, team: Team) -> None:
    """Augment more if the discriminator recognises real pictures too well, else less."""
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
    """Return codes of random latents, [N, L, D]; part of them has its later rows from another latent.

    So no row can rely on those before it (style mixing, arXiv:1812.04948, section 3.1).
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
    """Compute in bfloat16 what may be; the regularisations and the mapping network never are."""
    return half_precision(team.device, wanted=run.config.precision == "bf16")


def _descend(
    run: Run,
    team: Team,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: Part,
    loss: Callable[[int, int, np.random.Generator], Report],
) -> Report:
    """Take one optimizer step down the first value of what `loss` returns; give the means of all."""
    count, passes = run.config.pass_size(team.size), run.config.accumulate
    report: Report = {}
    optimizer.zero_grad(set_to_none=True)
    for turn in range(passes):
        place = run.images_seen + (turn * team.size + team.rank) * count
        rng = np.random.default_rng([run.config.seed, place, PARTS.index(part)])
        torch.manual_seed(int(rng.integers(2**62)))
        values = loss(place, count, rng)
        (next(iter(values.values())) / passes).backward()
        for name, value in values.items():
            report[name] = report.get(name, 0) + value.detach() / passes
    team.average_gradients(network)
    optimizer.step()
    return report
