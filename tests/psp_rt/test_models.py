"""The models that ship: small, whole, with a card each, and on one generator."""

import json
from pathlib import Path

import numpy as np
import pytest

from models import train
from psp_rt import EngineFile, Translator

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("task", train.TASKS)
def test_a_model_has_a_card_and_figures_and_fits(task):
    engine = MODELS / f"{task}.engine"
    assert engine.stat().st_size <= train.LIMIT_BYTES
    with EngineFile.open(engine) as file:
        file.verify()
        assert file.manifest.task == task
        assert file.manifest.parity["fp16_weights_psnr_db"] >= 40
    assert f"{task}.json" in (MODELS / f"{task}.md").read_text()
    assert f"({task}.md)" in (MODELS / "README.md").read_text()
    figures = json.loads((MODELS / f"{task}.json").read_text())
    assert 0 < figures["held_out_l2"] < 1
    assert f"models/{task}.engine" in figures["export"]


def test_they_have_one_generator():
    hashes = set()
    for task in train.TASKS:
        with EngineFile.open(MODELS / f"{task}.engine") as file:
            hashes.add(file.manifest.members["generator.weights"].sha256)
    assert len(hashes) == 1


def test_a_code_of_one_is_a_picture_in_another():
    blurred = np.full((64, 64, 3), 90, np.uint8)
    blurred[16:48, 16:48] = 200
    with (
        Translator(MODELS / "super-resolution.engine", device="cpu") as first,
        Translator(MODELS / "inversion.engine", device="cpu") as second,
    ):
        np.testing.assert_array_equal(second.generate(first.encode(blurred)), first.run(blurred))
