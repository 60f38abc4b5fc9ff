"""FP16 graphs: what is FP16 and what is not, that nothing overflows, and how close they are to FP32."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from export import cli, parity
from export.__main__ import main
from export.checkpoints import load as checkpoints
from export.engine import Settings, export_engine
from export.errors import ParityError
from export.graphs import activations, fp16
from export.graphs.activations import measure
from export.graphs.gpu import gpu_form
from export.graphs.networks import GeneratorGraph
from export.graphs.trace import trace_again
from psp_rt import EngineFile, FormatError, InputError, Translator
from tests.export.test_graphs import generator, generator_inputs, trace
from tests.models import conformance, tiny_engine, tiny_models
from tests.models.tiny_models import GENERATOR, encoder_config
from trainer.networks.generator import ModulatedConv
from trainer.networks.layers import binomial_kernel

L, D = GENERATOR.num_styles, GENERATOR.style_dim
SKETCH = Path(__file__).parents[2] / "models" / "sketch.engine"
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module", params=["psp", "e4e", "w", "naive_w+"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def exported(kind, tmp_path_factory):
    """A tiny engine of each kind with FP16 graphs, and its parts in a folder."""
    folder = tmp_path_factory.mktemp("fp16")
    tiny_models.write_official(folder / "a.pt", encoder_config(kind))
    manifest = export_engine(
        checkpoints.load(folder / "a.pt"), folder / "a.engine", Settings(precision="fp16")
    )
    with zipfile.ZipFile(folder / "a.engine") as archive:
        archive.extractall(folder)
    return manifest, folder


def types(path):
    """Return the type of every floating-point tensor that a node of a graph makes, by the node's name."""
    model = onnx.load(path, load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in [*graph.value_info, *graph.output, *graph.input]
    }
    return {
        node.name: known[node.output[0]]
        for node in graph.node
        if known.get(node.output[0]) in (HALF, SINGLE) and node.op_type not in ("Cast", "Constant")
    }


def test_fp16_is_within_40_db_of_fp32_and_the_manifest_says_so(exported):
    manifest, _ = exported
    assert manifest.precision == "fp16"
    assert manifest.parity["fp16_generator_psnr_db"] > 50
    assert manifest.parity["fp16_end_to_end_psnr_db"] > 40
    assert set(manifest.fp32_layers) == {"generator", "encoder"}


def test_all_convolutions_on_maps_are_fp16(exported):
    _, folder = exported
    for name in ("generator", "encoder"):
        of = {node: kind for node, kind in types(folder / f"{name}.fp16.onnx").items() if "/Conv" in node}
        assert {kind for node, kind in of.items() if "/to_rgb" not in node} == {HALF}
        assert {kind for node, kind in of.items() if "/to_rgb" in node} <= {SINGLE}


def test_styles_demodulation_colors_and_rounding_stay_fp32(exported):
    _, folder = exported
    of = types(folder / "generator.fp16.onnx")
    styles = [node for node in of if node.startswith("/styles/")]
    colors = [node for node in of if re.match(r"/to_rgb.*/(Add|Add_1|ReduceSum.*|ConvTranspose|Clip)$", node)]
    rounding = [node for node in of if re.fullmatch(r"/(Mul_3|Add_1|Clip)", node)]
    assert len([node for node in styles if re.search("Gemm|MatMul|ReduceMax|Sqrt|Div", node)]) == 7
    assert len(colors) == 4 * 4 + 2 * 3
    assert len(rounding) == 3
    assert {of[node] for node in [*styles, *colors, *rounding]} == {SINGLE}


def test_gates_norms_and_codes_stay_fp32(exported):
    _, folder = exported
    of = types(folder / "encoder.fp16.onnx")
    kept = [node for node in of if re.search("ReduceMean|Sigmoid|BatchNorm|Gemm|MatMul|/Stack", node)]
    assert len(kept) > 12
    assert {of[node] for node in kept} == {SINGLE}


def test_inputs_and_outputs_are_those_of_the_fp32_graphs(exported):
    _, folder = exported
    for name in ("generator", "encoder"):
        single, half = (onnx.load(folder / f"{name}{end}", load_external_data=False).graph
                        for end in (".onnx", ".fp16.onnx"))  # fmt: skip
        assert list(half.input) == list(single.input)
        assert list(half.output) == list(single.output)


