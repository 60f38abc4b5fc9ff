"""Train a small encoder and generator together, from nothing, on photos and sketches of them.

The paper trains an encoder against a finished generator. Where there is none, and little to
compute with, both can learn at once from the reconstruction alone: L2 and LPIPS with the paper's
weights (1 and 0.8). This is how the demonstration model is made.

Random styles need a mapping network, which nothing here would teach. So part of the codes have
their later rows replaced by the mean of all rows, which must do as well: then one style for every
row is a picture too. At the end the mapping network is set to draw such styles, from the normal
distribution of the means (`trainer.mapping`).
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psp_rt.errors import InputError, OutputError, PspError
from trainer import checkpoint as checkpoints
from trainer import data, sheet
from trainer.average import calibrate as calibrate_average
from trainer.average import decay
from trainer.losses.lpips import LpipsAlex
from trainer.mapping import check_depth, set_mapping
from trainer.networks import (
    Encoder,
    EncoderConfig,
    Generator,
    GeneratorConfig,
    Translation,
    draw_head_weights,
)
from trainer.team import Team

SHEET_IMAGES = 32
REPORT_IMAGES = 8000  # at least, between two reports


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Everything that decides the outcome of a run."""

    generator: GeneratorConfig = field(
        default_factory=lambda: GeneratorConfig(
            channels=(192, 192, 128, 64, 32), style_dim=128, mapping_layers=4
        )
    )
    widths: tuple[int, int, int, int] = (24, 48, 96, 96)
    depths: tuple[int, int, int, int] = (1, 2, 2, 1)
    head_width: int = 64
    batch: int = 16
    learning_rate: float = 4e-3
    scaled_learning_rate: float = 2e-2  # for weights of unit size, which a factor scales at run time
    warmup_images: int = 3_000
    l2: float = 1.0
    lpips: float = 0.8
    shared: float = 0.3  # of the codes have their later rows replaced by the mean row
    images: int = 280_000
    seed: int = 0
    halflife_images: float = 10e3

    def rate_at(self, images_seen: int) -> float:
        """Return the part of the rates in force: it rises at first, and falls in the last quarter."""
        rise = min(1.0, (images_seen + 1) / self.warmup_images)
        fall = min(1.0, max(0.05, 4 * (1 - images_seen / self.images)))
        return rise * fall

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder that fits the generator: input of the output's size, one channel."""
        return EncoderConfig(
            num_styles=self.generator.num_styles,
            input_channels=1,
            input_height=self.generator.size,
            input_width=self.generator.size,
            style_dim=self.generator.style_dim,
            widths=self.widths,
            depths=self.depths,
            head_width=self.head_width,
        )


@dataclass
class Run:
    """The state of a training run."""

    config: JointConfig
    model: Translation  # learns
    average: Translation  # its running average, which is what gets exported
    optimizer: torch.optim.Optimizer
    images_seen: int = 0

    @classmethod
    def start(cls, config: JointConfig) -> "Run":
        """Draw the weights of a new run."""
        check_depth(config.generator.mapping_layers)  # now, and not when the run ends
        torch.manual_seed(config.seed)
        model = Translation(Encoder.create(config.encoder), Generator(config.generator), None)
        draw_head_weights(model.encoder)
        model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        average = copy.deepcopy(model).eval().requires_grad_(False)
        return cls(config, model, average, make_optimizer(model, config))

    @classmethod
    def resume(cls, config: JointConfig, path: Path) -> "Run":
        """Go on from a checkpoint as if the run had never stopped."""
        run = cls.start(config)
        training = checkpoints.load(path).training
        if "joint" not in training:
            raise InputError(f"{path} was not made by joint training; choose another output folder")
        state = training["joint"]
        try:
            run.model.load_state_dict(state["model"])
            run.average.load_state_dict(state["average"])
            run.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} belongs to a run of other sizes; choose another output folder ({error})"
            ) from error
        run.images_seen = state["images_seen"]
        return run

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images_seen": self.images_seen,
        }
        checkpoints.save(
            path,
            checkpoints.Checkpoint(
                task="sketch", input_kind="gray", labels=None, model=self.average, training={"joint": state}
            ),
        )


