"""The whole way from an official checkpoint to a picture equals the public implementation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.checkpoints import load as checkpoints
from export.engine import export_engine
from psp_rt import StyleMix, Translator, images
from tests.models import conformance
from tests.models.conformance import CASES, Case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not conformance.FOLDER.is_dir(), reason="the folder of conformance vectors is not beside the checkout"
    ),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Case, Path]]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    checkpoint, path = folder / "official.pt", folder / "official.engine"
    conformance.write_checkpoint(case, checkpoint)
    export_engine(checkpoints.load(checkpoint), path)
    checkpoint.unlink()
    yield case, path
    path.unlink()


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def exported(engine: tuple[Case, Path], request: pytest.FixtureRequest) -> Iterator[tuple[Case, Translator]]:
    pytest.importorskip(request.param)
    case, path = engine
    with Translator(path, device="cpu", backend=request.param, color="rgb") as translator:
        yield case, translator


def official_codes(case: Case) -> np.ndarray:
    """Return the codes that the public code computed, [N, L, D]."""
    codes = conformance.vectors(case)["codes"]
    return codes if codes.ndim == 3 else np.repeat(codes[:, None], case.num_styles, axis=1)


def test_codes_equal_the_official_ones(exported: tuple[Case, Translator]) -> None:
    case, translator = exported
    expected = official_codes(case)
    codes = translator.encode(list(conformance.vectors(case)["images"]))
    assert np.abs(codes - expected).max() < 1e-4 * np.ptp(expected)


def test_pictures_equal_the_official_ones(exported: tuple[Case, Translator]) -> None:
    case, translator = exported
    expected = conformance.vectors(case)
    codes = expected.get("mixed", official_codes(case))
    pictures = translator.generate(codes)

    start = (case.size - 64) // 2
    crop = pictures[:, start : start + 64, start : start + 64].astype(float)
    official = levels(expected["crop"])
    assert np.abs(crop - official).max() <= 1.0

    # The averages are of unclamped values, so they can be compared only where nothing was clamped.
    cell = case.size // 64
    pooled = pictures.reshape(len(pictures), 64, cell, 64, cell, 3)
    inside = ((pooled > 0) & (pooled < 255)).all(axis=(2, 4))
    difference = np.abs(pooled.mean(axis=(2, 4)) - levels(expected["pooled"]))
    assert inside.mean() > 0.3
    assert difference[inside].max() <= 1.0


def levels(values: np.ndarray) -> np.ndarray:
    """Turn the generator's values [N, 3, H, W] into clamped gray levels [N, H, W, 3]."""
    return np.moveaxis(np.clip(values * 127.5 + 127.5, 0, 255), 1, 3)


def test_mixed_styles_equal_the_official_ones(exported: tuple[Case, Translator]) -> None:
    case, translator = exported
    expected = conformance.vectors(case)
    if "mapped" not in expected:
        pytest.skip("this case has no style mix")
    mapped = mapped_styles(translator, expected["z"])
    assert np.abs(mapped - expected["mapped"]).max() < 1e-4 * np.ptp(expected["mapped"])

    codes = translator.encode(list(expected["images"]))
    whole = translator.generate(expected["mixed"])
    for image in range(2):
        mix = StyleMix(expected["mapped"][image], rows=range(8, 16))
        mixed = translator.generate(codes[image], mix)
        assert np.abs(mixed.astype(int) - whole[image].astype(int)).max() <= 1


def mapped_styles(translator: Translator, z: np.ndarray) -> np.ndarray:
    """Map vectors [N, D]; `Translator.sample` takes seeds."""
    session = translator.bare("mapping")
    if translator.backend == "onnxruntime":
        return session.run(None, {"z": z})[0]
    return np.concatenate([session.infer([row[None]])[0] for row in z])


SAMPLES = {
    "psp_inversion_256": "face_1024.jpg",
    "psp_sketch_1024": "sketch_256.jpg",
    "psp_segmentation_256": "labels19_512.png",
}


def test_a_real_file_gives_the_official_codes(exported: tuple[Case, Translator]) -> None:
    case, translator = exported
    sample = conformance.FOLDER.parent / "samples" / SAMPLES.get(case.name, "none")
    if not sample.is_file():
        pytest.skip("no sample file belongs to this case")
    expected = conformance.vectors(case)
    if case.name == "psp_segmentation_256":
        # The vectors were resized with nearest; an official model reads bilinear by default.
        ids = np.asarray(Image.open(sample))
        np.testing.assert_array_equal(images.resize(ids, 256, 256, method="nearest"), expected["images"][0])
        return
    codes = translator.encode(sample)
    official = official_codes(case)
    assert np.abs(codes - official[0]).max() < 1e-4 * np.ptp(official)
