"""python -m export inspect: what an engine computes, in which precision, where its time and its error are."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from export import plan_layers
from export.__main__ import main
from export.engine import Settings, export_engine
from export.graphs import emulation, half_precision
from export.inspect import differences as layer_differences
from export.inspect.differences import compare
from export.inspect.layers import read_layers
from export.parity import psnr_db
from psp_rt import EngineFile, PlanError
from psp_rt.hardware.probe import Driver
from tests.models import tiny_engine, tiny_models
from tests.models.tiny_models import encoder_config
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins.tensorrt_runtime import Inspector

ROOT = Path(__file__).parents[2]
SKETCH = ROOT / "models" / "sketch.engine"
VERSIONS = ["8.6.1", "10.13.3.9", "11.0.0.114"]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A folder with a tiny engine that has FP16 graphs, its parts, and a picture."""
    folder = tmp_path_factory.mktemp("half")
    write_half(folder)
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(folder / "picture.png")
    with zipfile.ZipFile(folder / "a.engine") as archive:
        archive.extractall(folder)
    return folder


def write_half(folder, **settings):
    from export.checkpoints import load as checkpoints

    tiny_models.write_official(folder / "a.pt", encoder_config())
    export_engine(
        checkpoints.load(folder / "a.pt"), folder / "a.engine", Settings(precision="fp16", **settings)
    )


def inspect(*words):
    return CliRunner().invoke(main, ["inspect", *map(str, words)])


def inspected(path, *words, folder):
    """Return what --json writes."""
    done = inspect(path, *words, "--json", folder / "found.json")
    assert done.exit_code == 0, done.output

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "found.json").read_text(), parse_constant=refuse)


# The layers of the graphs.


def test_a_graph_is_counted_whole(tmp_path):
    found = inspected(SKETCH, folder=tmp_path)
    with EngineFile.open(SKETCH) as engine:
        for name in ("encoder", "mapping", "generator"):
            model = onnx.load_model_from_string(bytes(engine.view(f"{name}.onnx")))
            floats = [tensor for tensor in model.graph.initializer if tensor.data_type in (1, 10)]
            layers = found["graphs"][name]["layers"]
            assert sum(layer["parameters"] for layer in layers) == sum(
                np.prod(tensor.dims, dtype=int) for tensor in floats
            )
            convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
            assert [layer["name"] for layer in layers if layer["operator"] == "Conv"] == [
                node.name for node in convolutions
            ]
            assert all(layer["macs"] > 0 for layer in layers if layer["operator"] in ("Conv", "Gemm"))


def test_each_operator_has_its_line(tmp_path):
    done = inspect(SKETCH)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["ConvTranspose", "5", "650", "k", "76.1", "M", "5", "fp32"] in lines
    assert "islands" not in done.output


def test_every_layer_is_printed_on_request():
    done = inspect(SKETCH, "--layers")
    (line,) = [line for line in done.output.splitlines() if line.startswith("/convs.7/LeakyRelu ")]
    assert line.split()[1:4] == ["LeakyRelu", "fp32", "1x32x64x64"]


def test_islands_of_an_fp16_graph_are_named_and_nothing_else_is(half, tmp_path):
    found = inspected(half / "a.engine", folder=tmp_path)["graphs"]
    for name in ("encoder", "generator"):
        layers = {layer["name"]: layer for layer in found[f"{name}.fp16"]["layers"]}
        islands = {name for name, layer in layers.items() if layer["island"]}
        assert all(layers[name]["precision"] == "fp32" for name in islands)
        assert not any(layer["island"] for layer in found[name]["layers"])
        assert not any(layer["island"] for layer in layers.values() if layer["operator"] == "Cast")
    assert "/convs.0/affine/Gemm" in islands
    assert "/convs.0/LeakyRelu" not in islands
    output = inspect(half / "a.engine").output
    assert f"islands in FP32: {len(islands)} of {len(layers)} layers" in output
    assert "  /convs.*/affine: 6 Gemm" in output


