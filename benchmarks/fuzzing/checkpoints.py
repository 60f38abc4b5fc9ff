"""Checkpoints: files of PyTorch and safetensors, damaged, and read by `export` and by `trainer`."""

from __future__ import annotations

import io
import random
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from benchmarks.fuzzing.damage import damaged
from export.checkpoints.load import load as load_for_export
from psp_rt import PspError
from tests.models import tiny_models
from trainer import checkpoint as of_trainer


class Checkpoints:
    """Reads checkpoints."""

    name = "checkpoints"

    def make(self, number: int, folder: Path) -> Path:
        """Write the checkpoint of a number."""
        rng = random.Random(number)
        name, data = rng.choice(_files())
        whole = data[:2] == b"PK" and rng.random() < 0.7
        path = folder / name
        path.write_bytes(_with_damaged_member(data, rng) if whole else damaged(data, rng))
        return path

    def use(self, made: Any) -> None:
        """Read a checkpoint in both ways; both have to refuse it with an error of ours, or take it."""
        refused = 0
        for read in (load_for_export, of_trainer.load):
            try:
                read(made)
            except PspError:
                refused += 1
        if refused == 2:
            raise PspError("both readers refused it")


def _with_damaged_member(data: bytes, rng: random.Random) -> bytes:
    """Return the archive with one member damaged and all checksums right, so that its content is read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(buffer, "w") as after:
        names = before.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else names)
        for name in names:
            content = before.read(name)
            after.writestr(name, damaged(content, rng) if name == chosen else content)
    return buffer.getvalue()


@cache
def _files() -> list[tuple[str, bytes]]:
    """Return good files with their names: a zip, the format before it, and safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pt"
        tiny_models.write_official(path)
        content = torch.load(path, weights_only=False)
        files = [("a.pt", path.read_bytes())]
    legacy = io.BytesIO()
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    tensors = {name: value.contiguous().clone() for name, value in content["state_dict"].items()}
    return [*files, ("b.pt", legacy.getvalue()), ("c.safetensors", to_safetensors(tensors))]
