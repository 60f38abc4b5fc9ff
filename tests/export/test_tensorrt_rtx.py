"""TensorRT for RTX parses and builds our graphs on a machine without a GPU, in the types we mean.

It has TensorRT 11's parser and strongly typed builder. `make rtx-test` installs it.
"""

import json
import zipfile
from dataclasses import replace

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from export.__main__ import main
from export.checkpoints import load as checkpoints
from export.engine import Settings, export_engine
from export.inspect.kernels import Card, RtxBuilder, count_kernels
from export.inspect.layers import read_layers
from export.inspect.report import named_graph
from psp_rt import BackendError, EngineFile
from psp_rt.engine.walk import OPERATORS
from tests.models import tiny_models
from tests.models.tiny_models import GENERATOR, encoder_config
from trainer.networks import EncoderConfig, GeneratorConfig, official_channels

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.filterwarnings("ignore:.*TensorRT-RTX:DeprecationWarning"),  # of timing caches
]

WIDE = replace(GENERATOR, channels=(16, 16, 16, 8, 8))  # 64 pixels


@pytest.fixture(scope="session")
def trt():
    return pytest.importorskip("tensorrt_rtx_bindings")


def engine(folder, kind="psp", *, generator=GENERATOR, storage="fp32", noise="const", channels=3):
    encoder = encoder_config(kind, num_styles=generator.num_styles, input_channels=channels)
    options = {"dataset_type": "celebs_seg_to_face", "label_nc": channels} if channels > 3 else {}
    tiny_models.write_official(folder / "a.pt", encoder, generator, **options)
    model = checkpoints.load(folder / "a.pt")
    settings = Settings(precision="fp16", storage=storage, noise=noise, force=True)
    export_engine(model, folder / "a.engine", settings)
    return folder / "a.engine"


CASES = {
    "psp": {},
    "psp, weights in FP16": {"storage": "fp16"},
    "e4e, drawn noise": {"kind": "e4e", "noise": "random"},
    "w, one channel, no noise": {"kind": "w", "channels": 1, "noise": "none"},
    "naive w+, labels": {"kind": "naive_w+", "channels": 19},
    "64 pixels": {"generator": WIDE, "storage": "fp16"},
}


@pytest.fixture(scope="module", params=CASES)
def path(request, tmp_path_factory):
    return engine(tmp_path_factory.mktemp("rtx"), **CASES[request.param])


def intended(path, name):
    """Return the type of each floating-point tensor in a graph, as onnx infers it."""
    with zipfile.ZipFile(path) as archive:
        model = onnx.load_model_from_string(archive.read(f"{name}.onnx"))
    graph = onnx.shape_inference.infer_shapes(model).graph
    made = {name for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info if value.name in made}
    return {name: kind for name, kind in types.items() if kind in (TensorProto.FLOAT, TensorProto.FLOAT16)}


def test_every_graph_parses_and_builds_in_the_types_of_the_graph(path, trt):
    builder = RtxBuilder(trt)
    of = {trt.DataType.HALF: TensorProto.FLOAT16, trt.DataType.FLOAT: TensorProto.FLOAT}
    with EngineFile.open(path) as file:
        for name in ("encoder.fp16", "generator.fp16", "mapping"):
            network = builder.parse(file, name)
            expected, seen = intended(path, name), {}
            for index in range(network.num_layers):
                layer = network.get_layer(index)
                for output in range(layer.num_outputs):
                    tensor = layer.get_output(output)
                    seen[tensor.name] = of.get(tensor.dtype)
            compared = expected.keys() & seen.keys()
            assert len(compared) > 0.6 * len(expected)
            assert {name: seen[name] for name in compared} == {name: expected[name] for name in compared}
            halves = sum(kind == TensorProto.FLOAT16 for kind in expected.values())
            assert (halves > 20) == name.endswith("fp16")
            assert len(builder.build(network)) > 10_000