def test_an_8_bit_tensor_feeds_only_a_cast_and_comes_only_from_one(exported):
    """TensorRT allows no other."""
    _, folder = exported
    for end in (".onnx", ".fp16.onnx"):
        encoder = onnx.load(folder / f"encoder{end}", load_external_data=False).graph
        assert [node.op_type for node in encoder.node if "image" in node.input] == ["Cast"]
        picture = onnx.load(folder / f"generator{end}", load_external_data=False).graph
        assert [node.op_type for node in picture.node if "image" in node.output] == ["Cast"]


# Weights.


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_no_weight_is_stored_twice(tmp_path, storage):
    sizes = replace(GENERATOR, channels=(48, 48, 32))
    tiny_models.write_official(tmp_path / "a.pt", encoder_config(num_styles=6), generator=sizes)
    model = checkpoints.load(tmp_path / "a.pt")
    model = replace(model, encoder=None, input=None)
    export_engine(model, tmp_path / "a.engine", Settings(storage=storage, precision="fp16"))
    with EngineFile.open(tmp_path / "a.engine") as file:
        assert [name for name in file.names if name.endswith(".weights")] == [
            "generator.weights",
            "mapping.weights",
        ]
        graphs = {name: onnx.load_model_from_string(bytes(file.view(f"{name}.onnx"))).graph
                  for name in ("generator", "generator.fp16")}  # fmt: skip
        size = len(file.view("generator.weights"))
    places = {name: [place(tensor) for tensor in graph.initializer if tensor.external_data]
              for name, graph in graphs.items()}  # fmt: skip
    assert {location for found in places.values() for location, _, _ in found} == {"generator.weights"}

    # No weight is in the graph itself.
    inside = [tensor for tensor in graphs["generator.fp16"].initializer if not tensor.external_data]
    assert max(len(tensor.raw_data) for tensor in inside) <= 1024
    assert sum(len(tensor.raw_data) for tensor in inside) < 0.1 * size

    # What only the FP16 graph reads is less than a hundredth: constants in another arrangement.
    read = [{at for _, offset, length in found for at in range(offset, offset + length)}
            for found in places.values()]  # fmt: skip
    assert len(read[1] - read[0]) < 0.03 * size
    joined = {tensor.name.removesuffix("_fp16"): tensor for tensor in graphs["generator.fp16"].initializer}
    weight = joined["styles.affine_weight"]
    assert list(weight.dims) == [48 * 6 + 32 * 2, 20]
    assert weight.data_type == (HALF if storage == "fp16" else SINGLE)
    kernels = {
        node.input[1]
        for node in graphs["generator.fp16"].node
        if node.op_type == "Conv" and "fir" not in node.input[1]
    }
    casts = {node.output[0] for node in graphs["generator.fp16"].node if node.op_type == "Cast"}
    assert kernels <= casts if storage == "fp32" else not kernels & casts


def test_a_reader_accepts_graphs_as_wide_as_the_official_ones(tmp_path):
    sizes = replace(GENERATOR, channels=(512, 512, 32))
    tiny_models.write_official(tmp_path / "a.pt", encoder_config(num_styles=6), generator=sizes)
    model = replace(checkpoints.load(tmp_path / "a.pt"), encoder=None, input=None)
    export_engine(model, tmp_path / "a.engine", Settings(storage="fp16", precision="fp16", force=True))
    with EngineFile.open(tmp_path / "a.engine") as file:
        assert file.graph("generator.fp16")


def place(tensor):
    """Return the file, the offset and the length of a tensor outside of its graph."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries["offset"]), int(entries["length"])


# Range.


def gpu_traced(module, inputs, path):
    """Write the GPU's form of a generator and return its path."""
    form, tensors = gpu_form(module), {key: torch.from_numpy(value) for key, value in inputs.items()}
    return trace_again(form, tensors, "image", path, name=f"{path.stem}.gpu", joined=form.joined)


