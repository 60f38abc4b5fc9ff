"""The networks have the tensors of the public models, at any size, and learn in all of them."""

from pathlib import Path

import pytest
import torch

from tests.models.tiny_models import GENERATOR, encoder_config
from trainer.networks import (
    Encoder,
    EncoderConfig,
    Generator,
    GeneratorConfig,
    Translation,
    official_channels,
)
from trainer.networks.backbone import PReLU

FORMATS = Path(__file__).parents[3] / "shared" / "formats"
needs_formats = pytest.mark.skipif(
    not FORMATS.is_dir(), reason="the lists of the public models' tensors lie in ../shared, which is not here"
)


def listed(name):
    """Return names and shapes as a list of a public model has them."""
    lines = (FORMATS / f"{name}.txt").read_text().splitlines()
    rows = [line.split("\t")[:2] for line in lines if line and not line.startswith("#")]
    return {
        tensor: tuple(int(side) for side in shape.strip("(),").split(",") if side) for tensor, shape in rows
    }


def tensors(create):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in create().state_dict().items()}


def encoder_tensors(**sizes):
    return tensors(lambda: Encoder.create(EncoderConfig(**sizes)))


@needs_formats
@pytest.mark.parametrize(
    ("name", "kind", "num_styles"),
    [
        ("psp_encoder_GradualStyleEncoder_1024", "psp", 18),
        ("psp_encoder_GradualStyleEncoder_512", "psp", 16),
        ("psp_encoder_GradualStyleEncoder_256", "psp", 14),
        ("e4e_encoder_Encoder4Editing_1024", "e4e", 18),
        ("e4e_encoder_Encoder4Editing_512", "e4e", 16),
        ("e4e_encoder_Encoder4Editing_256", "e4e", 14),
        ("e4e_encoder_SingleStyleCode", "w", 18),
        ("psp_encoder_IntoW", "w", 18),
        ("psp_encoder_IntoWPlus", "naive_w+", 18),
    ],
)
def test_an_encoder_has_the_tensors_of_the_public_one(name, kind, num_styles):
    assert encoder_tensors(kind=kind, num_styles=num_styles) == listed(name)


@needs_formats
@pytest.mark.parametrize(
    ("name", "size", "multiplier"),
    [
        ("psp_decoder_1024", 1024, 2),
        ("psp_decoder_512", 512, 2),
        ("psp_decoder_256", 256, 2),
        ("rosinality_g_ema_1024", 1024, 2),
        ("rosinality_g_ema_256_cm1", 256, 1),
    ],
)
def test_a_generator_has_the_tensors_of_the_public_one(name, size, multiplier):
    config = GeneratorConfig(channels=official_channels(size, multiplier))
    assert tensors(lambda: Generator(config)) == listed(name)
    assert config.size == size


@needs_formats
def test_the_backbone_is_the_one_of_arcface():
    """So that training can start from its file, whose head is another."""
    ours = encoder_tensors(kind="w")
    backbone = {name: shape for name, shape in ours.items() if name.startswith(("input_layer", "body"))}
    arcface = listed("ir_se50_backbone_112")
    assert backbone.items() <= arcface.items()
    assert {name.split(".")[0] for name in arcface.keys() - backbone.keys()} == {"output_layer"}


@pytest.mark.parametrize(
    ("size", "channels"), [(64, (512, 512, 512, 512, 512)), (1024, (512,) * 4 + (512, 256, 128, 64, 32))]
)
def test_the_public_channels_halve_from_64_pixels_on(size, channels):
    assert official_channels(size) == channels
    config = GeneratorConfig(channels=channels)
    assert (config.size, config.num_styles) == (size, {64: 10, 1024: 18}[size])


@pytest.mark.parametrize("channels", [(4, 4), (8, 6, 4), (4, 4, 4, 2, 2, 2, 2)])
def test_a_generator_gives_the_size_that_its_channels_say(channels):
    config = GeneratorConfig(channels=channels, style_dim=6, mapping_layers=1)
    pictures = Generator(config)(torch.randn(2, config.num_styles, 6))
    assert pictures.shape == (2, 3, config.size, config.size)


@pytest.mark.parametrize("kind", ["psp", "e4e", "w", "naive_w+"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 64, 64), (5, 48, 64)])
def test_an_encoder_gives_one_row_a_style(kind, channels, height, width):
    config = encoder_config(
        kind, num_styles=10, input_channels=channels, input_height=height, input_width=width
    )
    codes = Encoder.create(config)(torch.randn(3, channels, height, width))
    assert codes.shape == (3, 10, config.style_dim)


def test_an_input_that_the_pyramid_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="multiple of 16 on both sides, got 60x64"):
        EncoderConfig(input_height=60, input_width=64)


@pytest.mark.parametrize("kind", ["psp", "e4e", "w", "naive_w+"])
def test_every_parameter_learns(kind):
    torch.manual_seed(0)
    config = encoder_config(kind, input_height=64, input_width=64)
    model = Translation(Encoder.create(config), Generator(GENERATOR), torch.randn(8, config.style_dim))
    pictures = model(torch.randn(2, 3, 64, 64))
    mapped = model.generator.mapping(torch.randn(2, config.style_dim))
    (pictures.square().mean() + mapped.square().mean()).backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert idle == []


def test_the_quick_prelu_of_training_equals_the_plain_one():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    layer = PReLU(4).double()
    layer.weight.data = torch.tensor([0.25, -0.1, 0.0, 1.5], dtype=torch.float64)
    results = []
    for training in (True, False):
        layer.train(training)
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, layer.weight])])
    for quick, plain in zip(*results, strict=True):
        torch.testing.assert_close(quick, plain)


def test_the_mean_style_is_the_same_at_every_call():
    torch.manual_seed(0)
    generator = Generator(GENERATOR)
    mean = generator.mean_style(500)
    torch.manual_seed(1)
    assert (generator.mean_style(500) == mean).all()
    far = generator.mapping(torch.randn(5000, GENERATOR.style_dim)).mean(dim=0)
    assert (mean - far).norm() < 0.3 * far.norm()