Networks = tuple[Callable[..., Tensor], Callable[..., Tensor]]  # encoder, generator


def train_step(
    run: Run, networks: Networks, lpips: LpipsAlex, batch: data.Batch, team: Team
) -> dict[str, Tensor]:
    """Take one optimizer step and update the average; return the losses."""
    # Forward.
    encode, generate = networks
    torch.manual_seed(run.config.seed + run.images_seen + team.rank)
    sources = batch.sources.contiguous(memory_format=torch.channels_last)
    targets = batch.targets.contiguous(memory_format=torch.channels_last)
    with torch.autocast(sources.device.type, torch.bfloat16):
        codes = share_rows(encode(sources), probability=run.config.shared)
        pictures = generate(codes, noise="none").float()
        with torch.no_grad():
            wanted = lpips.features(targets)
        perceptual = lpips.distance(lpips.features(pictures), wanted).mean()
    squared = (pictures - targets).square().mean()
    total = run.config.l2 * squared + run.config.lpips * perceptual

    # Update the networks.
    for group in run.optimizer.param_groups:
        group["lr"] = group["full_rate"] * run.config.rate_at(run.images_seen)
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    team.average_gradients(run.model)
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    seen_now = len(sources) * team.size
    run.images_seen += seen_now

    # Update their average.
    share = 1 - decay(
        images=seen_now, images_seen=run.images_seen, halflife_images=run.config.halflife_images
    )
    with torch.no_grad():  # not the buffers: `calibrate` measures those for the averaged weights
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), share)
    return {"l2": squared.detach(), "lpips": perceptual.detach(), "total": total.detach()}


def make_optimizer(model: Translation, config: JointConfig) -> torch.optim.Optimizer:
    """Return Adam with a higher rate for the weights of unit size.

    The generator's weights and the heads' last layers are scaled at run time, so a step moves them
    by a far smaller part of their size; at one rate for all, they hardly learn.
    """
    scaled = list(model.generator.parameters())
    scaled += [value for name, value in model.encoder.named_parameters() if ".linear." in name]
    others = [value for value in model.parameters() if all(value is not other for other in scaled)]
    return torch.optim.Adam(
        [
            {"params": others, "full_rate": config.learning_rate},
            {"params": scaled, "full_rate": config.scaled_learning_rate},
        ],
        betas=(0.9, 0.99),
    )


def share_rows(codes: Tensor, *, probability: float) -> Tensor:
    """Replace the rows of codes [N, L, D] from a random one on by the mean row, for part of the batch."""
    count, rows, _ = codes.shape
    first = torch.randint(rows, (count, 1)) + rows * (torch.rand(count, 1) >= probability)
    shared = torch.arange(rows) >= first  # [N, L]
    return torch.where(shared[:, :, None], codes.mean(dim=1, keepdim=True), codes)


