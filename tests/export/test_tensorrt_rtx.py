"""TensorRT for RTX parses and builds our graphs on a machine without a GPU, in the types we mean.

It has TensorRT 11's parser and strongly typed builder. `make rtx-test` installs it.
"""

import zipfile
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto

from export.checkpoints import load as checkpoints
from export.engine import Settings, export_engine
from psp_rt import BackendError, EngineFile
from psp_rt.build import BuildOptions
from psp_rt.engine.walk import OPERATORS
from tests.models import tiny_models
from tests.models.rtx import RtxBuilder
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


@pytest.mark.slow
def test_the_full_size_pair_parses_and_builds(tmp_path, trt):
    """The official sizes, with drawn weights."""
    sizes = GeneratorConfig(channels=official_channels(1024))
    encoder = EncoderConfig(num_styles=sizes.num_styles)
    tiny_models.write_official(tmp_path / "a.pt", encoder, sizes)
    model = checkpoints.load(tmp_path / "a.pt")
    (tmp_path / "a.pt").unlink()
    export_engine(model, tmp_path / "a.engine", Settings(precision="fp16", storage="fp16", force=True))
    builder = RtxBuilder(trt, BuildOptions(batches=(1, 1, 1)))
    with EngineFile.open(tmp_path / "a.engine") as file:
        for name in ("generator.fp16", "encoder.fp16"):
            weights = len(file.view(f"{name.removesuffix('.fp16')}.weights"))
            assert len(builder.build(builder.parse(file, name))) > weights // 2
