"""From a checkpoint to an engine: checked before it is written, and written whole or not at all."""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export import parity
from export.__main__ import main
from export.checkpoints import load as checkpoints
from export.engine import Settings, export_engine
from export.errors import ParityError
from export.graphs import networks as graphs
from export.graphs import trace as onnx_files
from export.graphs.activations import psnr_db
from psp_rt import EngineFile, ImageSize, InputError, OutputError, Translator
from tests.models import oracle, tiny_models
from tests.models.tiny_models import GENERATOR

L, D, SIZE = GENERATOR.num_styles, GENERATOR.style_dim, GENERATOR.size


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A tiny pSp file."""
    path = tmp_path_factory.mktemp("official") / "psp.pt"
    tiny_models.write_official(path, dataset_type="ffhq_encode")
    return path


@pytest.fixture(scope="module")
def model(official):
    return checkpoints.load(official)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    """That file as an engine."""
    path = tmp_path_factory.mktemp("engine") / "psp.engine"
    export_engine(model, path)
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A tiny generator file and its arrays."""
    folder = tmp_path_factory.mktemp("generator")
    arrays = tiny_models.write_official(folder / "whole.pt")
    tensors = torch.load(folder / "whole.pt", weights_only=True)["state_dict"]
    g_ema = {
        name.removeprefix("decoder."): tensor
        for name, tensor in tensors.items()
        if name.startswith("decoder.")
    }
    torch.save({"g_ema": g_ema}, folder / "generator.pt")
    return folder / "generator.pt", arrays


@pytest.fixture(scope="module")
def stylegan(generator):
    """That file alone: it exports in half the time of a whole model."""
    return generator[0]


@pytest.fixture(scope="module")
def alone(stylegan, tmp_path_factory):
    """That file as an engine, with its manifest."""
    path = tmp_path_factory.mktemp("alone") / "a.engine"
    return path, export_engine(checkpoints.load(stylegan), path)


@pytest.fixture
def command(tmp_path):
    """Run `python -m export` on a checkpoint, writing a.engine."""

    def run(checkpoint, *options):
        return CliRunner().invoke(main, [str(checkpoint), "-o", str(tmp_path / "a.engine"), *options])

    return run


def levels(pictures):
    return np.moveaxis(np.clip(pictures * 127.5 + 127.5, 0, 255), 1, 3)


def test_the_manifest_describes_the_model_and_how_close_the_engine_is(engine):
    with EngineFile.open(engine) as file:
        manifest = file.manifest
    assert manifest.task == "inversion"
    assert (manifest.input.kind, manifest.input.height, manifest.input.width) == ("rgb", 64, 64)
    assert manifest.output == ImageSize(height=SIZE, width=SIZE)
    assert (manifest.num_styles, manifest.style_dim) == (L, D)
    assert (manifest.noise, manifest.weights) == ("const", "fp32")
    assert {"source", "source_sha256", "source_format", "exporter", "torch", "created"} <= set(
        manifest.provenance
    )
    assert manifest.parity["codes_relative_error"] < 1e-4
    assert manifest.parity["styles_relative_error"] < 1e-4
    assert manifest.parity["picture_max_levels"] <= 1
    assert manifest.parity["picture_psnr_db"] > 55  # rounding to whole levels alone gives 59


def test_a_model_can_be_exported_again(engine, model, tmp_path):
    manifest = export_engine(model, tmp_path / "again.engine")
    with EngineFile.open(engine) as file:
        assert file.manifest.members == manifest.members


def test_random_noise_is_checked_with_the_constant_one(stylegan, tmp_path):
    manifest = export_engine(checkpoints.load(stylegan), tmp_path / "a.engine", Settings(noise="random"))
    assert manifest.noise == "random"
    assert manifest.parity["picture_max_levels"] <= 1
    code = np.zeros((L, D), np.float32)
    with Translator(tmp_path / "a.engine", device="cpu") as translator:
        assert (translator.generate(code) != translator.generate(code)).any()


