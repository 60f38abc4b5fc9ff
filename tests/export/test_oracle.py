"""Tiny official files become engines that compute what the model's equations say."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from export.checkpoints import load as checkpoints
from export.engine import export_engine
from psp_rt import Translator
from tests.models import oracle, tiny_models
from trainer.networks import EncoderKind


@dataclass(frozen=True)
class Case:
    kind: EncoderKind
    input: str = "rgb"
    channels: int = 3

    @property
    def labels(self) -> int | None:
        return self.channels if self.input == "labels" else None


CASES = [
    Case("psp"),
    Case("psp", "gray", 1),
    Case("psp", "labels", 7),
    Case("e4e"),
    Case("w"),
    Case("naive_w+"),
]


@dataclass(frozen=True)
class Exported:
    case: Case
    arrays: dict[str, np.ndarray]
    translator: Translator
    images: np.ndarray  # uint8 [3, H, W, C]
    codes: np.ndarray  # [3, L, D], from the oracle


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.kind}-{case.input}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("oracle")
    config = tiny_models.encoder_config(case.kind, input_channels=case.channels)
    options = {"label_nc": case.labels} if case.labels else {}
    arrays = tiny_models.write_official(folder / "official.pt", config, **options)
    export_engine(checkpoints.load(folder / "official.pt"), folder / "a.engine")
    bytes_per_pixel = 3 if case.input == "rgb" else 1
    shape = (3, config.input_height, config.input_width, bytes_per_pixel)
    images = np.random.default_rng(1).integers(0, case.labels or 256, shape, dtype=np.uint8)
    inputs = oracle.network_input(images, case.input, case.labels)
    codes = oracle.encode(arrays, inputs, kind=case.kind, depths=config.depths, num_styles=config.num_styles)
    with Translator(folder / "a.engine", device="cpu", color="rgb") as translator:
        yield Exported(case, arrays, translator, images, codes + arrays["latent_avg"])


def levels(pictures: np.ndarray) -> np.ndarray:
    """Turn [N, 3, S, S] in [-1, 1] into gray levels [N, S, S, 3], not yet rounded."""
    return np.moveaxis(np.clip(pictures * 127.5 + 127.5, 0, 255), 1, 3)


def given(exported: Exported) -> list[np.ndarray]:
    return [image if image.shape[2] == 3 else image[..., 0] for image in exported.images]


def test_codes_follow_the_equations(exported):
    found = exported.translator.encode(given(exported))
    assert np.abs(found - exported.codes).max() < 1e-4 * np.ptp(exported.codes)
    assert np.ptp(found, axis=0).max() > 0.1  # the codes depend on the images


def test_pictures_follow_the_equations(exported):
    expected = levels(oracle.generate(exported.arrays, exported.codes))
    pictures = np.stack(exported.translator.run(given(exported)))
    assert np.abs(pictures - expected).max() < 0.55  # what rounding takes, and FP32
    assert ((expected > 0) & (expected < 255)).mean() > 0.5  # most is neither black nor white


def test_mapped_styles_follow_the_equations(exported):
    for seed in (1, 2):
        z = np.random.default_rng(seed).standard_normal(20, dtype=np.float32)
        expected = oracle.map_styles(exported.arrays, z[None].astype(np.float64))
        found = exported.translator.sample(seed)
        assert found.shape == (8, 20)
        assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)
