"""python -m export inspect: what an engine computes, in which precision, where its time and its error are."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from export.__main__ import main
from export.checkpoints import load as checkpoints
from export.engine import Settings, export_engine
from export.graphs import activations, fp16
from export.graphs.activations import psnr_db
from export.inspect import differences as layer_differences
from export.inspect.differences import compare
from export.inspect.layers import read_layers
from psp_rt import EngineFile
from tests.models import tiny_engine, tiny_models
from tests.models.tiny_models import encoder_config

ROOT = Path(__file__).parents[2]
SKETCH = ROOT / "models" / "sketch.engine"


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A folder with a tiny engine that has FP16 graphs, its parts, and a picture."""
    folder = tmp_path_factory.mktemp("half")
    tiny_models.write_official(folder / "a.pt", encoder_config())
    export_engine(checkpoints.load(folder / "a.pt"), folder / "a.engine", Settings(precision="fp16"))
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(folder / "picture.png")
    with zipfile.ZipFile(folder / "a.engine") as archive:
        archive.extractall(folder)
    return folder


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
    assert "/styles/Gemm" in islands
    assert "/convs.0/LeakyRelu" not in islands
    output = inspect(half / "a.engine").output
    assert f"islands in FP32: {len(islands)} of {len(layers)} layers" in output
    assert "  /to_rgbs.*: " in output


def with_manifest(engine, output, **changes):
    """Copy an engine with other entries in its manifest."""
    with zipfile.ZipFile(engine) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files.pop("manifest.json")) | changes
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
            archive.writestr(name, data)
    return output


def test_layers_kept_for_their_range_are_named(half, tmp_path):
    layers = {"generator": ["/convs.5/conv/Add_1"], "encoder": []}
    path = with_manifest(half / "a.engine", tmp_path / "b.engine", fp32_layers=layers)
    assert "of these because of their range: /convs.5/conv/Add_1" in inspect(path).output


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
        images = fp16.load_pictures([picture], engine.manifest.input)
    samples = fp16.sample(half / "a.engine", images)
    session = activations.emulating_session(half / "generator.fp16.onnx")
    (feeds,) = fp16.styled_inputs(samples.codes[:1])
    expected = psnr_db(session.run(None, dict(feeds))[0], samples.pictures[:1])
    last = found["generator"][-1]
    assert last["layer"]["output"] == "image"
    assert last["psnr_db"] == pytest.approx(expected, abs=1e-3)
    assert found["encoder"][-1]["layer"]["output"] == "codes"


def wrong_at(half, layer, folder, *, slope=0.3):
    """Copy the generator, its FP16 graph with another slope in one layer."""
    for name in ("generator.onnx", "generator.weights"):
        (folder / name).write_bytes((half / name).read_bytes())
    model = onnx.load(half / "generator.fp16.onnx", load_external_data=False)
    (node,) = [node for node in model.graph.node if node.name == layer]
    node.attribute[0].f = slope
    (folder / "generator.fp16.onnx").write_bytes(model.SerializeToString())
    codes = np.random.default_rng(1).standard_normal((2, 8, 20), dtype=np.float32)
    return list(fp16.styled_inputs(codes))


def test_the_first_layer_that_differs_is_the_one_that_is_wrong(half, tmp_path):
    inputs = wrong_at(half, "/convs.2/LeakyRelu", tmp_path, slope=1e6)  # overflows in FP16
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
            layer_differences.FP32: [{name: np.ones((1, 1), np.float32) for name in tensors}],
            layer_differences.FP16: [{name: np.full((1, 1), np.inf, np.float32) for name in tensors}],
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
    files = ["--load-inputs", tmp_path / "generator.inputs.json"]
    files += ["--load-outputs", tmp_path / "generator.fp32.json"]
    marked = ["--onnx-outputs", "mark", "all"]
    bounds = ["--check-error-stat", "mean", "--atol", "0.05", "--rtol", "0.05"]
    done = subprocess.run(
        [*tool, half / "generator.fp16.onnx", *marked, *files, *bounds],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Passed: 1/1 iterations" in done.stdout


def test_a_generator_alone_is_compared_on_a_random_style(tmp_path):
    tiny_models.write_official(tmp_path / "a.pt")
    model = replace(checkpoints.load(tmp_path / "a.pt"), encoder=None, input=None)
    export_engine(model, tmp_path / "a.engine", Settings(precision="fp16"))
    found = inspected(tmp_path / "a.engine", "--compare", folder=tmp_path)["differences"]
    assert list(found) == ["generator"]
    assert found["generator"][-1]["psnr_db"] > 40


def test_random_noise_is_not_compared(half, tmp_path):
    path = with_manifest(half / "a.engine", tmp_path / "b.engine", noise="random")
    done = inspect(path, "--compare", "--pictures", half / "picture.png")
    assert "leaving out the generator: it draws new noise" in done.output
    assert "generator.fp16.onnx, emulated" not in done.output
    assert "encoder.fp16.onnx, emulated" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "--pictures", "p.png"], "contains no FP16 graphs; export it with --precision fp16"),
        (["--pictures", "p.png"], "are for --compare; add that"),
        (["--save-for-polygraphy", "d"], "are for --compare; add that"),
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
    assert "inspect " in CliRunner().invoke(main, ["--help"]).output
    assert "inspect [OPTIONS] ENGINE" in inspect("--help").output


def test_layers_are_read_without_a_weights_file(half):
    model = onnx.load(half / "generator.onnx", load_external_data=False)
    assert len(read_layers(model, batch=1)) > 200
