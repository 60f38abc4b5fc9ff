from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psp_rt.errors import PspError
from trainer.losses.lpips import ALEX, LpipsAlex

SHARED = Path(__file__).parents[3] / "shared"
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights/alexnet_features.pt").exists(),
    reason="the published weights and their reference images lie in ../shared, which is not here",
)


@pytest.fixture
def published():
    return LpipsAlex.load(
        features=SHARED / "weights/alexnet_features.pt",
        heads=SHARED / "weights/lpips_alex_linear_v0.1.pth",
    )


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    lpips = LpipsAlex()
    features = {
        f"features.{i}.{part}": getattr(conv, part)
        for i, conv in lpips.convs.items()
        for part in ("weight", "bias")
    }
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, channels, 1, 1)
        for i, (_, channels, *_) in enumerate(ALEX.layers.values())
    }
    torch.save(features, tmp_path / "features.pt")
    torch.save(features | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "whole_alexnet.pth")
    torch.save(heads, tmp_path / "heads.pth")
    return tmp_path


@pytest.fixture
def tiny(files):
    return LpipsAlex.load(features=files / "features.pt", heads=files / "heads.pth")


def read_image(name):
    pixels = np.asarray(Image.open(SHARED / "samples" / name).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1


@needs_weights
@pytest.mark.parametrize(("name", "published_score"), [("p0", 0.7219), ("p1", 0.1376)])
def test_lpips_gives_the_scores_its_authors_published(published, name, published_score):
    score = published(read_image("lpips_ex_ref.png"), read_image(f"lpips_ex_{name}.png"))
    assert score.item() == pytest.approx(published_score, abs=1e-4)


@needs_weights
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lpips_under_bfloat16_autocast_stays_within_one_percent(published, memory_format):
    pair = [read_image(f"lpips_ex_{name}.png") for name in ("ref", "p1")]
    exact = published(*pair)
    published.to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = published(*(image.to(memory_format=memory_format) for image in pair))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, exact, rtol=1e-2, atol=0)


def test_a_whole_alexnet_file_and_one_of_its_features_alone_give_the_same(files, tiny):
    whole = LpipsAlex.load(features=files / "whole_alexnet.pth", heads=files / "heads.pth")
    pair = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert tiny(*pair).min() > 0
    torch.testing.assert_close(whole(*pair), tiny(*pair), rtol=0, atol=0)


def test_target_features_can_be_computed_once_and_without_gradients(tiny):
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    targets = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = tiny.features(targets)
    distance = tiny.distance(tiny.features(images), wanted)
    torch.testing.assert_close(distance, tiny(images, targets))
    distance.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_gradients_stay_finite_where_every_feature_is_zero(tiny):
    for conv in tiny.convs.values():
        conv.bias.fill_(-100)  # ReLU then leaves nothing
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    tiny(images, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert images.grad.isfinite().all()


def test_a_missing_file_says_where_it_comes_from(files):
    with pytest.raises(PspError, match=r"alexnet-owt-7be5be79\.pth"):
        LpipsAlex.load(features=files / "absent.pth", heads=files / "heads.pth")
    with pytest.raises(PspError, match=r"lpips/weights/v0\.1/alex\.pth"):
        LpipsAlex.load(features=files / "features.pt", heads=files / "absent.pth")


def test_swapped_files_name_the_tensor_that_is_missing(files):
    with pytest.raises(PspError, match=r"no tensor features\.0\.weight; expected torchvision's AlexNet"):
        LpipsAlex.load(features=files / "heads.pth", heads=files / "features.pt")


def test_a_tensor_of_another_shape_names_both_shapes(files):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, files / "vgg.pth")
    with pytest.raises(PspError, match=r"\(64, 3, 3, 3\), not \(64, 3, 11, 11\)"):
        LpipsAlex.load(features=files / "vgg.pth", heads=files / "heads.pth")


def test_images_too_small_for_lpips_are_refused(tiny):
    with pytest.raises(PspError, match="at least 31 pixels"):
        tiny.features(torch.zeros(1, 3, 16, 16))
