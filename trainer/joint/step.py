"""One step of joint training: the encoders and the generator learn, then the discriminator.

Random numbers are seeded from the progress, not from what ran before, so a resumed run continues
exactly as if it had never stopped.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.generator.step import draw_codes
from trainer.joint.discriminator import discriminator_loss, mean_score
from trainer.joint.run import Run
from trainer.loop.average import decay, half_precision
from trainer.loop.distributed import Team
from trainer.loop.loop import Losses
from trainer.losses.identity import Box, Identity
from trainer.losses.lpips import LpipsAlex, random_shift, shown, unit_length

FEATURES = Box(92, 204, 72, 184)  # eyes, nose and mouth of a face that is aligned as FFHQ's are
BORDER = 3  # rows of steps along each edge
MIXING = 0.5  # of the random codes have their later rows from another latent


class Pairs(NamedTuple):
    """Pictures as the networks take them."""

    sources: Tensor  # [N, C, h, w]
    targets: Tensor  # [N, 3, S, S] in [-1, 1]


def train_step(
    run: Run, lpips: LpipsAlex, batches: dict[str, Pairs], team: Team, identity: Identity | None = None
) -> Losses:
    """Take one step and update the average; return the losses, the total first.

    `identity` is needed where the settings give identity a weight.
    """
    rng = np.random.default_rng([run.config.seed, run.images_seen, team.rank])
    torch.manual_seed(int(rng.integers(2**62)))
    adversarial = run.config.is_adversarial(run.images_seen)
    targets = torch.cat([batch.targets for batch in batches.values()])
    targets = targets.contiguous(memory_format=torch.channels_last)

    # Forward.
    pictures = translate(run, batches, random_codes=run.config.random if adversarial else 0)
    # LPIPS and the discriminator share AlexNet's feature maps: of the whole picture and, if the settings ask
    # for it, of a crop around eyes, nose and mouth at twice the scale.
    crops = maps_of_crops(run, lpips, pictures, targets)
    losses = {"l2": (pictures[: len(targets)] - targets).square().mean()}
    losses |= {crop.name: crop.lpips_distance(lpips) for crop in crops}
    total = run.config.l2 * losses["l2"]
    total = total + run.config.lpips * sum(crop.weight * losses[crop.name] for crop in crops)
    if run.config.border:
        losses["border"] = border_loss(pictures[: len(targets)], targets)
        total = total + run.config.border * losses["border"]
    if identity is not None and run.config.identity:
        # Not of sketches: lines do not tell who it is.
        known = [task != "sketch" for task, batch in batches.items() for _ in range(len(batch.targets))]
        photos, made = targets[known], pictures[: len(targets)][known]
        losses["identity"] = 1 - identity.similarity(made, photos).mean()
        total = total + run.config.identity * losses["identity"]
    if adversarial:
        scores = [crop.weight * discriminator_score(run, crop.pictures) for crop in crops]
        losses["generator_loss"] = -torch.stack(scores).sum()
        total = total + run.config.adversarial * losses["generator_loss"]

    # Update the encoders and the generator, then the discriminator.
    update_model(run, total, team)
    if adversarial:
        losses |= update_discriminator(run, crops, team)

    # Update the average.
    seen_now = len(targets) * team.size
    run.images_seen += seen_now
    share = 1 - decay(
        images=seen_now, images_seen=run.images_seen, halflife_images=run.config.halflife_images
    )
    with torch.no_grad():  # not the buffers: `calibrate` measures those for the averaged weights
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), share)
    return {name: value.detach() for name, value in {"total": total, **losses}.items()}


def border_loss(pictures: Tensor, targets: Tensor) -> Tensor:
    """Return how much the steps between the outermost rows and columns differ from those of the photos.

    Convolutions see padding there, and without this loss nearly every picture has a rim. Steps count rather
    than colors, since a rim is narrow: it costs the other losses next to nothing.
    """
    losses = []
    for dim in (2, 3):
        off = pictures.diff(dim=dim) - targets.diff(dim=dim)
        last = off.shape[dim] - BORDER
        losses += [off.narrow(dim, 0, BORDER).abs().mean(), off.narrow(dim, last, BORDER).abs().mean()]
    return torch.stack(losses).mean()


def translate(run: Run, batches: dict[str, Pairs], *, random_codes: int) -> Tensor:
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


class Crop(NamedTuple):
    """Feature maps of one part of pictures and photos, which LPIPS and the discriminator share."""

    name: str  # of its LPIPS distance among the losses
    weight: float
    pictures: list[Tensor]  # those that have a photo, then those of random codes
    photos: list[Tensor]

    def lpips_distance(self, lpips: LpipsAlex) -> Tensor:
        """Return the mean LPIPS of the pictures that have a photo."""
        count = len(self.photos[0])
        made = unit_length([maps[:count] for maps in self.pictures])
        return lpips.distance(made, unit_length(self.photos)).mean()


def maps_of_crops(run: Run, lpips: LpipsAlex, pictures: Tensor, photos: Tensor) -> list[Crop]:
    """Return the maps of whole pictures and, if the settings ask for it, of eyes, nose and mouth alone."""
    crops = [Crop("lpips", 1.0, *feature_maps(run, lpips, pictures, photos))]
    if run.config.closer:
        closer = feature_maps(run, lpips, FEATURES.cut(pictures), FEATURES.cut(photos))
        crops.append(Crop("closer_lpips", run.config.closer, *closer))
    return crops


def feature_maps(
    run: Run, lpips: LpipsAlex, pictures: Tensor, photos: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the maps of pictures and photos, both enlarged and shifted in the same way."""
    shift = random_shift(photos)
    with half_precision(run.device):
        with torch.no_grad():
            wanted = lpips.maps(shown(photos, shift))
        return lpips.maps(shown(pictures, shift)), wanted


