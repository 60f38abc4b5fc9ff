"""The three graphs as files: any batch, bytes in and out, exact rounding, noise, FP16 weights."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from export.graphs import trace as onnx_files
from export.graphs.networks import EncoderGraph, GeneratorGraph, MappingGraph, StyledLayer
from tests.models import oracle
from tests.models.tiny_models import GENERATOR, draw, encoder_config
from trainer.networks import Encoder, Generator

L, D, SIZE = GENERATOR.num_styles, GENERATOR.style_dim, GENERATOR.size


def filled(network):
    """Return a network with drawn weights, for evaluation."""
    rng = np.random.default_rng(0)
    state = {
        name: tensor
        if name.endswith("tracked")
        else torch.from_numpy(draw(rng, name, tuple(tensor.shape))).float()
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def generator(**changes):
    return filled(Generator(replace(GENERATOR, **changes)))


def arrays_of(network, prefix="decoder."):
    return {prefix + name: tensor.double().numpy() for name, tensor in network.state_dict().items()}


def encoder_graph(kind="rgb", channels=3):
    average = torch.linspace(-1, 1, L * D).reshape(L, D)
    config = encoder_config(input_channels=channels)
    return EncoderGraph(filled(Encoder.create(config)), average, kind=kind)


def image_input(batch, channels=3, top=256):
    return {"image": np.random.default_rng(batch).integers(0, top, (batch, 64, 64, channels), dtype=np.uint8)}


def generator_inputs(batch):
    rng = np.random.default_rng(batch)
    codes, reference = rng.normal(size=(2, batch, L, D)).astype(np.float32)
    return {
        "codes": codes,
        "reference": reference,
        "weights": rng.uniform(size=(batch, L)).astype(np.float32),
    }


def mapping_input(batch):
    return {"z": np.random.default_rng(batch).normal(size=(batch, D)).astype(np.float32)}


GRAPHS = {
    "encoder": (encoder_graph, image_input, "codes"),
    "mapping": (lambda: MappingGraph(generator()), mapping_input, "w"),
    "generator": (lambda: GeneratorGraph(generator()), generator_inputs, "image"),
}


def trace(module, inputs, output, folder, name="graph", **options):
    """Write a graph and return its path."""
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    return onnx_files.trace(module, tensors, output, folder, name, **options)[0]


def run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.fixture(scope="module", params=GRAPHS)
def traced(request, tmp_path_factory):
    """A graph as PyTorch module and as file, and what makes its inputs."""
    make, draw_inputs, output = GRAPHS[request.param]
    module = make()
    folder = tmp_path_factory.mktemp(request.param)
    return module, trace(module, draw_inputs(2), output, folder, request.param), draw_inputs


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_batch_may_have_any_size(traced, batch):
    module, path, draw_inputs = traced
    inputs = draw_inputs(batch)
    found = run(path, inputs)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    assert found.shape == expected.shape
    assert found.shape[0] == batch
    tolerance = 1 if found.dtype == np.uint8 else 1e-5 * np.ptp(expected)
    assert np.abs(found.astype(float) - expected.astype(float)).max() <= tolerance
    first = run(path, {name: value[:1] for name, value in inputs.items()})
    assert np.abs(first[0].astype(float) - found[0].astype(float)).max() <= tolerance


def test_names_types_and_shapes_are_those_that_the_runtime_expects(traced):
    expected = {
        "encoder": {"image": ("tensor(uint8)", [64, 64, 3]), "codes": ("tensor(float)", [L, D])},
        "mapping": {"z": ("tensor(float)", [D]), "w": ("tensor(float)", [D])},
        "generator": {
            "codes": ("tensor(float)", [L, D]),
            "reference": ("tensor(float)", [L, D]),
            "weights": ("tensor(float)", [L]),
            "image": ("tensor(uint8)", [SIZE, SIZE, 3]),
        },
    }
    _, path, _ = traced
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = {
        value.name: (value.type, value.shape) for value in [*session.get_inputs(), *session.get_outputs()]
    }
    assert found == {name: (kind, ["N", *shape]) for name, (kind, shape) in expected[path.stem].items()}


def test_the_opset_is_17_and_no_operator_is_of_another_library(traced):
    _, path, _ = traced
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}


def test_large_weights_lie_beside_the_graph_at_multiples_of_64_bytes(traced):
    _, path, _ = traced
    model = onnx.load(path, load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert outside
    for tensor in outside:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        assert fields["location"] == f"{path.stem}.weights"
        assert int(fields["offset"]) % 64 == 0
    inside = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    assert all(tensor.ByteSize() < 2048 for tensor in inside)


@pytest.mark.parametrize(("kind", "channels", "top"), [("rgb", 3, 256), ("gray", 1, 256), ("labels", 6, 6)])
def test_bytes_go_straight_into_a_cast_and_mean_what_they_did_in_training(tmp_path, kind, channels, top):
    graph = encoder_graph(kind, channels)
    inputs = image_input(2, 3 if kind == "rgb" else 1, top)
    path = trace(graph, inputs, "codes", tmp_path)
    readers = [node.op_type for node in onnx.load(path).graph.node if "image" in node.input]
    assert readers == ["Cast"]
    expected = oracle.network_input(inputs["image"], kind, channels)
    found = graph.network_input(torch.from_numpy(inputs["image"]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


class KnownPicture(GeneratorGraph):
    """Shows its codes as the picture."""

    def synthesize(self, codes):
        return codes.reshape(codes.shape[0], 1, 1, -1).expand(-1, 3, -1, -1)


def test_pictures_are_rounded_half_up_and_clamped(tmp_path):
    levels = np.array([-1e6, -1, -0.5, 0, 0.49, 0.5, 1.49, 1.5, 127.5, 254.49, 254.5, 255, 256, 1e6])
    expected = [0, 0, 0, 0, 0, 1, 1, 2, 128, 254, 255, 255, 255, 255]
    codes = np.zeros((1, L, D), np.float32)
    codes.reshape(-1)[: len(levels)] = (levels + 1e-4) / 127.5 - 1  # a hair above, for float32's sake
    inputs = {"codes": codes, "reference": np.zeros_like(codes), "weights": np.zeros((1, L), np.float32)}
    path = trace(KnownPicture(generator()), inputs, "image", tmp_path)
    found = run(path, inputs)
    assert found.shape == (1, 1, L * D, 3)
    for channel in range(3):
        assert found[0, 0, : len(levels), channel].tolist() == expected


def test_each_row_moves_its_own_share_towards_the_reference(tmp_path):
    path = trace(GeneratorGraph(generator()), generator_inputs(2), "image", tmp_path)
    inputs = generator_inputs(3)
    share = inputs["weights"][:, :, None]
    codes = (1 - share) * inputs["codes"] + share * inputs["reference"]
    expected = oracle.generate(arrays_of(generator()), codes)
    expected = np.moveaxis(np.clip(expected * 127.5 + 127.5, 0, 255), 1, 3)
    assert np.abs(run(path, inputs) - expected).max() < 0.55
    ends = dict.fromkeys(("codes", "reference"), inputs["codes"])
    ends["reference"] = inputs["reference"]
    whole = run(path, {**ends, "weights": np.ones((3, L), np.float32)})
    np.testing.assert_array_equal(
        whole,
        run(path, {**ends, "codes": inputs["reference"], "weights": np.zeros((3, L), np.float32)}),
    )


def test_constant_noise_is_the_checkpoints_and_none_leaves_it_out():
    network = generator()
    codes = torch.from_numpy(generator_inputs(2)["codes"])
    with torch.no_grad():
        pictures = {
            noise: GeneratorGraph(network, noise=noise).synthesize(codes).numpy()
            for noise in ("const", "none")
        }
    arrays = arrays_of(network)
    for noise, picture in pictures.items():
        expected = oracle.generate(arrays, codes.numpy(), noise=noise == "const")
        np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-4)
    assert np.abs(pictures["const"] - pictures["none"]).max() > 0.1


def test_random_noise_is_new_at_every_run_and_for_every_picture(tmp_path):
    path = trace(GeneratorGraph(generator(), noise="random"), generator_inputs(2), "image", tmp_path)
    same = {name: np.repeat(value, 2, axis=0) for name, value in generator_inputs(1).items()}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    first, second = (session.run(None, same)[0] for _ in range(2))
    assert first.shape == second.shape == (2, SIZE, SIZE, 3)
    assert (first != second).any()
    assert (first[0] != first[1]).any()
    for batch in (1, 3):
        assert len(session.run(None, generator_inputs(batch))[0]) == batch


def test_random_noise_has_the_learned_strength_and_one_channel():
    network = generator()
    network.conv1.activate.bias += 1000  # on the straight half of the activation
    plain, noisy = (StyledLayer(network.conv1, network.noises[0], noise) for noise in ("none", "random"))
    x = torch.randn(1, 8, 128, 128, generator=torch.Generator().manual_seed(0))
    style = torch.zeros(1, D)
    torch.manual_seed(0)
    added = noisy(x, style) - plain(x, style)
    strength = abs(network.conv1.noise.weight.item()) * 2**0.5
    assert added.std().item() == pytest.approx(strength, rel=0.05)
    torch.testing.assert_close(added[:, 0], added[:, 5], rtol=0, atol=1e-3)


def test_a_clamp_bounds_every_layer():
    layer = GeneratorGraph(generator(conv_clamp=0.25)).conv1
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    found = layer(x, torch.zeros(2, D))
    assert found.abs().max() == 0.25

    codes = torch.from_numpy(generator_inputs(2)["codes"])
    network = generator(conv_clamp=0.05)
    for to_rgb in network.to_rgbs:
        to_rgb.upsample.kernel.copy_(torch.full((4, 4), 0.25))  # adds up to 1 for every pixel
    picture = GeneratorGraph(network).synthesize(codes)
    assert 0.05 < picture.abs().max() <= 0.05 * 4  # four resolutions, each within the clamp
    torch.testing.assert_close(picture, network(codes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["encoder", "mapping", "generator"])
def test_weights_stored_as_fp16_are_the_rounded_ones(tmp_path, name):
    make, draw_inputs, output = GRAPHS[name]
    module, inputs = make(), draw_inputs(2)
    with torch.no_grad():
        exact = module(*(torch.from_numpy(value) for value in inputs.values())).numpy().astype(float)
        onnx_files.round_to_fp16([module])
        expected = module(*(torch.from_numpy(value) for value in inputs.values())).numpy().astype(float)
    path = trace(module, inputs, output, tmp_path, storage="fp16")
    found = run(path, inputs).astype(float)
    tolerance = 1 if output == "image" else 1e-5 * np.ptp(expected)
    assert np.abs(found - expected).max() <= tolerance
    assert (exact != expected).any()
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer if large(tensor)}
    assert kinds == {TensorProto.FLOAT16}


def large(tensor):
    return numpy_helper.to_array(tensor).size * 4 > 1024


def test_the_exported_networks_leave_the_generator_as_it_was():
    network = generator()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    onnx_files.round_to_fp16([GeneratorGraph(network), MappingGraph(network)])
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