def test_layers_kept_for_their_range_are_told(half, tmp_path):
    with zipfile.ZipFile(half / "a.engine") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    manifest["fp32_layers"]["generator"] = ["/convs.5/conv/Add_1"]
    with zipfile.ZipFile(tmp_path / "b.engine", "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
            archive.writestr(name, data)
    assert "of these for their range: /convs.5/conv/Add_1" in inspect(tmp_path / "b.engine").output


def test_a_graph_that_reaches_outside_its_engine_is_refused(tmp_path):
    model, _ = tiny_engine.encoder_graph("rgb", location="/etc/passwd")
    files = tiny_engine.members() | {"encoder.onnx": model.SerializeToString()}
    path = tiny_engine.write_raw(tmp_path / "a.engine", files)
    done = inspect(path, "--time")
    assert done.exit_code == 1
    assert "encoder.onnx refers to the file '/etc/passwd'" in done.output


def test_an_engine_that_others_made_is_shown_as_well(tmp_path):
    found = inspected(tiny_engine.build(tmp_path / "a.engine"), "--time", folder=tmp_path)
    assert [layer["name"] for layer in found["graphs"]["mapping"]["layers"]] == ["scaled", "w"]


# Their times.


def test_times_belong_to_layers_and_add_up(tmp_path):
    graph = inspected(SKETCH, "--time", "--threads", 1, folder=tmp_path)["graphs"]["encoder"]
    times, layers = graph["times"]["by_layer"], {layer["name"]: layer for layer in graph["layers"]}
    assert times.keys() <= layers.keys()
    convolutions = [name for name, layer in layers.items() if layer["operator"] == "Conv"]
    assert set(convolutions) <= times.keys()  # also those that ONNX Runtime gave their activation
    assert "/encoder/styles.9/convs/convs.1/LeakyRelu" not in times
    assert sum(times[name] for name in convolutions) > 0.2 * sum(times.values())
    assert set(graph["times"]["added"]) <= {"ReorderInput", "ReorderOutput"}


def test_shares_of_the_time_add_up_to_the_whole():
    output = inspect(SKETCH, "--time").output
    mapping = output.partition("mapping.onnx")[2].partition("generator.onnx")[0]
    shares = [float(line.split()[-2]) for line in mapping.splitlines() if line.endswith("%")]
    assert len(shares) >= 5
    assert sum(shares) == pytest.approx(100, abs=1)


def test_fp16_graphs_are_not_timed_on_a_cpu(half, tmp_path):
    found = inspected(half / "a.engine", "--time", folder=tmp_path)["graphs"]
    assert found["generator.fp16"]["times"] is None
    assert found["generator"]["times"]["runs"] == 10


# FP16 beside FP32.


def test_the_result_of_the_comparison_is_that_of_the_export(half, tmp_path):
    picture = half / "picture.png"
    found = inspected(half / "a.engine", "--compare", "--pictures", picture, folder=tmp_path)["differences"]
    assert set(found) == {"encoder", "generator"}
    with EngineFile.open(half / "a.engine") as engine:
        images = half_precision.load_pictures([picture], engine.manifest.input)
    samples = half_precision.sample(half / "a.engine", images)
    session = emulation.session(half / "generator.fp16.onnx")
    (feeds,) = half_precision.styled_inputs(samples.codes[:1])
    expected = psnr_db(session.run(None, dict(feeds))[0], samples.pictures[:1])
    last = found["generator"][-1]
    assert last["layer"]["output"] == "image"
    assert last["psnr_db"] == pytest.approx(expected, abs=1e-3)
    assert found["encoder"][-1]["layer"]["output"] == "codes"


def wrong_at(half, layer, folder):
    """Copy the generator, its FP16 graph with another slope in one layer."""
    for name in ("generator.onnx", "generator.weights"):
        (folder / name).write_bytes((half / name).read_bytes())
    model = onnx.load(half / "generator.fp16.onnx", load_external_data=False)
    (node,) = [node for node in model.graph.node if node.name == layer]
    node.attribute[0].f = 0.3
    (folder / "generator.fp16.onnx").write_bytes(model.SerializeToString())
    codes = np.random.default_rng(1).standard_normal((2, 8, 20), dtype=np.float32)
    return list(half_precision.styled_inputs(codes))


def test_the_first_layer_that_differs_is_the_one_that_is_wrong(half, tmp_path):
    inputs = wrong_at(half, "/convs.2/LeakyRelu", tmp_path)
    found = compare(tmp_path, "generator", inputs)
    first = next(one for one in found if one.psnr_db < 50)
    assert first.layer.name == "/convs.2/LeakyRelu"
    assert first.relative > 0.01


def test_it_does_not_matter_how_many_tensors_are_compared_at_once(half, tmp_path, monkeypatch):
    inputs = wrong_at(half, "/convs.2/LeakyRelu", tmp_path)
    together = compare(tmp_path, "generator", inputs)
    monkeypatch.setattr(layer_differences, "BYTES_AT_ONCE", 200_000)
    assert compare(tmp_path, "generator", inputs) == together
    assert not list(tmp_path.glob("marked*"))


def test_of_several_inputs_the_worst_counts(half, tmp_path):
    inputs = wrong_at(half, "/convs.2/LeakyRelu", tmp_path)
    each = [compare(tmp_path, "generator", [feeds])[-1] for feeds in inputs]
    both = compare(tmp_path, "generator", inputs)[-1]
    assert both.psnr_db == min(one.psnr_db for one in each)
    assert both.relative == max(one.relative for one in each)


def test_an_overflow_is_infinite_in_words_and_null_in_json(half, tmp_path, monkeypatch):
    monkeypatch.setattr(
        layer_differences,
        "_run",
        lambda pair, tensors, inputs, folder: {
            layer_differences.FP32: [{name: np.ones((1, 2), np.float32) for name in tensors}],
            layer_differences.FP16: [{name: np.full((1, 2), np.inf, np.float32) for name in tensors}],
        },
    )
    words = ("--compare", "--pictures", half / "picture.png")
    found = inspected(half / "a.engine", *words, folder=tmp_path)["differences"]
    assert found["generator"][-1]["psnr_db"] is None
    assert "-inf dB" in inspect(half / "a.engine", *words).output


def test_polygraphy_reads_what_is_kept_for_it(half, tmp_path):
    words = ("--compare", "--pictures", half / "picture.png", "--save-for-polygraphy", tmp_path)
    assert inspect(half / "a.engine", *words).exit_code == 0
    tool = [sys.executable, "-c", "from polygraphy.tools import main; main()", "run", "--onnxrt"]
    for name in ("encoder", "generator"):
        files = ["--load-inputs", tmp_path / f"{name}.inputs.json"]
        files += ["--load-outputs", tmp_path / f"{name}.fp32.json"]
        marked = ["--onnx-outputs", "mark", "all"]
        done = subprocess.run(
            [*tool, half / f"{name}.onnx", *marked, *files], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Passed: 1/1 iterations" in done.stdout


def test_a_generator_alone_is_compared_on_a_random_style(tmp_path):
    from dataclasses import replace

    from export.checkpoints import load as checkpoints

    tiny_models.write_official(tmp_path / "a.pt")
    model = replace(checkpoints.load(tmp_path / "a.pt"), encoder=None, input=None)
    export_engine(model, tmp_path / "a.engine", Settings(precision="fp16"))
    found = inspected(tmp_path / "a.engine", "--compare", folder=tmp_path)["differences"]
    assert list(found) == ["generator"]
    assert found["generator"][-1]["psnr_db"] > 40


def test_drawn_noise_is_not_compared(tmp_path):
    write_half(tmp_path, noise="random")
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    done = inspect(tmp_path / "a.engine", "--compare", "--pictures", tmp_path / "p.png")
    assert "leaving out the generator: it draws new noise" in done.output
    assert "generator.fp16.onnx, emulated" not in done.output
    assert "encoder.fp16.onnx, emulated" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "--pictures", "p.png"], "holds no FP16 graphs; export it with --precision fp16"),
        (["--pictures", "p.png"], "are for --compare; add that"),
        (["--save-for-polygraphy", "d"], "are for --compare; add that"),
        (["--tensorrt", "--plan", "generator.plan"], "both given; choose one"),
        (["--tensorrt", "--compare"], "--compare is for the graphs of ENGINE"),
        (["--plan", "other.plan"], "expected encoder, mapping, generator.plan"),
        (["--plan", "generator.plan"], "generator.plan is not a file; write plans with: psp-rt build"),
        (["--json", SKETCH], "is an input and would be overwritten"),
        (["--json", ROOT / "nowhere" / "a.json"], "cannot be written"),
        (["--compare", "--save-for-polygraphy", SKETCH], "is a file; give the name of a folder"),
    ],
)
def test_what_cannot_be_done_is_said(words, message):
    done = inspect(SKETCH, *words)
    assert done.exit_code != 0
    assert message in done.output