def test_an_engine_without_noise_is_compared_without(generator, tmp_path):
    path, arrays = generator
    manifest = export_engine(checkpoints.load(path), tmp_path / "a.engine", Settings(noise="none"))
    assert manifest.noise == "none"
    code = np.random.default_rng(0).normal(size=(L, D)).astype(np.float32)
    expected = levels(oracle.generate(arrays, code[None], noise=False))[0]
    with Translator(tmp_path / "a.engine", device="cpu", color="rgb") as translator:
        assert np.abs(translator.generate(code) - expected).max() < 0.55


def test_a_generator_alone_samples_and_generates_but_does_not_translate(generator, alone):
    _, arrays = generator
    path, manifest = alone
    assert manifest.input is None
    assert "codes_relative_error" not in manifest.parity
    assert not any(name.startswith("encoder") for name in manifest.members)
    with Translator(path, device="cpu", color="rgb") as translator:
        with pytest.raises(InputError, match="needs an encoder, and this engine has none"):
            translator.run(np.zeros((64, 64, 3), np.uint8))
        code = translator.sample(3)
        expected = levels(oracle.generate(arrays, code[None].astype(float)))[0]
        assert np.abs(translator.generate(code) - expected).max() < 0.55


def test_wide_models_see_and_give_wide_pictures(tmp_path):
    config = tiny_models.encoder_config("e4e", input_height=48, input_width=64)
    arrays = tiny_models.write_official(tmp_path / "cars.pt", config, dataset_type="cars_encode")
    manifest = export_engine(checkpoints.load(tmp_path / "cars.pt"), tmp_path / "cars.engine")
    assert manifest.output == ImageSize(height=24, width=32)  # as 384 rows of 512
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    inputs = oracle.network_input(image, "rgb", None)
    codes = oracle.encode(arrays, inputs, kind="e4e", depths=config.depths, num_styles=L)
    expected = levels(oracle.generate(arrays, codes + arrays["latent_avg"]))[0, 4:28]
    with Translator(tmp_path / "cars.engine", device="cpu", color="rgb") as translator:
        assert np.abs(translator.run(image[0]) - expected).max() < 0.55


def test_a_clamp_of_the_checkpoint_is_obeyed(stylegan, alone, tmp_path):
    model = checkpoints.load(stylegan)
    config = replace(model.generator.config, conv_clamp=0.02)
    clamped = type(model.generator)(config).eval().requires_grad_(False)
    clamped.load_state_dict(model.generator.state_dict())
    code = np.random.default_rng(0).normal(size=(L, D)).astype(np.float32)
    export_engine(replace(model, generator=clamped), tmp_path / "clamped.engine")
    spreads = []
    for path in (alone[0], tmp_path / "clamped.engine"):
        with Translator(path, device="cpu") as translator:
            spreads.append(np.ptp(translator.generate(code)))
    assert spreads[0] > 60
    assert spreads[1] < 40  # four times colors within 2.6 gray levels, added up


# Weights stored as FP16.


@pytest.fixture(scope="module")
def broad(tmp_path_factory):
    """A generator wide enough for its weights to be most of the file, stored both ways."""
    folder = tmp_path_factory.mktemp("broad")
    sizes = replace(GENERATOR, channels=(48, 48, 32))
    arrays = tiny_models.write_official(
        folder / "broad.pt", tiny_models.encoder_config(num_styles=6), generator=sizes
    )
    model = replace(checkpoints.load(folder / "broad.pt"), encoder=None, input=None)
    for storage in ("fp32", "fp16"):
        export_engine(model, folder / f"{storage}.engine", Settings(storage=storage))
    return folder, arrays


def test_fp16_weights_halve_the_file(broad):
    folder, _ = broad
    sizes = [(folder / name).stat().st_size for name in ("fp32.engine", "fp16.engine")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.15)  # the graphs themselves stay as they are