def test_the_fp32_graphs_build_as_well(tmp_path, trt):
    builder = RtxBuilder(trt)
    with EngineFile.open(engine(tmp_path)) as file:
        for name in ("encoder", "generator"):
            assert len(builder.build(builder.parse(file, name))) > 10_000


def test_a_graph_that_tensorrt_cannot_read_is_an_error_with_its_reason(tmp_path, trt, monkeypatch):
    with EngineFile.open(engine(tmp_path)) as file:
        graph = onnx.load_model_from_string(bytes(file.view("mapping.onnx")))
        # Our own check would refuse the operator first.
        monkeypatch.setitem(OPERATORS, "Det", OPERATORS[graph.graph.node[0].op_type])
        graph.graph.node[0].op_type = "Det"
        view, data = file.view, graph.SerializeToString()
        monkeypatch.setattr(
            file, "view", lambda name: memoryview(data) if name == "mapping.onnx" else view(name)
        )
        with pytest.raises(BackendError, match=r"TensorRT cannot read mapping.onnx: .*Det"):
            RtxBuilder(trt).parse(file, "mapping")


def test_the_build_says_how_far_it_is(tmp_path, trt):
    steps = []
    builder = RtxBuilder(trt)
    with EngineFile.open(engine(tmp_path)) as file:
        builder.build(builder.parse(file, "mapping"), progress=lambda *step: steps.append(step))
    assert len(steps) > 10
    assert all(0 <= done <= whole for _, done, whole in steps)


# Kernels and megabytes. The bounds are what was measured and a twentieth more.


def test_the_graphs_keep_their_few_kernels(tmp_path, trt):
    path = engine(tmp_path, generator=WIDE)
    with EngineFile.open(path) as file:
        graphs = {graph.graph: graph for graph in count_kernels(file, batch=1)}
        layers = {name: read_layers(named_graph(file, name), batch=1) for name in graphs}
    found = {name: len(graph.kernels) for name, graph in graphs.items()}
    assert found["encoder.fp16"] <= 53
    assert found["generator.fp16"] <= 35
    for name, graph in graphs.items():
        assert sum(kernel.macs for kernel in graph.kernels) == sum(layer.macs for layer in layers[name])
        assert 0.2 < graph.megabytes < 2
        card, faster = Card(), Card(bandwidth_tb_s=30)
        assert 0 < graph.us(faster) <= graph.us(card)
        assert graph.us(card) >= 1.5 * len(graph.kernels)


def test_the_command_counts_kernels(tmp_path, trt):
    path = engine(tmp_path)
    words = ["inspect", str(path), "--kernels", "--batch", "2", "--json", str(tmp_path / "k.json")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "k.json").read_text())
    assert set(found["graphs"]) == {"encoder.fp16", "generator.fp16"}
    graph = found["graphs"]["generator.fp16"]
    assert graph["batch"] == 2
    assert len(graph["costliest"]) == 15
    assert any("/convs.5/Conv" in kernel["layers"] for kernel in graph["costliest"])
    assert f"together: {found['kernels']} kernels" in done.output


@pytest.mark.slow
def test_the_full_size_pair_parses_and_builds(tmp_path, trt):
    """The official sizes, with drawn weights."""
    sizes = GeneratorConfig(channels=official_channels(1024))
    encoder = EncoderConfig(num_styles=sizes.num_styles)
    tiny_models.write_official(tmp_path / "a.pt", encoder, sizes)
    model = checkpoints.load(tmp_path / "a.pt")
    (tmp_path / "a.pt").unlink()
    manifest = export_engine(
        model, tmp_path / "a.engine", Settings(precision="fp16", storage="fp16", force=True)
    )
    with EngineFile.open(tmp_path / "a.engine") as file:
        for batch, kernels, megabytes in ((1, 215, 1900), (8, 225, 13_100)):
            graphs = count_kernels(file, batch=batch)
            assert sum(len(graph.kernels) for graph in graphs) <= kernels
            assert sum(graph.megabytes for graph in graphs) <= megabytes
        assert manifest.parity["fp16_end_to_end_psnr_db"] > 40
