"""The form of the graphs that suits a GPU computes what the portable form does, on the same weights."""

import onnx
import pytest
import torch

from benchmarks.workloads.models import draw as draw_model
from benchmarks.workloads.models import official
from export.graphs.gpu import gpu_form
from export.graphs.gpu_encoder import GpuPReLU
from export.graphs.networks import EncoderGraph, GeneratorGraph
from export.graphs.trace import INLINE_BYTES, trace, trace_again
from tests.export.test_graphs import D, filled, generator
from tests.models.tiny_models import encoder_config
from trainer.networks import Encoder, EncoderConfig
from trainer.networks.backbone import PReLU


def plain_encoder(kind, **sizes):
    config = encoder_config(kind, **sizes)
    average = torch.linspace(-1, 1, config.num_styles * D).reshape(-1, D)
    return EncoderGraph(filled(Encoder.create(config)), average, kind="rgb")


@pytest.mark.parametrize("noise", ["const", "none"])
@pytest.mark.parametrize(
    "changes", [{}, {"conv_clamp": 0.3}, {"channels": (8, 8, 8, 8, 6, 6, 4)}], ids=lambda one: str(one)[:30]
)
def test_a_generator_computes_the_same(changes, noise):
    plain = GeneratorGraph(generator(**changes), noise=noise, rows=(4, 20))
    codes, reference = torch.randn(2, 3, plain.config.num_styles, D, generator=torch.manual_seed(0))
    weights = torch.rand(3, plain.config.num_styles, generator=torch.manual_seed(0))
    with torch.no_grad():
        mixed = (1 - weights[:, :, None]) * codes + weights[:, :, None] * reference
        expected = plain.synthesize(mixed).permute(0, 2, 3, 1)
        found = gpu_form(plain).synthesize(mixed)
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min())
        )
        levels = [form(codes, reference, weights).int() for form in (plain, gpu_form(plain))]
    assert levels[0].shape == (3, 16, plain.config.size, 3)
    assert (levels[0] - levels[1]).abs().max() <= 1


SIZES = {
    "as official models": {"num_styles": 18},
    "one map": {"num_styles": 2},
    "two maps": {"num_styles": 5},
    "wide": {"input_height": 48, "input_width": 96},
    "heads for larger inputs": {"head_side": 256},
    "coarse maps of one pixel": {"input_height": 16, "input_width": 16, "head_width": 10},
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_merged_heads_compute_the_same(kind, sizes):
    check_encoder(plain_encoder(kind, **SIZES[sizes]))


@pytest.mark.parametrize("kind", ["w", "naive_w+"])
def test_encoders_without_a_pyramid_compute_the_same(kind):
    check_encoder(plain_encoder(kind))


def check_encoder(plain):
    size = (3, plain.encoder.config.input_height, plain.encoder.config.input_width, 3)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.manual_seed(0))
    with torch.no_grad():
        expected, found = plain(images), gpu_form(plain)(images)
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


def test_positive_numbers_pass_a_prelu_unchanged_in_half_precision():
    layer = PReLU(3)
    layer.weight.data = torch.tensor([0.1, -0.3, 1.7])
    x = torch.randn(2, 3, 4, 4, generator=torch.manual_seed(0))
    torch.testing.assert_close(GpuPReLU(layer)(x), layer.eval()(x))
    halves = GpuPReLU(layer.half())(x.half())
    assert (halves[x > 0] == x.half()[x > 0]).all()


def test_joined_weights_are_read_where_the_portable_graph_has_them(tmp_path):
    plain = plain_encoder("psp", head_width=32, widths=(16, 16, 32, 32), style_dim=32, num_styles=18)
    plain.latent_avg = None
    form, inputs = gpu_form(plain), plain.example_inputs()
    path, weights = trace(plain, inputs, "codes", tmp_path, "encoder", joined=form.joined.values())
    size = weights.stat().st_size
    again = trace_again(form, inputs, "codes", path, name="encoder.gpu", joined=form.joined)
    assert weights.stat().st_size - size < 0.05 * size
    new = onnx.load(again, load_external_data=False).graph.initializer
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in new}
    for name in form.joined:
        assert int(places[name]["offset"]) < size
        assert int(places[name]["length"]) > INLINE_BYTES


def test_the_official_encoder_has_fewer_nodes_than_a_reader_accepts(tmp_path):
    """Thin, but as deep as the official one."""
    config = EncoderConfig(
        style_dim=D, widths=(64, 128, 256, 512), head_width=16, input_height=64, input_width=64
    )
    with torch.device("meta"):
        encoder = Encoder.create(config)
    hidden = sum(block.res_layer[5].fc1.out_channels for block in encoder.body)
    assert hidden == 364
    thin = plain_encoder("psp", num_styles=18, depths=(3, 4, 14, 3), widths=(16, 32, 64, 96))
    form = gpu_form(thin)
    path = trace(thin, thin.example_inputs(), "codes", tmp_path, "encoder")[0]
    again = trace_again(form, thin.example_inputs(), "codes", path, name="again", joined={})
    nodes = len(onnx.load(again, load_external_data=False).graph.node)
    own = sum(block.res_layer[5].fc1.out_channels for block in thin.encoder.body)
    assert nodes + 2 * (hidden - own) + 150 < 2000  # and its casts


@pytest.mark.slow
def test_the_official_sizes_compute_the_same():
    """Weights are drawn so that pictures are neither flat nor saturated."""
    model = draw_model(official("psp", 1024))
    images = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    with torch.no_grad():
        plain = EncoderGraph(model.encoder, model.latent_avg, kind="rgb")
        codes = plain(images)
        assert (gpu_form(plain)(images) - codes).abs().max() <= 1e-5 * (codes.max() - codes.min())
        generator_graph = GeneratorGraph(model.generator)
        pictures = [form(codes, codes, torch.zeros(1, 18)).int()
                    for form in (generator_graph, gpu_form(generator_graph))]  # fmt: skip
    assert pictures[0].float().std() > 20
    assert (pictures[0] - pictures[1]).abs().max() <= 1