def test_the_cost_of_fp16_weights_is_measured_against_the_checkpoint(broad):
    folder, arrays = broad
    with Translator(folder / "fp16.engine", device="cpu", color="rgb") as translator:
        figures, weights = translator.manifest.parity, translator.manifest.weights
        pictures = [translator.generate(translator.sample(seed)) for seed in parity.SEEDS]
    assert weights == "fp16"
    assert figures["picture_max_levels"] <= 1  # against the rounded weights
    z = [np.random.default_rng(seed).standard_normal(D, dtype=np.float32) for seed in parity.SEEDS]
    styles = oracle.map_styles(arrays, np.stack(z).astype(float))
    exact = levels(oracle.generate(arrays, np.repeat(styles[:, None], 6, axis=1)))
    found = psnr_db(np.stack(pictures), exact)
    # What is recorded is before rounding to whole levels, whose own 1/12 is added here.
    recorded = 255**2 / 10 ** (figures["fp16_weights_psnr_db"] / 10)
    assert found == pytest.approx(10 * np.log10(255**2 / (recorded + 1 / 12)), abs=1.5)
    assert figures["fp16_weights_psnr_db"] > 40


@pytest.mark.parametrize("kind", ["psp", "naive_w+"])
def test_weights_are_rounded_once_also_where_a_factor_scales_them(tmp_path, kind):
    encoder = tiny_models.encoder_config(kind, head_width=30, widths=(4, 6, 8, 30))
    tiny_models.write_official(tmp_path / "a.pt", encoder, learn_in_w=kind == "w")
    manifest = export_engine(
        checkpoints.load(tmp_path / "a.pt"), tmp_path / "a.engine", Settings(storage="fp16", force=True)
    )
    assert manifest.parity["codes_relative_error"] < 1e-5


def test_weights_that_fp16_spoils_are_refused(stylegan, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "half", lambda tensor: (tensor * 8).round() / 8)
    with pytest.raises(ParityError, match=r"fp16_weights_psnr_db is [\d.]+, expected at least 40"):
        export_engine(checkpoints.load(stylegan), tmp_path / "a.engine", Settings(storage="fp16"))
    assert list(tmp_path.iterdir()) == []


# The gate.


def unscaled(_, image):
    return image.float().permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(
    ("checkpoint", "owner", "name", "wrong", "figure"),
    [
        ("stylegan", graphs, "ACTIVATION_GAIN", 1.3, "styles_relative_error"),
        ("stylegan", graphs.Upsample, "forward", lambda _, x: x.repeat(1, 1, 2, 2), "picture_max_levels"),
        ("official", graphs.EncoderGraph, "network_input", unscaled, "codes_relative_error"),
    ],
    ids=["gain", "upsampling", "scaling"],
)
def test_a_graph_that_computes_something_else_is_not_written(
    request, tmp_path, monkeypatch, checkpoint, owner, name, wrong, figure
):
    model = checkpoints.load(request.getfixturevalue(checkpoint))
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(
        ParityError, match=rf"does not compute what the checkpoint computes: {figure}.*--force"
    ):
        export_engine(model, tmp_path / "a.engine")
    assert list(tmp_path.iterdir()) == []


def test_force_writes_it_all_the_same_with_its_figures(stylegan, command, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "ACTIVATION_GAIN", 1.3)
    refused = command(stylegan)
    assert refused.exit_code == 1
    assert "Error: the engine does not compute what the checkpoint computes" in refused.output
    assert list(tmp_path.iterdir()) == []
    assert command(stylegan, "--force").exit_code == 0
    with EngineFile.open(tmp_path / "a.engine") as file:
        assert file.manifest.parity["picture_max_levels"] > 1


def test_force_does_not_write_what_computes_no_numbers(official, command, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs.EncoderGraph, "network_input", lambda _, x: unscaled(_, x) * np.inf)
    refused = command(official, "--force")
    assert refused.exit_code == 1
    assert "Error: the engine computes NaN or infinity: codes_relative_error is nan" in refused.output
    assert list(tmp_path.iterdir()) == []


# Where nothing can be written.


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["tracing", "the trial", "the end"])
def test_a_full_disk_leaves_the_old_engine_and_no_part_of_the_new(stylegan, tmp_path, monkeypatch, moment):
    output = tmp_path / "a.engine"
    output.write_bytes(b"the old engine")
    synced = []

    def sync(descriptor):
        synced.append(descriptor)
        if len(synced) == {"the trial": 1, "the end": 2}[moment]:
            full_disk()

    if moment == "tracing":
        monkeypatch.setattr(onnx_files, "move_weights_out", lambda *_, **__: full_disk())
    else:
        monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        export_engine(checkpoints.load(stylegan), output)
    assert output.read_bytes() == b"the old engine"
    assert list(tmp_path.iterdir()) == [output]