def emulate(module, inputs, folder, *, name="graph"):
    """Return the FP32 pictures of a generator, the emulated FP16 ones, and which layers stay FP32."""
    path = trace(module, inputs, "image", folder, name)
    exact = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    again = gpu_traced(module, inputs, path)
    half, moved = fp16.write(again, measure(again, [inputs]))
    return exact, activations.emulating_session(half).run(None, inputs)[0], moved


def demodulated(network):
    return [network.conv1, *network.convs]


def spread(network):
    """Give the weights of demodulated layers unit variance, and filters that keep a plain map plain."""
    for layer in demodulated(network):
        layer.conv.weight.data /= layer.conv.weight.data.std()
    for name, kernel in network.named_buffers():
        if name.endswith("kernel"):
            kernel.copy_(binomial_kernel())
    return network


def enlarge(network):
    """Make demodulated layers' styles 100 times and weights 30 times as large: the picture is the same."""
    for layer in demodulated(network):
        layer.conv.modulation.weight.data *= 100
        layer.conv.modulation.bias.data *= 100
        layer.conv.weight.data *= 30
    return network


def in_fp16_throughout(self, x, style):
    """Modulated convolution as a naive build computes it: no normalisation, the energy in FP16."""
    weight, scale = self.scaled_weight.to(x.dtype), self.modulation(style)
    x = x * scale[:, :, None, None]
    if self.up:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        x = F.conv2d(x, self.blur.kernel.expand(len(weight), 1, 4, 4), padding=1, groups=len(weight))
    else:
        x = F.conv2d(x, weight, padding=self.padding)
    if not self.demodulate:
        return x
    energy = scale.square() @ weight.square().sum(dim=(2, 3)).T
    return x * (energy + 1e-8).rsqrt()[:, :, None, None]


def test_large_styles_and_weights_survive_where_the_naive_form_is_flat(tmp_path, monkeypatch):
    inputs = generator_inputs(3) | {"weights": np.zeros((3, L), np.float32)}
    exact, half, _ = emulate(GeneratorGraph(spread(generator()), noise="none"), inputs, tmp_path)
    _, same, moved = emulate(GeneratorGraph(enlarge(spread(generator())), noise="none"), inputs, tmp_path)
    assert moved == ()
    assert parity.psnr_db(same, half) > 50
    assert parity.psnr_db(same, exact) > 50

    monkeypatch.setattr(ModulatedConv, "forward", in_fp16_throughout)
    with torch.no_grad():
        codes = torch.from_numpy(inputs["codes"])
        naive = enlarge(spread(generator())).half()(codes.half(), noise="none").float()
        tame = spread(generator())(codes, noise="none")
    flat = naive[:, :, 12:-12, 12:-12].std(dim=(2, 3))
    assert flat.max() < 0.01 * tame[:, :, 12:-12, 12:-12].std(dim=(2, 3)).max()


def loud(network):
    """Give the last layer a bias that leaves FP16's range with the activation, and colors that fit to it."""
    network.convs[5].activate.bias.data += 50_000
    network.to_rgbs[2].conv.weight.data /= 50_000
    return network


LOUD = "/convs.5/Add"  # the addition of the bias


def test_layers_that_would_overflow_stay_fp32_and_the_rest_does_not(tmp_path, monkeypatch):
    inputs = generator_inputs(2)
    exact, half, moved = emulate(GeneratorGraph(loud(generator())), inputs, tmp_path)
    assert parity.psnr_db(half, exact) > 45
    assert moved == (LOUD,)
    of = types(tmp_path / "graph.fp16.onnx")
    assert {of[name] for name in (LOUD, "/convs.5/LeakyRelu", "/to_rgbs.2/Mul_1")} == {SINGLE}
    assert {of[name] for name in ("/convs.5/Conv", "/convs.4/LeakyRelu", "/to_rgbs.1/Mul_1")} == {HALF}
    assert np.ptp(exact) > 60

    monkeypatch.setattr(fp16, "LIMIT", np.inf)
    with np.errstate(over="ignore"):
        _, broken, moved = emulate(GeneratorGraph(loud(generator())), inputs, tmp_path)
    assert moved == ()
    assert parity.psnr_db(broken, exact) < 30


