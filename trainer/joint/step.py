"""One step of joint training: the encoders and the generator learn, then the discriminator.

Random numbers are seeded from the progress, not from what ran before, so a resumed run goes on
exactly as if it had never stopped.
"""

import numpy as np
import torch
from torch import Tensor, nn

from trainer.average import decay
from trainer.data import Batch
from trainer.gan import augment, losses
from trainer.gan.step import draw_codes
from trainer.joint.run import Run
from trainer.losses.lpips import LpipsAlex
from trainer.losses.lpips import loss as lpips_loss
from trainer.precision import half_precision
from trainer.team import Team

MIXING = 0.5  # of the random codes have their later rows from another latent

Report = dict[str, Tensor]


def train_step(run: Run, lpips: LpipsAlex, batches: dict[str, Batch], team: Team) -> Report:
    """Take one step and update the average; return the losses."""
    rng = np.random.default_rng([run.config.seed, run.images_seen, team.rank])
    torch.manual_seed(int(rng.integers(2**62)))
    adversarial = run.config.is_adversarial(run.images_seen)
    targets = torch.cat([batch.targets for batch in batches.values()])
    targets = targets.contiguous(memory_format=torch.channels_last)

    # Forward.
    pictures = translate(run, batches, random_codes=run.config.random if adversarial else 0)
    report = reconstruction(run, lpips, pictures[: len(targets)], targets)
    total = run.config.l2 * report["l2"] + run.config.lpips * report["lpips"]
    if adversarial:
        run.discriminator.requires_grad_(False)  # its gradients would be computed and thrown away
        report["generator_loss"] = losses.generator_loss(judge(run, pictures, rng))
        run.discriminator.requires_grad_(True)
        total = total + run.config.adversarial * report["generator_loss"]
    report["total"] = total

    # Update the encoders and the generator, then the discriminator.
    update_model(run, total, team)
    if adversarial:
        report |= update_discriminator(run, targets, pictures.detach(), rng, team)

    # Update the average.
    seen_now = len(targets) * team.size
    run.images_seen += seen_now
    share = 1 - decay(
        images=seen_now, images_seen=run.images_seen, halflife_images=run.config.halflife_images
    )
    with torch.no_grad():  # not the buffers: `calibrate` measures those for the averaged weights
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), share)
    return {name: value.detach() for name, value in report.items()}


def translate(run: Run, batches: dict[str, Batch], *, random_codes: int) -> Tensor:
    """Return the pictures of all batches, then those of random codes, [N, 3, S, S]."""
    with half_precision(run.device):
        codes = torch.cat(
            [
                run.model.encoders[task](batch.sources.contiguous(memory_format=torch.channels_last))
                for task, batch in batches.items()
            ]
        )
        codes = share_rows(codes.float(), probability=run.config.shared)
    if random_codes:
        codes = torch.cat([codes, draw_codes(run.model.generator, random_codes, mixing=MIXING)])
    with half_precision(run.device):
        pictures: Tensor = run.model.generator(codes, noise="none")
    return pictures.float()


def reconstruction(run: Run, lpips: LpipsAlex, pictures: Tensor, targets: Tensor) -> Report:
    """Return L2 and LPIPS of pictures and what they should be."""
    with half_precision(run.device):
        perceptual = lpips_loss(lpips, pictures, targets)
    return {"l2": (pictures - targets).square().mean(), "lpips": perceptual}


def judge(run: Run, pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the discriminator's scores of pictures, which it sees augmented, [N]."""
    seen = augment.augment(pictures, probability=run.config.augmentation, rng=rng)
    with half_precision(run.device):
        scores: Tensor = run.discriminator(seen)
    return scores


def update_model(run: Run, total: Tensor, team: Team) -> None:
    """Take one step of the encoders and the generator."""
    for group in run.optimizer.param_groups:
        group["lr"] = group["full_rate"] * run.config.rate_at(run.images_seen)
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    team.average_gradients(run.model)
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()


def update_discriminator(
    run: Run, reals: Tensor, fakes: Tensor, rng: np.random.Generator, team: Team
) -> Report:
    """Teach the discriminator which pictures are photos; now and then, keep it flat around them (R1)."""
    config, step = run.config, run.images_seen // (len(reals) * team.size)
    real_scores, fake_scores = judge(run, reals, rng), judge(run, fakes, rng)
    loss = losses.discriminator_loss(real_scores, fake_scores)
    report = {"discriminator_loss": loss, "real_score": real_scores.mean(), "fake_score": fake_scores.mean()}
    if step % config.r1_interval == 0:
        seen = augment.augment(reals, probability=config.augmentation, rng=rng)
        penalty = losses.gradient_penalty(run.discriminator, seen)
        loss = loss + penalty * (config.r1_weight / 2 * config.r1_interval)
    run.discriminator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    team.average_gradients(run.discriminator)
    run.discriminator_optimizer.step()
    return report


def share_rows(codes: Tensor, *, probability: float) -> Tensor:
    """Replace the rows of codes [N, L, D] from a random one on by the mean row, for part of the batch.

    So one style for every row is a picture too, as the mapping network's are.
    """
    count, rows, _ = codes.shape
    first = torch.randint(rows, (count, 1)) + rows * (torch.rand(count, 1) >= probability)
    shared = (torch.arange(rows) >= first).to(codes.device)  # [N, L]
    return torch.where(shared[:, :, None], codes.mean(dim=1, keepdim=True), codes)