@torch.no_grad()
def fit_mapping(model: Translation, pairs: data.SketchPairs) -> float:
    """Make the mapping network draw styles like the mean rows of the photos; return its relative error."""
    parts = np.array_split(np.arange(len(pairs)), max(len(pairs) // 64, 1))
    styles = torch.cat([model.encode(pairs.plain(part).sources).mean(dim=1) for part in parts])  # [N, D]
    return set_mapping(model.generator, styles)


def train(
    config: JointConfig,
    *,
    images: Path,
    validation: Path,
    output: Path,
    lpips: LpipsAlex,
    compiled: bool = False,
    team: Team | None = None,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every few thousand images.

    A checkpoint, `latest.pt`, and a picture sheet go into `output` with every report. If the folder
    has a checkpoint already, the run goes on from it.
    """
    with _writing_into(output):
        output.mkdir(parents=True, exist_ok=True)
    size = config.generator.size
    pairs = load_pairs(images, size, seed=config.seed, cache=output / "train-sketches.npz")
    held_out = load_pairs(validation, size, seed=config.seed, cache=output / "validation-sketches.npz")
    latest = output / "latest.pt"
    run = Run.resume(config, latest) if latest.exists() else Run.start(config)
    team = team or Team(device=torch.device("cpu"))
    networks: Networks = (run.model.encoder, run.model.generator)
    if compiled:
        networks = (torch.compile(run.model.encoder), torch.compile(run.model.generator))
    lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    sums: dict[str, float] = {}
    reported, started = run.images_seen, time.perf_counter()
    while run.images_seen < config.images:
        run.model.train()
        mine = pairs.batch(run.images_seen + team.rank * config.batch, config.batch)
        losses = train_step(run, networks, lpips, mine, team)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() * config.batch * team.size
        if not np.isfinite(sums["total"]):
            raise _diverged(run.images_seen, latest)
        count = run.images_seen - reported
        if not team.leads:
            continue
        if count >= REPORT_IMAGES or run.images_seen >= config.images:
            report = {name: value / count for name, value in sums.items()}
            calibrate(run.average, pairs, start=run.images_seen)
            report |= evaluate(run.average, held_out, lpips)
            if not np.isfinite(
                list(report.values())
            ).all():  # a last step can spoil what its loss does not show
                raise _diverged(run.images_seen, latest)
            report |= {
                "images_seen": run.images_seen,
                "images_per_second": count / (time.perf_counter() - started),
            }
            if run.images_seen >= config.images:
                report["mapping_error"] = fit_mapping(run.average, pairs)
            run.save(latest)
            with _writing_into(output):
                draw_sheet(run.average, held_out, output / f"sheet-{run.images_seen // 20_000 * 20_000}.png")
                with (output / "log.jsonl").open("a") as log:
                    log.write(json.dumps(report) + "\n")
            yield report
            sums, reported, started = {}, run.images_seen, time.perf_counter()


def calibrate(model: Translation, pairs: data.SketchPairs, *, start: int, images: int = 2048) -> None:
    """Measure the statistics of batch normalisation for averaged weights."""
    places = range(start, start + images, 64)
    calibrate_average(model.encoder, (pairs.batch(place, 64).sources for place in places))


def load_pairs(folder: Path, size: int, *, seed: int, cache: Path) -> data.SketchPairs:
    """Read a folder of photos and draw their sketches."""
    photos = data.load_photos(folder, size=size)
    with _writing_into(cache.parent):
        sketches = data.draw_sketches(photos.paths, size=size, seed=seed, cache=cache)
    return data.SketchPairs(photos=photos.pixels, sketches=sketches, seed=seed)


@contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; the last checkpoint in it, if any, is "
            "whole. Make room, then run the same command to resume"
        ) from error


def _diverged(images_seen: int, latest: Path) -> PspError:
    left = f"{latest} is the last good state" if latest.exists() else "nothing was saved before"
    return PspError(
        f"the loss is no longer a number after {images_seen} images; {left}. "
        "Lower the learning rate of JointConfig and start again"
    )


@torch.no_grad()
def evaluate(
    model: Translation, pairs: data.SketchPairs, lpips: LpipsAlex, *, batch: int = 32
) -> dict[str, float]:
    """Measure L2 and LPIPS on every held-out image."""
    squared, perceptual = 0.0, 0.0
    for start in range(0, len(pairs), batch):
        part = pairs.plain(np.arange(start, min(start + batch, len(pairs))))
        pictures = model(part.sources, noise="none")
        squared += (pictures - part.targets).square().mean(dim=(1, 2, 3)).sum().item()
        perceptual += lpips(pictures, part.targets).sum().item()
    return {"held_out_l2": squared / len(pairs), "held_out_lpips": perceptual / len(pairs)}


@torch.no_grad()
def draw_sheet(model: Translation, pairs: data.SketchPairs, path: Path) -> None:
    """Write sketch, photo and result of some held-out images."""
    chosen = pairs.plain(np.linspace(0, len(pairs) - 1, SHEET_IMAGES).astype(np.int64))
    sheet.write(path, [chosen.sources * 2 - 1, chosen.targets, model(chosen.sources, noise="none")])
