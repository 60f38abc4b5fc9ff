"""psp-rt build: plans are added to an engine whole or not at all, and it says why where it cannot."""

import errno
import json
import os
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.__main__ import main as export_main
from psp_rt import BackendError, DeviceError, EngineFile, FormatError, OutputError, Translator
from psp_rt.build import BuildOptions, BuildRequest
from psp_rt.build.build import build, compare
from psp_rt.build.builder import half_share
from psp_rt.cli import info as description
from psp_rt.cli.main import main
from psp_rt.engine import plans
from psp_rt.hardware import Hardware
from psp_rt.hardware.probe import Driver, probe_driver
from psp_rt.hardware.tensorrt import load_library
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.stand_ins import gpu as fake_gpu
from tests.stand_ins import tensorrt_runtime
from tests.stand_ins.tensorrt import FakeTensorRT

TARGET = "nvidia-h200-sm90-tensorrt-10.13.3.9"


@pytest.fixture
def engine(tmp_path):
    return tiny_engine.build(tmp_path / "a.engine")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H200 and a TensorRT to choose."""

    def install(trt):
        trt.cuda = fake_gpu.install(monkeypatch).cuda
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        return trt

    return install


@pytest.fixture
def trt(gpu):
    return gpu(FakeTensorRT())


def request(engine, *, options=None, **settings):
    return BuildRequest(engine=engine, options=options or BuildOptions(), **settings)


def contents(path):
    with EngineFile.open(path) as file:
        return {name: bytes(file.view(name)) for name in file.names if name != "manifest.json"}


def left_behind(folder):
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_a_build_adds_plans_and_their_record_and_changes_nothing_else(engine, trt):
    before = contents(engine)
    record = build(request(engine))
    after = contents(engine)
    assert record.target == TARGET
    assert after.keys() - before.keys() == {
        f"plans/{TARGET}/{name}" for name in ("record.json", "encoder.plan", "mapping.plan", "generator.plan")
    }
    assert {name: after[name] for name in before} == before
    assert after[f"plans/{TARGET}/mapping.plan"].startswith(b'["mapping"')
    with EngineFile.open(engine) as file:
        assert plans.records(file) == {TARGET: record}
        assert file.manifest.task == "test"
        assert not file.manifest.stripped


def test_an_engine_with_plans_runs_as_before(engine, trt, picture, translator):
    build(request(engine))
    with Translator(engine, device="cpu", color="rgb") as built:
        np.testing.assert_array_equal(built.run(picture), translator.run(picture))


def test_only_plans_for_this_machine_are_replaced(engine, trt, gpu):
    build(request(engine))
    gpu(FakeTensorRT("11.0.0.114"))
    build(request(engine))
    first = contents(engine)
    build(request(engine, options=BuildOptions(batches=(1, 2, 8))))
    second = contents(engine)
    assert first.keys() == second.keys()
    changed = {name for name in first if first[name] != second[name]}
    assert {name.split("/")[1] for name in changed} == {"nvidia-h200-sm90-tensorrt-11.0.0.114"}
    assert sum(name.endswith("generator.plan") for name in second) == 2


def test_plans_are_built_from_the_graphs_of_the_manifests_precision(tmp_path, trt):
    members = tiny_engine.members()
    members |= {f"{name}.fp16.onnx": members[f"{name}.onnx"] for name in ("encoder", "generator")}
    path = tiny_engine.write_raw(tmp_path / "a.engine", members, precision="fp16")
    record = build(request(path))
    names = [os.path.basename(at) for _, at in trt.parsed]
    assert names == ["encoder.fp16.onnx", "mapping.onnx", "generator.fp16.onnx"]
    assert set(record.sources) == {
        "encoder.fp16.onnx", "mapping.onnx", "generator.fp16.onnx", "encoder.weights", "generator.weights"
    }  # fmt: skip
    assert record.precision == "fp16"


def test_weights_are_read_from_the_engine_file_itself(engine, trt):
    before = engine.read_bytes()
    build(request(engine))
    model, at = trt.parsed[0]
    assert os.path.dirname(at) == os.path.realpath(engine.parent)
    outside = [
        tensor for tensor in onnx.load_model_from_string(model).graph.initializer if tensor.external_data
    ]
    place = {entry.key: entry.value for entry in outside[0].external_data}
    assert place["location"] == "a.engine"
    stored = np.frombuffer(before, "<f4", np.prod(outside[0].dims), int(place["offset"]))
    np.testing.assert_array_equal(stored.reshape(outside[0].dims), tiny_engine.encoder_matrix(3))


def test_options_reach_tensorrt(engine, trt, tmp_path):
    (tmp_path / "timing").write_bytes(b"known")
    options = BuildOptions(
        batches=(1, 2, 8), workspace_mib=512, version_compatible=True, hardware_compatible=True
    )
    record = build(request(engine, options=options, timing_cache=tmp_path / "timing"))
    config = trt.configs[0]
    assert [profile.shapes["image"] for profile in config.profiles] == [
        [(1, 16, 12, 3)] * 3,
        [(2, 16, 12, 3), (2, 16, 12, 3), (8, 16, 12, 3)],
    ]
    assert config.limits == {"workspace": 512 << 20}
    assert config.flags == {"VERSION_COMPATIBLE"}
    assert config.hardware_compatibility_level == "ampere+"
    assert config.cache == b"known"
    assert (tmp_path / "timing").read_bytes() == b"known+++"  # each graph adds to it
    assert (record.min_batch, record.opt_batch, record.max_batch) == (1, 2, 8)
    assert record.version_compatible
    assert record.hardware_compatible


def test_strong_typing_takes_types_from_the_graph_alone(engine, trt):
    build(request(engine))
    assert trt.networks[0].flags == 0b11
    assert all(config.flags == set() for config in trt.configs)  # no TF32 either
    assert all(layer.precision is None for network in trt.networks for layer in network.layers)


def test_tensorrt_8_is_held_to_the_types_of_the_graph(engine, gpu):
    trt = gpu(FakeTensorRT("8.6.1"))
    build(request(engine))
    assert trt.networks[0].flags == 0b1
    assert trt.configs[0].flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS", "profile sharing"}
    assert trt.configs[0].tactic_sources == 0b11000  # neither cuDNN nor cuBLAS
    layers = {layer.output: layer for layer in trt.networks[0].layers}
    types = {name: (layer.precision, layer.output_types.get(0)) for name, layer in layers.items()}
    assert types == {
        "pixels": (None, "float"),
        "weights": (None, "half"),
        "halves": (None, "half"),
        "sizes": (None, None),
        "map": ("half", "half"),
        "again": (None, "float"),
        "sum": ("float", "float"),
    }


def half_engine(folder, **manifest):
    members = tiny_engine.members()
    members |= {f"{name}.fp16.onnx": members[f"{name}.onnx"] for name in ("encoder", "generator")}
    return tiny_engine.write_raw(folder / "a.engine", members, precision="fp16", **manifest)


def test_tensorrt_8_builds_fp16_only_from_weights_in_fp16(tmp_path, gpu):
    gpu(FakeTensorRT("8.6.1"))
    with pytest.raises(BackendError) as caught:
        build(request(half_engine(tmp_path)))
    assert_says(caught, "8.6.1", "encoder.fp16.onnx", "--weights fp16", "TensorRT 10")


@pytest.mark.parametrize("kind", ["Channel major FP16 format", "Row major linear FP32"])
def test_fp16_plans_of_tensorrt_8_must_have_convolutions_in_fp16(tmp_path, gpu, monkeypatch, kind):
    gpu(FakeTensorRT("8.6.1"))
    told = {"Layers": [{"LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": kind}]}]}
    monkeypatch.setattr(tensorrt_runtime.Inspector, "told", json.dumps(told))
    if "FP16" in kind:
        assert build(request(half_engine(tmp_path, weights="fp16"))).precision == "fp16"
        return
    with pytest.raises(BackendError) as caught:
        build(request(half_engine(tmp_path, weights="fp16")))
    assert_says(caught, "encoder.fp16", "0%", "TensorRT 10")


def test_types_are_read_in_the_words_of_every_version():
    named = ({"Format/Datatype": "Channel major FP16 format"}, {"Datatype": "Half", "Format": "NHWC"})
    others = ({"Format/Datatype": "Row major linear FP32"}, {"Datatype": "Float"})
    for half, single in zip(named, others, strict=True):
        layers = [{"LayerType": "Convolution", "Outputs": [output]} for output in (half, half, half, single)]
        assert half_share({"Layers": [*layers, {"LayerType": "Reformat", "Outputs": [single]}]}) == 0.75


@pytest.mark.parametrize(
    ("batches", "profiles"),
    [
        ((1, 4, 4), ((1, 1, 1), (2, 4, 4))),
        ((1, 1, 8), ((1, 1, 1), (2, 2, 8))),
        ((1, 1, 1), ((1, 1, 1),)),
        ((8, 8, 8), ((8, 8, 8),)),
    ],
)
def test_a_batch_of_one_has_a_profile_of_its_own(batches, profiles):
    assert BuildOptions(batches=batches).profiles == profiles


def test_what_a_callback_raises_ends_the_build_and_is_raised(engine, trt):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = engine.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build(request(engine), progress=interrupt)
    assert engine.read_bytes() == before


def test_progress_is_told_where_the_version_can_tell(engine, trt):
    seen = []
    build(request(engine), progress=lambda *step: seen.append(step))
    assert seen == [("Building", 0, 2)] * 3


# Where it cannot build.


@pytest.mark.parametrize("gpus", [None, 0])
def test_without_a_gpu_tensorrt_is_not_even_imported(engine, gpu, monkeypatch, gpus):
    cuda = gpu(FakeTensorRT()).cuda
    cuda.stop() if gpus is None else cuda.set_gpus(gpus)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # its import would be another error
    with pytest.raises(DeviceError) as caught:
        build(request(engine))
    reason = "no NVIDIA driver found" if gpus is None else "the NVIDIA driver reports error 100"
    assert_says(caught, "none here", reason, f"psp-rt build {engine}")


def test_a_missing_tensorrt_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"pip install 'psp_rt\[tensorrt\]'"):
        load_library()


def test_a_failed_build_leaves_the_engine_as_it_was(engine, gpu, tmp_path):
    before = engine.read_bytes()
    gpu(FakeTensorRT(fails="generator"))
    with pytest.raises(BackendError, match="TensorRT cannot build the generator: no tactic was found"):
        build(request(engine))
    assert engine.read_bytes() == before
    assert left_behind(tmp_path) == []


def test_a_driver_that_tensorrt_cannot_use_is_named(engine, trt):
    def no_builder(logger):
        logger.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    trt.Builder = no_builder
    with pytest.raises(BackendError, match=r"CUDA initialization failure with error: 35.*psp-rt doctor"):
        build(request(engine))


def test_a_full_disk_leaves_the_engine_as_it_was(engine, trt, tmp_path, monkeypatch):
    before = engine.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        build(request(engine))
    assert engine.read_bytes() == before
    assert left_behind(tmp_path) == []


def test_an_interrupted_build_leaves_the_engine_as_it_was(engine, trt, tmp_path, monkeypatch):
    before = engine.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(request(engine))
    assert engine.read_bytes() == before
    assert left_behind(tmp_path) == []


def test_a_damaged_engine_gets_no_plans(engine, trt):
    data = bytearray(engine.read_bytes())
    with EngineFile.open(engine) as file:
        at = file.span("generator.weights").offset
    data[at + 100] ^= 1
    engine.write_bytes(data)
    with pytest.raises(FormatError, match="does not have the hash"):
        build(request(engine))
    assert engine.read_bytes() == bytes(data)


# Outputs.


def test_an_engine_without_its_graphs_goes_to_another_file(engine, trt, tmp_path):
    with pytest.raises(OutputError, match="runs nowhere else; add --output"):
        build(request(engine, strip_onnx=True))
    before = engine.read_bytes()
    (tmp_path / "link.engine").symlink_to(engine)
    for same in (engine, tmp_path / "link.engine"):
        with pytest.raises(OutputError, match="is an input and would be overwritten"):
            build(request(engine, strip_onnx=True, output=same))
    output = tmp_path / "small.engine"
    build(request(engine, strip_onnx=True, output=output))
    assert engine.read_bytes() == before
    with pytest.raises(FormatError, match="graphs were taken out; use the engine that it was made from"):
        Translator(output, device="cpu")
    assert CliRunner().invoke(main, ["info", str(output)]).exit_code == 0
    with EngineFile.open(output, needs_graphs=False) as file:
        without_gpu = Hardware()
        without_gpu.driver = Driver(problem="no NVIDIA driver found")
        elsewhere = description.runs_on(without_gpu, file)
        assert re.match("nothing: .*its portable graphs were taken out", elsewhere)
        assert file.manifest.stripped
        assert {name.split("/")[0] for name in file.names} == {"manifest.json", "plans"}
        machine = plans.records(file)[TARGET].machine
        assert plans.choose(file, machine) == TARGET


def test_a_link_to_an_engine_stays_one_and_the_engines_mode_too(engine, trt, tmp_path):
    link = tmp_path / "current.engine"
    link.symlink_to(engine)
    engine.chmod(0o640)
    build(request(link))
    assert link.is_symlink()
    assert engine.stat().st_mode & 0o777 == 0o640
    with EngineFile.open(engine) as file:
        assert set(plans.records(file)) == {TARGET}


def test_an_unusable_timing_cache_is_reported_before_the_work(engine, trt, tmp_path):
    steps = []
    with pytest.raises(OutputError, match=r"none/cache cannot be written"):
        build(request(engine, timing_cache=tmp_path / "none" / "cache"), report=steps.append)
    assert steps == []
    cache = tmp_path / "cache"
    cache.write_bytes(b"x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
        with pytest.raises(OutputError, match=r"timing cache .*cache cannot be read: denied"):
            build(request(engine, timing_cache=cache))


def test_plans_are_exported_for_other_tools(engine, trt, tmp_path):
    build(request(engine, export_folder=tmp_path / "parts" / "plans"))
    inside = contents(engine)
    for name in ("encoder.plan", "mapping.plan", "generator.plan", "record.json"):
        assert (tmp_path / "parts" / "plans" / name).read_bytes() == inside[f"plans/{TARGET}/{name}"]


def test_a_file_in_place_of_the_export_folder_is_refused_first(engine, trt, tmp_path):
    (tmp_path / "plans").write_text("mine")
    before = engine.read_bytes()
    with pytest.raises(OutputError, match=r"plans is a file; give the name of a folder for the plans"):
        build(request(engine, export_folder=tmp_path / "plans"))
    assert trt.networks == []
    with pytest.raises(OutputError, match=r"below cannot be created: Not a directory.*has its plans"):
        build(request(engine, export_folder=tmp_path / "plans" / "below"))
    assert (tmp_path / "plans").read_text() == "mine"
    assert engine.read_bytes() != before  # as the message says


def test_of_two_builds_at_once_the_later_one_says_what_happened(engine, trt):
    def other_build(step):
        if step == "building the generator":
            build(request(engine))

    with pytest.raises(
        FormatError, match=r"perhaps another build, while its plans were built; run the build ag"
    ):
        build(request(engine), report=other_build)
    assert f"plans/{TARGET}/encoder.plan" in contents(engine)


# The comparison after a build.


class Runner:
    """Computes the tiny engine in NumPy, and adds ``off`` to one result."""

    def __init__(self, wrong="", off=0.0):
        self.wrong, self.off, self.closed = wrong, off, False

    def encode(self, images):
        return tiny_engine.encode(images) + (self.off if self.wrong == "encode" else 0)

    def map(self, z):
        return tiny_engine.map_z(z) + (self.off if self.wrong == "map" else 0)

    def generate(self, codes, reference, weights):
        assert not weights.any()
        pictures = tiny_engine.generate(codes)
        return pictures // 2 if self.wrong == "generate" else pictures

    def close(self):
        self.closed = True


def test_plans_are_compared_with_the_graphs_before_they_are_written(engine, trt):
    runners = Runner(), Runner()
    record = build(request(engine), open_portable=lambda _: runners[0], open_plans=lambda *_: runners[1])
    assert record.parity == {"styles_psnr_db": 99.0, "codes_psnr_db": 99.0, "picture_psnr_db": 99.0}
    assert all(runner.closed for runner in runners)


@pytest.mark.parametrize(
    ("wrong", "off", "figure"),
    [
        ("map", 1.0, "styles"),
        ("map", np.nan, "styles"),
        ("encode", 2.0, "codes"),
        ("encode", np.nan, "codes"),
        ("generate", 0.0, "picture"),
    ],
)
def test_plans_that_compute_something_else_are_not_written(engine, trt, tmp_path, wrong, off, figure):
    before = engine.read_bytes()
    runners = Runner(), Runner(wrong, off)
    with pytest.raises(
        BackendError, match=rf"{figure}_psnr_db is .*, expected at least 40\. Nothing was written"
    ):
        build(request(engine), open_portable=lambda _: runners[0], open_plans=lambda *_: runners[1])
    assert engine.read_bytes() == before
    assert left_behind(tmp_path) == []
    assert all(runner.closed for runner in runners)


def test_pictures_with_noise_of_their_own_are_not_compared():
    manifest = replace(tiny_engine.manifest(), noise="random")
    assert set(compare(Runner(), Runner("generate", 0.0), manifest)) == {
        "styles_psnr_db",
        "codes_psnr_db",
    }


def test_small_differences_pass_the_comparison():
    figures = compare(Runner(), Runner("map", 1e-3), tiny_engine.manifest())
    assert 40 < figures["styles_psnr_db"] < 99


# The commands.


def test_the_command_says_its_steps_and_what_it_made(engine, trt, tmp_path):
    done = CliRunner().invoke(
        main, ["build", str(engine), "--max-batch", "8", "--export-plan", str(tmp_path / "p")]
    )
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "... building the encoder",
        "... building the mapping",
        "... building the generator",
        "... comparing the plans with the portable graphs",
        f"... writing {engine}",
        "plans for NVIDIA H200 of compute capability 9.0 with TensorRT 10.13.3.9 on "
        f"{platform.system()} {platform.machine()}, batches 1 to 8",
        f"wrote {engine}: plans/{TARGET}",
        "styles of seeds: 99.0 dB, of the plans against the portable graphs",
        "codes: 99.0 dB, of the plans against the portable graphs",
        "pictures: 99.0 dB, of the plans against the portable graphs",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-batch", "4", "--opt-batch", "2"], "expected them in ascending order"),
        (["--max-batch", "0"], "0 is not in the range"),
        (["--strip-onnx"], "add --output OTHER.engine"),
    ],
)
def test_options_that_contradict_each_other_are_refused(engine, trt, options, message):
    refused = CliRunner().invoke(main, ["build", str(engine), *options])
    assert refused.exit_code != 0
    assert message in refused.output


def test_an_export_that_shall_build_asks_for_the_gpu_first(tmp_path):
    if not probe_driver().problem:
        pytest.skip("there is a GPU here")
    options = [str(tmp_path / "missing.pt"), "-o", str(tmp_path / "a.engine"), "--tensorrt"]
    refused = CliRunner().invoke(export_main, options)
    assert refused.exit_code == 1
    assert "none here: no NVIDIA driver found" in refused.output
    assert "missing.pt" not in refused.output