def test_the_margin_is_a_factor_of_four(tmp_path):
    inputs = generator_inputs(1)
    path = trace(GeneratorGraph(generator()), inputs, "image", tmp_path)
    measured, model = measure(path, [inputs]), onnx.load(path, load_external_data=False)
    name = "/convs.2/LeakyRelu_output_0"
    for largest, expected in ((65504 / 4 - 1, False), (65504 / 4 + 1, True)):
        changed = measured | {name: replace(measured[name], largest=largest)}
        assert ("/convs.2/LeakyRelu" in fp16.decide(model, changed).moved) == expected


def test_maxima_are_those_of_all_inputs(tmp_path):
    inputs = generator_inputs(2)
    path = trace(GeneratorGraph(generator()), inputs, "image", tmp_path)
    each = [{name: value[at : at + 1] for name, value in inputs.items()} for at in (0, 1)]
    name = "/convs.3/LeakyRelu_output_0"
    apart = [measure(path, [feeds])[name].largest for feeds in each]
    assert apart[0] != apart[1]
    assert measure(path, each)[name].largest == max(apart) == measure(path, each[::-1])[name].largest
    assert measure(path, each)[name].shape == (1, 6, 16, 16)


def test_a_clamp_of_the_checkpoint_stands_in_the_fp16_graph(tmp_path):
    clamped = GeneratorGraph(generator(conv_clamp=0.5))
    exact, half, _ = emulate(clamped, generator_inputs(2), tmp_path)
    of = types(tmp_path / "graph.fp16.onnx")
    clips = {name: kind for name, kind in of.items() if name.endswith("/Clip") and "/conv/" not in name}
    assert {kind for name, kind in clips.items() if name.startswith("/conv")} == {HALF}
    assert sum(name.startswith("/conv") for name in clips) == 7
    assert parity.psnr_db(half, exact) > 50


# Emulation.


