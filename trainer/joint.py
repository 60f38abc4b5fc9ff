"""Train a small encoder and generator together, from nothing, on photos and sketches of them.

The paper trains an encoder against a finished generator. Where there is none, and little to
compute with, both can learn at once from the reconstruction alone: L2 and LPIPS with the paper's
weights (1 and 0.8). This is how the demonstration model is made.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psp_rt.errors import InputError, PspError
from trainer import checkpoint as checkpoints
from trainer import data, sheet
from trainer.losses.lpips import LpipsAlex
from trainer.networks import Encoder, EncoderConfig, Generator, GeneratorConfig, Translation

SHEET_IMAGES = 32


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
    learning_rate: float = 2e-3
    warmup_images: int = 3_000
    l2: float = 1.0
    lpips: float = 0.8
    images: int = 280_000
    seed: int = 0
    halflife_images: float = 10e3

    def learning_rate_at(self, images_seen: int) -> float:
        """Return the rate: it rises at first, and falls over the last quarter of the run."""
        rise = min(1.0, (images_seen + 1) / self.warmup_images)
        fall = min(1.0, max(0.05, 4 * (1 - images_seen / self.images)))
        return self.learning_rate * rise * fall

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
        torch.manual_seed(config.seed)
        model = Translation(Encoder.create(config.encoder), Generator(config.generator), None)
        model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        return cls(config, model, copy.deepcopy(model).eval().requires_grad_(False), optimizer)

    @classmethod
    def resume(cls, config: JointConfig, path: Path) -> "Run":
        """Go on from a checkpoint as if the run had never stopped."""
        run = cls.start(config)
        training = checkpoints.load(path).training
        if "joint" not in training:
            raise InputError(f"{path} was not made by joint training; choose another output folder")
        state = training["joint"]
        run.model.load_state_dict(state["model"])
        run.average.load_state_dict(state["average"])
        run.optimizer.load_state_dict(state["optimizer"])
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


def train_step(
    run: Run, forward: Callable[..., Tensor], lpips: LpipsAlex, batch: data.Batch
) -> dict[str, Tensor]:
    """Take one optimizer step and update the average; return the losses."""
    # Forward.
    sources = batch.sources.contiguous(memory_format=torch.channels_last)
    targets = batch.targets.contiguous(memory_format=torch.channels_last)
    with torch.autocast(sources.device.type, torch.bfloat16):
        pictures = forward(sources, noise="none").float()
        with torch.no_grad():
            wanted = lpips.features(targets)
        perceptual = lpips.distance(lpips.features(pictures), wanted).mean()
    squared = (pictures - targets).square().mean()
    total = run.config.l2 * squared + run.config.lpips * perceptual

    # Update the networks.
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.learning_rate_at(run.images_seen)
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.images_seen += len(sources)

    # Update their average.
    decay = 0.5 ** (len(sources) / min(run.config.halflife_images, 0.05 * run.images_seen))
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1 - decay)
        for average, value in zip(run.average.buffers(), run.model.buffers(), strict=True):
            average.copy_(value)
    return {"l2": squared.detach(), "lpips": perceptual.detach(), "total": total.detach()}


def train(
    config: JointConfig,
    *,
    images: Path,
    validation: Path,
    output: Path,
    lpips: LpipsAlex,
    compiled: bool = False,
) -> Iterator[dict[str, float]]:
    """Train until `config.images`, yielding a report every few thousand images.

    A checkpoint, `latest.pt`, and a picture sheet go into `output` with every report. If the folder
    has a checkpoint already, the run goes on from it.
    """
    output.mkdir(parents=True, exist_ok=True)
    size = config.generator.size
    pairs = load_pairs(images, size, seed=config.seed, cache=output / "train-sketches.npz")
    held_out = load_pairs(validation, size, seed=config.seed, cache=output / "validation-sketches.npz")
    latest = output / "latest.pt"
    run = Run.resume(config, latest) if latest.exists() else Run.start(config)
    forward = torch.compile(run.model) if compiled else run.model
    lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    sums: dict[str, float] = {}
    reported, started = run.images_seen, time.perf_counter()
    while run.images_seen < config.images:
        run.model.train()
        losses = train_step(run, forward, lpips, pairs.batch(run.images_seen, config.batch))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() * config.batch
        if not np.isfinite(sums["total"]):
            raise PspError(
                f"the loss is no longer a number after {run.images_seen} images; "
                f"{latest} is the last good state"
            )
        count = run.images_seen - reported
        if count >= 2000 or run.images_seen >= config.images:
            report = {name: value / count for name, value in sums.items()}
            report |= evaluate(run.average, held_out, lpips)
            report |= {
                "images_seen": run.images_seen,
                "images_per_second": count / (time.perf_counter() - started),
            }
            run.save(latest)
            draw_sheet(run.average, held_out, output / f"sheet-{run.images_seen // 20_000 * 20_000}.png")
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")
            yield report
            sums, reported, started = {}, run.images_seen, time.perf_counter()


def load_pairs(folder: Path, size: int, *, seed: int, cache: Path) -> data.SketchPairs:
    """Read a folder of photos and draw their sketches."""
    photos = data.load_photos(folder, size=size)
    return data.SketchPairs(
        photos=photos.pixels,
        sketches=data.draw_sketches(photos.paths, size=size, seed=seed, cache=cache),
        seed=seed,
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