def test_an_interrupted_export_leaves_nothing(stylegan, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_engine(checkpoints.load(stylegan), tmp_path / "a.engine")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_any_work(stylegan, tmp_path, monkeypatch):
    model = checkpoints.load(stylegan)
    monkeypatch.setattr(parity, "expect", None)  # a call would be another error
    with pytest.raises(OutputError, match=r"missing/a\.engine cannot be written: No such file or directory"):
        export_engine(model, tmp_path / "missing" / "a.engine")
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        export_engine(model, tmp_path)
    monkeypatch.setattr(
        Path, "touch", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        export_engine(model, tmp_path / "a.engine")
    assert list(tmp_path.iterdir()) == []


# The command.


def test_the_command_says_its_steps_its_figures_and_what_to_type_next(official, command, tmp_path):
    done = command(official, "--task", "portraits")
    assert done.exit_code == 0, done.output
    steps = [line.removeprefix("... ") for line in done.output.splitlines() if line.startswith("...")]
    assert steps == [
        f"reading {official}",
        "running the checkpoint in PyTorch",
        "tracing the generator",
        "tracing the mapping",
        "tracing the encoder",
        "comparing the engine with PyTorch",
        "measuring styles and codes",
        f"writing {tmp_path / 'a.engine'}",
    ]
    assert re.search(r"codes_relative_error +\d\.\d+e-\d\d", done.output)
    assert f"try it with: psp-rt run {tmp_path / 'a.engine'} INPUT --output FILE" in done.output
    with EngineFile.open(tmp_path / "a.engine") as file:
        assert file.manifest.task == "portraits"
        file.verify()


def test_the_command_pairs_an_encoder_with_another_generator(official, stylegan, command, tmp_path):
    done = command(official, "--generator", str(stylegan), "--noise", "none", "--weights", "fp16")
    assert done.exit_code == 0, done.output
    with EngineFile.open(tmp_path / "a.engine") as file:
        manifest = file.manifest
    assert (manifest.noise, manifest.weights) == ("none", "fp16")
    assert manifest.parity["codes_relative_error"] < 1e-4
    assert manifest.parity["fp16_weights_psnr_db"] > 40
    assert (manifest.provenance["source"], manifest.provenance["generator_source"]) == (
        "psp.pt",
        "generator.pt",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--encoder-type", "w"],
            "Error: psp.pt: the encoder type is w, but the tensors are those of a psp or e4e",
        ),
        (["--input", "labels:5"], "Error: psp.pt: --input says labels:5, which needs 5 input channels"),
        (["--input", "color"], "Error: psp.pt: --input is 'color'; expected rgb, gray or labels:N"),
    ],
)
def test_a_wrong_wish_is_a_message_and_no_traceback(official, command, tmp_path, options, message):
    failed = command(official, *options)
    assert failed.exit_code == 1
    assert message in failed.output
    assert isinstance(failed.exception, SystemExit)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_and_a_missing_folder_are_messages(official, command, tmp_path):
    failed = command(tmp_path / "none.pt")
    assert failed.exit_code == 1
    assert "none.pt" in failed.output
    assert isinstance(failed.exception, SystemExit)
    failed = CliRunner().invoke(main, [str(official), "-o", str(tmp_path / "no" / "a.engine")])
    assert failed.exit_code == 1
    assert "cannot be written: No such file or directory" in failed.output


@pytest.mark.parametrize("option", ["checkpoint", "--encoder", "--generator"])
def test_an_export_never_replaces_what_it_reads(tmp_path, option):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"weights of months")
    more = [] if option == "checkpoint" else [option, str(tmp_path / "b.pt")]
    output = str(tmp_path / ("b.pt" if more else "a.pt"))
    done = CliRunner().invoke(main, [str(tmp_path / "a.pt"), "--output", output, *more])
    assert done.exit_code == 1
    assert f"{output} is an input and would be overwritten; choose another output" in done.output
    assert Path(output).read_bytes() == b"weights of months"