def discriminator_score(run: Run, maps: list[Tensor]) -> Tensor:
    """Return the mean score of maps; gradients flow only to the pictures."""
    run.discriminator.requires_grad_(False)
    with half_precision(run.device):
        score = mean_score(run.discriminator(maps))
    run.discriminator.requires_grad_(True)
    return score


def update_model(run: Run, total: Tensor, team: Team) -> None:
    """Take one step of the encoders and the generator."""
    for group in run.optimizer.param_groups:
        group["lr"] = group["full_rate"] * run.config.rate_at(run.images_seen)
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    team.average_gradients(run.model)
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()


def update_discriminator(run: Run, crops: Sequence[Crop], team: Team) -> Losses:
    """Train the discriminator to recognize the maps of photos."""
    with half_precision(run.device):
        real = [run.discriminator(crop.photos) for crop in crops]
        fake = [run.discriminator([maps.detach() for maps in crop.pictures]) for crop in crops]
        losses = [discriminator_loss(*scores) for scores in zip(real, fake, strict=True)]
        loss = torch.stack(losses).mean()
    run.discriminator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    team.average_gradients(run.discriminator)
    run.discriminator_optimizer.step()
    return {
        "discriminator_loss": loss,
        "real_score": torch.stack([mean_score(scores) for scores in real]).mean(),
        "fake_score": torch.stack([mean_score(scores) for scores in fake]).mean(),
    }


def share_rows(codes: Tensor, *, probability: float) -> Tensor:
    """Replace the rows of codes [N, L, D] from a random row on by the mean row, for part of the batch.

    So the generator also learns pictures that have one style in every row, as the mapping network gives.
    """
    count, rows, _ = codes.shape
    first = torch.randint(rows, (count, 1)) + rows * (torch.rand(count, 1) >= probability)
    shared = (torch.arange(rows) >= first).to(codes.device)  # [N, L]
    return torch.where(shared[:, :, None], codes.mean(dim=1, keepdim=True), codes)
