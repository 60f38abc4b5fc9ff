"""Kill trainings and exports by -9 at random moments; run by test_kills.

    python -m tests.trainer.kills joint|encoder|generator|export FOLDER KILLS

Each run is forked off this process, which has PyTorch imported, and killed until KILLS are done. After each
kill, what has a final name must be whole. Prints "same" if the run that then ends by itself has the weights
of one that was never killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from export.checkpoints.load import load
from export.engine import export_engine
from psp_rt.engine import EngineFile
from tests.models import tiny_models, tiny_runs
from tests.trainer.test_gan import TINY
from tests.trainer.test_joint import CONFIG
from trainer import checkpoint
from trainer.data.pairs import TrainingSet
from trainer.data.photos import PhotoSet
from trainer.encoder import training as encoder_training
from trainer.generator import training as generator_training
from trainer.joint import training as joint_training
from trainer.loop.distributed import Team
from trainer.losses import lpips as perceptual
from trainer.losses.criterion import Criterion
from trainer.losses.lpips import LpipsAlex

ALONE = Team(device=torch.device("cpu"))


def joint(folder: Path, output: Path) -> None:
    """Train everything together, on the folder's faces."""
    perceptual.LOSS_SIZE, joint_training.CALIBRATION_BATCHES = 64, 1
    torch.manual_seed(0)
    config, faces = replace(CONFIG, images=16), folder / "faces"
    lpips = LpipsAlex().eval()
    list(joint_training.train(config, images=faces, validation=faces, output=output, lpips=lpips))


def encoder(folder: Path, output: Path) -> None:
    """Train an encoder for a drawn generator."""
    run = tiny_runs.start(
        tiny_runs.recipe_of("inversion", "images=48", "report_images=4"), tiny_runs.draw_generator()
    )
    if (output / "latest.pt").exists():
        run.restore(output / "latest.pt")
    output.mkdir(exist_ok=True)
    data = TrainingSet.load(run.recipe, folder / "faces")
    list(encoder_training.train(run, Criterion(run.recipe.losses), data, team=ALONE, output=output))


def generator(folder: Path, output: Path) -> None:
    """Train a generator on drawn pictures."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    photos = PhotoSet(pixels=pixels, device=torch.device("cpu"), fingerprint="a")
    list(generator_training.train(replace(TINY, images=80), photos, team=ALONE, output=output))


def export(folder: Path, output: Path) -> None:
    """Export a drawn model over the engine that is there."""
    output.mkdir(exist_ok=True)
    export_engine(load(folder / "model.pt"), output / "a.engine")


def check_whole(output: Path) -> None:
    """Raise if a file with a final name is not whole."""
    for path in output.glob("*.pt"):
        checkpoint.read(path)
    for path in output.glob("*.engine"):
        with EngineFile.open(path) as engine:
            engine.verify()


def weights(output: Path) -> dict[str, Any]:
    """Return what must not depend on kills."""
    if (output / "a.engine").exists():
        with EngineFile.open(output / "a.engine") as engine:
            return {
                name: torch.tensor(list(bytes.fromhex(member.sha256)))
                for name, member in engine.manifest.members.items()
            }
    content = checkpoint.read(output / "latest.pt")
    return {name: content[name] for name in ("encoder", "generator") if name in content} | {
        name: value for name, value in content.items() if name in ("g_ema", "latent_avg")
    }


def started(what: Callable[[Path, Path], None], folder: Path, output: Path) -> int:
    """Return the process that runs it."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            what(folder, output)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def main(kind: str, folder: Path, kills: int) -> None:
    """Run it once whole, and once with kills."""
    what, rng = (
        {"joint": joint, "encoder": encoder, "generator": generator, "export": export}[kind],
        random.Random(kind),
    )
    tiny_runs.write_faces(folder / "faces")
    tiny_models.write_official(folder / "model.pt")
    begin = time.monotonic()
    assert os.waitpid(started(what, folder, folder / "whole"), 0)[1] == 0
    seconds, done = time.monotonic() - begin, 0
    while done < kills:
        child = started(what, folder, folder / "parts")
        time.sleep(rng.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        done += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        check_whole(folder / "parts")
    assert os.waitpid(started(what, folder, folder / "parts"), 0)[1] == 0
    torch.testing.assert_close(weights(folder / "parts"), weights(folder / "whole"), rtol=0, atol=0)
    print("same")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
