"""What is measured and shown of an encoder while it trains: always of the averaged weights."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trainer.data import inputs
from trainer.data.pairs import Batch, TrainingSet
from trainer.encoder.run import Run
from trainer.loop import average
from trainer.losses.criterion import Criterion

SHEET_IMAGES = 16
CALIBRATION_IMAGES = 512  # at most; but no photo more than four times
CALIBRATION_BATCH = 32


def calibrate(run: Run, data: TrainingSet) -> None:
    """Measure the batch statistics of the averaged encoder, on the pictures that come next in training."""
    count = min(CALIBRATION_IMAGES, 4 * len(data))
    each = min(CALIBRATION_BATCH, count)
    last = run.images_seen + count - each  # what is left over is no batch: it would count as much as one

    def sources() -> Iterator[Tensor]:
        for place in range(run.images_seen, last + 1, each):
            batch = data.batch(place, each).to(run.mean_style.device)
            yield inputs.to_network(batch.sources, run.recipe)

    average.calibrate(run.model.encoder, sources())


def pool(pictures: Tensor, size: int) -> Tensor:
    """Bring pictures [N, 3, S, S] to the size that losses compare."""
    if pictures.shape[2] == size:
        return pictures
    return torch.nn.functional.adaptive_avg_pool2d(pictures, size)


@torch.no_grad()
def evaluate(run: Run, criterion: Criterion, data: TrainingSet, *, batch: int = 8) -> dict[str, float]:
    """Return the mean losses of the averaged model over every image of a set: each time the same."""
    device, sums = run.mean_style.device, dict[str, float]()
    with torch.random.fork_rng():  # LPIPS looks at places drawn at random
        torch.manual_seed(0)
        for start in range(0, len(data), batch):
            part = data.plain(range(start, min(start + batch, len(data)))).to(device)
            pictures, offsets = translate(run, part)
            for name, value in criterion(pictures, inputs.to_target(part.targets), offsets).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(part.targets)
    return {f"validation_{name}": value / len(data) for name, value in sums.items()}


@torch.no_grad()
def draw_sheet(run: Run, data: TrainingSet) -> list[Tensor]:
    """Return inputs, photos and results of some images."""
    chosen = np.unique(np.linspace(0, len(data) - 1, SHEET_IMAGES).astype(int)).tolist()
    pictures, photos, shown = [], [], []
    for index in chosen:
        part = data.plain([index]).to(run.mean_style.device)
        shown.append(inputs.to_picture(part.sources, run.recipe).cpu())
        photos.append(inputs.to_target(part.targets).cpu())
        pictures.append(translate(run, part)[0].cpu())
    size = run.recipe.loss_size
    fitted = torch.nn.functional.interpolate(torch.cat(shown), size=(size, size), mode="nearest")
    return [fitted, torch.cat(photos), torch.cat(pictures)]


def translate(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what the averaged model makes of a batch, and its codes minus the mean style."""
    codes = run.model.encode(inputs.to_network(batch.sources, run.recipe))
    offsets = codes - run.mean_style if run.recipe.start_from_average else codes
    return pool(run.model.generator(codes), run.recipe.loss_size), offsets