def test_an_emulated_graph_rounds_every_number_as_numpy_does(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=HALF),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Mul", ["b", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=SINGLE),
    ]
    x = helper.make_tensor_value_info("x", SINGLE, ["N"])
    y = helper.make_tensor_value_info("y", SINGLE, ["N"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    values = np.array([1.0001, 3.14159, 255.9, 70000, 1e-9, -0.1], np.float32)
    with np.errstate(over="ignore"):
        once = values.astype(np.float16)
        expected = ((once * once) * (once * once)).astype(np.float32)
    found = activations.emulating_session(tmp_path / "g.onnx").run(None, {"x": values})[0]
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(found[3])
    assert [file.name for file in tmp_path.iterdir()] == ["g.onnx"]


# The command, the gate and the pictures.


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "psp.pt"
    tiny_models.write_official(path)
    return path


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_fp16_that_is_off_is_refused_and_fp32_offered(official, tmp_path, monkeypatch):
    model = replace(checkpoints.load(official), encoder=None, input=None)
    loud(model.generator)
    monkeypatch.setattr(fp16, "LIMIT", np.inf)
    with pytest.raises(
        ParityError, match=r"fp16_generator_psnr_db is .*at least 40.*--precision fp32, or .*--force"
    ):
        export_engine(model, tmp_path / "a.engine", Settings(precision="fp16"))
    assert list(tmp_path.iterdir()) == []
    manifest = export_engine(model, tmp_path / "a.engine", Settings(precision="fp16", force=True))
    assert manifest.parity["fp16_generator_psnr_db"] < 40


def test_layers_kept_in_fp32_are_named_in_the_output_and_in_the_manifest(official, tmp_path, monkeypatch):
    load = checkpoints.load

    def load_loud(*args, **options):
        model = load(*args, **options)
        return replace(model, generator=loud(model.generator))

    monkeypatch.setattr(cli, "load", load_loud)
    output = tmp_path / "a.engine"
    done = CliRunner().invoke(main, [str(official), "-o", str(output), "--precision", "fp16"])
    assert done.exit_code == 0, done.output
    assert re.search(rf"in FP32 because of their range, generator: {LOUD}\n", done.output)
    with EngineFile.open(output) as file:
        assert file.manifest.fp32_layers == {"generator": (LOUD,), "encoder": ()}


def test_activations_are_measured_on_the_pictures_given(official, tmp_path, monkeypatch):
    seen = []
    keep = fp16.sample
    monkeypatch.setattr(fp16, "sample", lambda engine, images: seen.append(images) or keep(engine, images))
    for level in (0, 255):
        Image.new("RGB", (64, 64), (level, level, level)).save(tmp_path / f"{level}.png")
    settings = Settings(precision="fp16", pictures=[tmp_path])
    export_engine(checkpoints.load(official), tmp_path / "a.engine", settings)
    assert seen[0].shape == (2, 64, 64, 3)
    assert sorted(seen[0].max(axis=(1, 2, 3))) == [0, 255]


def test_pictures_without_a_use_are_refused(official, tmp_path):
    alone = replace(checkpoints.load(official), encoder=None, input=None)
    with pytest.raises(InputError, match=r"--pictures .* generator alone"):
        export_engine(alone, tmp_path / "a.engine", Settings(precision="fp16", pictures=[tmp_path]))
    with pytest.raises(InputError, match="contains no pictures"):
        export_engine(
            checkpoints.load(official), tmp_path / "a.engine", Settings(precision="fp16", pictures=[tmp_path])
        )


def test_drawn_noise_is_in_the_fp16_graph_too(official, tmp_path):
    model = replace(checkpoints.load(official), encoder=None, input=None)
    export_engine(model, tmp_path / "a.engine", Settings(precision="fp16", noise="random"))
    with EngineFile.open(tmp_path / "a.engine") as file:
        graph = onnx.load_model_from_string(bytes(file.view("generator.fp16.onnx"))).graph
    assert sum(node.op_type.startswith("RandomNormal") for node in graph.node) == 7


def test_an_engine_that_promises_fp16_and_lacks_it_is_refused(tmp_path):
    path = tiny_engine.write_raw(tmp_path / "a.engine", tiny_engine.members(), precision="fp16")
    with pytest.raises(FormatError, match=r"it has no '(encoder|generator).fp16.onnx'"):
        EngineFile.open(path)


# Whole models.


def test_the_demonstration_model_survives_fp16(tmp_path):
    with zipfile.ZipFile(SKETCH) as archive:
        archive.extractall(tmp_path)
    drawing = SKETCH.with_name("drawing.png")
    with Translator(SKETCH, device="cpu") as translator:
        images = fp16.load_pictures([drawing], translator.manifest.input)
    samples = fp16.sample(SKETCH, images)
    for name in ("generator", "encoder"):
        assert fp16.add(tmp_path / f"{name}.onnx", samples)[1] == ()
    figures = fp16.compare(tmp_path, samples)
    assert figures["fp16_generator_psnr_db"] >= 50
    assert figures["fp16_end_to_end_psnr_db"] >= 40


SMALL_CASES = [case for case in conformance.CASES if case.size <= 512]


@pytest.mark.slow
@pytest.mark.skipif(
    not conformance.FOLDER.is_dir(), reason="the conformance vectors are not beside the checkout"
)
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_the_official_models_survive_fp16(case, tmp_path):
    conformance.write_checkpoint(case, tmp_path / "official.pt")
    settings = Settings(precision="fp16")
    manifest = export_engine(checkpoints.load(tmp_path / "official.pt"), tmp_path / "a.engine", settings)
    assert manifest.parity["fp16_generator_psnr_db"] >= 40
    assert manifest.parity["fp16_end_to_end_psnr_db"] >= 40


@pytest.mark.slow
@pytest.mark.skipif(
    not conformance.FOLDER.is_dir(), reason="the conformance vectors are not beside the checkout"
)
def test_large_styles_and_weights_change_nothing_in_an_official_generator(tmp_path):
    inputs = {
        "codes": conformance.vectors(conformance.CASES[0])["codes"][:1],
        "reference": np.zeros((1, 14, 512), np.float32),
        "weights": np.zeros((1, 14), np.float32),
    }
    pictures = []
    for change in (lambda network: network, enlarge):
        network = change(conformance.generator(256))
        exact, half, moved = emulate(GeneratorGraph(network), inputs, tmp_path)
        assert moved == ()
        pictures += [exact, half]
    assert np.ptp(pictures[0]) > 60
    assert min(parity.psnr_db(picture, pictures[0]) for picture in pictures[1:]) > 50