def test_a_comparison_needs_a_picture(half):
    done = inspect(half / "a.engine", "--compare")
    assert done.exit_code == 1
    assert "add --pictures FILE_OR_FOLDER" in done.output


def test_the_help_of_the_export_names_the_command():
    assert "python -m export inspect --help" in CliRunner().invoke(main, ["--help"]).output
    assert "inspect [OPTIONS] ENGINE" in inspect("--help").output


# Plans, on stand-ins for the driver and TensorRT.


@pytest.fixture(params=VERSIONS)
def gpu(request, monkeypatch):
    installed = fake_gpu.install(monkeypatch, request.param)
    yield installed
    installed.cuda.stop()


def test_layers_of_a_plan_have_precision_tactic_and_time(gpu, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine", batches=(1, 2, 4))
    plans = inspected(path, "--tensorrt", "--time", folder=tmp_path)["plans"]
    assert list(plans) == ["encoder", "mapping", "generator"]
    for plan in plans.values():
        assert [layer["precision"] for layer in plan["layers"]] == ["fp16", "fp16+fp32"]
        assert plan["layers"][0]["tactic"] == "sm90_xmma_fprop"
        assert plan["times_ms"] == {"first": 1.0, "second": 2.0}
        assert plan["batch"] == 2
    assert gpu.trt.computed == [(name, 2) for name in plans for _ in range(12)]
    assert gpu.left() == []


def test_the_slowest_layers_of_a_plan_come_first(gpu, tmp_path):
    output = inspect(fake_gpu.engine_with_plans(tmp_path / "a.engine"), "--tensorrt", "--time").output
    assert "generator.plan: 2 layers, 3.000 ms for a batch of 1 by TensorRT's profiler" in output
    lines = [line.split() for line in output.splitlines()]
    slow = ["second", "Reformat", "fp16+fp32", "2.0000", "66.7", "%"]
    fast = ["first", "CaskConvolution", "fp16", "sm90_xmma_fprop", "1.0000", "33.3", "%"]
    assert lines.index(slow) < lines.index(fast)


def test_without_time_nothing_runs(gpu, tmp_path):
    output = inspect(fake_gpu.engine_with_plans(tmp_path / "a.engine"), "--tensorrt").output
    assert "CaskConvolution" in output
    assert gpu.trt.computed == []


def test_a_plan_in_a_file_is_inspected_as_that_in_the_engine(gpu, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    with zipfile.ZipFile(path) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("generator.plan")]
        (tmp_path / "generator.plan").write_bytes(archive.read(member))
    inside = inspected(path, "--tensorrt", "--time", folder=tmp_path)["plans"]
    alone = inspected(path, "--plan", tmp_path / "generator.plan", "--time", folder=tmp_path)["plans"]
    assert alone == {"generator": inside["generator"]}


def test_builds_ask_for_what_the_inspector_tells(gpu, tmp_path):
    fake_gpu.engine_with_plans(tmp_path / "a.engine")
    assert {config.profiling_verbosity for config in gpu.trt.configs} == {"detailed"}


def test_a_plan_that_tells_only_names_says_so(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(Inspector, "told", json.dumps({"Layers": ["first", "second"]}))
    output = inspect(fake_gpu.engine_with_plans(tmp_path / "a.engine"), "--tensorrt").output
    assert "it was built without layer information; build it again with psp-rt build" in output


def test_what_the_inspector_tells_otherwise_is_an_error():
    with pytest.raises(PlanError, match="tells no layers that are known here"):
        plan_layers.read_information('{"Layers": 3}')


def test_a_refusal_of_tensorrt_is_an_error_and_leaves_nothing(gpu, tmp_path):
    path = fake_gpu.engine_with_plans(tmp_path / "a.engine")
    gpu.trt.refuses = "run generator"
    done = inspect(path, "--tensorrt", "--time")
    assert done.exit_code == 1
    assert "refused to run the generator on cuda:0: no kernel for this GPU" in done.output
    done = None  # its traceback holds what is to be released
    assert gpu.left() == []


def test_without_a_gpu_plans_are_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_layers, "probe_driver", lambda: Driver(problem="no NVIDIA driver found"))
    (tmp_path / "generator.plan").write_bytes(b"plan")
    for words in (["--tensorrt"], ["--plan", tmp_path / "generator.plan"]):
        done = inspect(SKETCH, *words)
        assert done.exit_code == 1
        assert "on a GPU, and there is none here: no NVIDIA driver found" in done.output


def test_without_tensorrt_plans_are_an_error_that_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_layers, "probe_driver", lambda: Driver(gpus=("NVIDIA H200",)))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = inspect(SKETCH, "--tensorrt")
    assert done.exit_code == 1
    assert "install it with: pip install 'psp_rt[tensorrt]'" in done.output


def test_an_engine_without_a_plan_for_this_machine_says_how_to_build_one(gpu, tmp_path):
    done = inspect(tiny_engine.build(tmp_path / "a.engine"), "--tensorrt")
    assert done.exit_code == 1
    assert "has no TensorRT plan; build one for this machine with: psp-rt build" in done.output


def test_layers_are_read_without_a_weights_file(half):
    model = onnx.load(half / "generator.onnx", load_external_data=False)
    assert len(read_layers(model, batch=1)) > 200
