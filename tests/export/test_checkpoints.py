import argparse
import importlib.util
import os
import pathlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoints import load as checkpoints
from export.errors import CheckpointError
from psp_rt.engine.manifest import InputSpec
from trainer import checkpoint as trainer_checkpoint
from trainer.networks import (
    Encoder,
    EncoderConfig,
    Generator,
    GeneratorConfig,
    Translation,
    official_channels,
)

GENERATOR = GeneratorConfig(channels=(8, 8, 6, 4), style_dim=12, mapping_layers=2)  # 32 pixels, 8 styles
ENCODER = EncoderConfig(
    num_styles=8,
    style_dim=12,
    input_height=64,
    input_width=64,
    widths=(4, 6, 8, 10),
    depths=(1, 2, 1, 2),
    head_width=5,
)
TYPES = {
    "psp": "GradualStyleEncoder",
    "e4e": "Encoder4Editing",
    "w": "BackboneEncoderUsingLastLayerIntoW",
    "naive_w+": "BackboneEncoderUsingLastLayerIntoWPlus",
}
CONFORMANCE = Path(__file__).parents[3] / "shared" / "conformance"


def networks(encoder=ENCODER, generator=GENERATOR):
    torch.manual_seed(0)
    return Encoder.create(encoder).eval(), Generator(generator).eval()


def official(encoder=None, decoder=None, *, opts=None, latent_avg=None):
    """Return the content of a pSp file."""
    parts = {"encoder": encoder, "decoder": decoder}
    tensors = {
        f"{part}.{name}": tensor
        for part, network in parts.items()
        if network is not None
        for name, tensor in network.state_dict().items()
    }
    content = {"state_dict": tensors, "opts": {"encoder_type": TYPES["psp"]} if opts is None else opts}
    return content if latent_avg is None else {**content, "latent_avg": latent_avg}


@pytest.fixture
def write(tmp_path):
    def save(content, name="model.pt", **kwargs):
        path = tmp_path / name
        torch.save(content, path, **kwargs)
        return path

    return save


@pytest.fixture
def load(write):
    return lambda content, **kwargs: checkpoints.load(write(content), **kwargs)


def assert_same(network, expected):
    assert network.config == expected.config
    assert not network.training
    found = network.state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind", TYPES)
def test_an_official_file_gives_the_networks_it_was_made_from(load, kind):
    side = 64 if kind in ("psp", "e4e") else 256  # the others' tensors do not tell it
    encoder, generator = networks(replace(ENCODER, kind=kind, input_height=side, input_width=side,
                                          head_width=10 if kind == "w" else 5))  # fmt: skip
    model = load(official(encoder, generator, opts={"encoder_type": TYPES[kind], "output_size": 32}))
    assert_same(model.encoder, encoder)
    assert_same(model.generator, generator)
    assert model.input == InputSpec(kind="rgb", height=side, width=side)
    assert model.source_format == ("e4e" if kind == "e4e" else "psp")
    images = torch.randn(2, 3, side, side)
    torch.testing.assert_close(model.encoder(images), encoder(images), rtol=0, atol=0)


def test_the_single_style_encoder_of_e4e_is_the_w_encoder(load):
    encoder, generator = networks(
        replace(ENCODER, kind="w", head_width=10, input_height=256, input_width=256)
    )
    average = torch.randn(8, 12)
    opts = {"encoder_type": "SingleStyleCodeEncoder", "stylegan_size": 32, "start_from_latent_avg": True}
    model = load(official(encoder, generator, opts=opts, latent_avg=average))
    assert_same(model.encoder, encoder)
    assert model.source_format == "e4e"
    assert (model.latent_avg == average[0]).all()  # as the public code does: a single style has one average


def test_provenance_names_the_file_and_its_hash(write):
    path = write(official(*networks()))
    found = checkpoints.load(path).provenance
    assert found["source"] == "model.pt"
    assert found["source_format"] == "psp"
    assert len(found["source_sha256"]) == 64


@pytest.mark.parametrize(
    ("opts", "kind"), [({"stylegan_size": 32}, "e4e"), ({"output_size": 32}, "psp"), ({"label_nc": 0}, "psp")]
)
def test_without_an_encoder_type_the_other_options_tell_e4e_from_psp(load, opts, kind):
    assert load(official(*networks(), opts=opts)).encoder.config.kind == kind


def test_a_pyramid_encoder_of_unknown_type_is_refused_without_its_name(load):
    content = official(*networks(), opts={})
    with pytest.raises(CheckpointError, match=r"whether its encoder is pSp's or e4e's.*--encoder-type e4e"):
        load(content)
    images = torch.randn(1, 3, 64, 64)
    codes = {kind: load(content, encoder_type=kind).encoder(images) for kind in ("psp", "e4e")}
    torch.testing.assert_close(codes["e4e"][:, 1:], codes["psp"][:, 1:] + codes["psp"][:, :1])
    assert load(content, encoder_type="Encoder4Editing").encoder.config.kind == "e4e"


@pytest.mark.parametrize("shape", [(8, 12), (1, 12), (12,)])
def test_every_form_of_the_latent_average_becomes_one_row_a_style(load, shape):
    average = torch.randn(shape)
    model = load(official(*networks(), latent_avg=average))
    assert (model.latent_avg == average.expand(8, 12)).all()
    assert model.latent_avg.shape == (8, 12)


def test_a_latent_average_of_another_shape_is_refused(load):
    with pytest.raises(
        CheckpointError, match=r"model.pt: latent_avg has shape \(7, 12\); expected \(8, 12\)"
    ):
        load(official(*networks(), latent_avg=torch.zeros(7, 12)))


def test_a_missing_latent_average_says_how_to_estimate_it(load):
    encoder, generator = networks()
    content = official(encoder, generator, opts={"output_size": 32, "start_from_latent_avg": True})
    with pytest.raises(CheckpointError, match=r"holds no latent_avg; add --latent-avg estimate"):
        load(content)
    model = load(content, latent_avg="estimate")
    torch.testing.assert_close(model.latent_avg, generator.mean_style().expand(8, 12))
    assert model.provenance["latent_avg"] == "estimate"


def test_a_model_that_does_not_start_from_the_average_gets_none(load):
    opts = {"output_size": 32, "start_from_latent_avg": False}
    assert load(official(*networks(), opts=opts, latent_avg=torch.ones(8, 12))).latent_avg is None
    assert load(official(*networks())).latent_avg is None


@pytest.mark.parametrize(
    ("opts", "channels", "task", "kind", "labels"),
    [
        ({"dataset_type": "ffhq_encode"}, 3, "inversion", "rgb", None),
        ({"dataset_type": "ffhq_frontalize"}, 3, "frontalization", "rgb", None),
        ({"dataset_type": "celebs_super_resolution"}, 3, "super-resolution", "rgb", None),
        ({"dataset_type": "my_toonify"}, 3, "toonify", "rgb", None),
        ({"dataset_type": "celebs_sketch_to_face", "label_nc": 1, "input_nc": 1}, 1, "sketch", "gray", None),
        ({"dataset_type": "celebs_sketch_to_face", "input_nc": 1}, 1, "sketch", "gray", None),
        ({"label_nc": 1}, 1, "sketch", "gray", None),
        (
            {"dataset_type": "celebs_seg_to_face", "label_nc": 19, "input_nc": 19},
            19,
            "segmentation",
            "labels",
            19,
        ),
        ({"label_nc": 3}, 3, "segmentation", "labels", 3),
        ({}, 11, "segmentation", "labels", 11),
        ({}, 3, "translation", "rgb", None),
    ],
)
def test_task_and_input_come_from_options_and_channels(load, opts, channels, task, kind, labels):
    content = official(*networks(replace(ENCODER, input_channels=channels)), opts={"output_size": 32, **opts})
    model = load(content)
    assert (model.task, model.input.kind, model.input.labels) == (task, kind, labels)
    assert model.encoder.config.input_channels == channels


def test_official_label_maps_are_resized_as_in_training_by_default(load):
    content = official(*networks(replace(ENCODER, input_channels=19)), opts={"label_nc": 19})
    assert load(content).input.resize == "bilinear"
    assert load(content, label_resize="nearest").input.resize == "nearest"
    with pytest.raises(CheckpointError, match="--label-resize is 'cubic'; expected one of bilinear, nearest"):
        load(content, label_resize="cubic")


def test_the_input_can_be_named_but_must_fit_the_channels(load):
    content = official(*networks())
    assert load(content, input="labels:3").input.labels == 3
    with pytest.raises(
        CheckpointError, match=r"--input says labels:19, which needs 19 input channels, but .* 3"
    ):
        load(content, input="labels:19")
    for wrong in ("color", "labels:1"):
        with pytest.raises(CheckpointError, match=f"--input is '{wrong}'; expected rgb, gray or labels:N"):
            load(content, input=wrong)


def test_a_wish_that_means_nothing_for_a_file_is_refused(load):
    with pytest.raises(CheckpointError, match="--label-resize is for label maps, but the input is rgb"):
        load(official(*networks()), label_resize="nearest")
    with pytest.raises(CheckpointError, match="a generator alone, but --encoder-type, --input and"):
        load({"g_ema": Generator(GENERATOR).state_dict()}, input="rgb")


def test_a_restyle_encoder_is_refused_by_name(load):
    content = official(*networks(replace(ENCODER, input_channels=6)))
    with pytest.raises(CheckpointError, match="6 input channels: a ReStyle model"):
        load(content)
    assert load(content, input="labels:6").input.labels == 6


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ({"output_size": 1024}, r"options say output_size=1024, but .* 32 pixels"),
        ({"stylegan_size": 256}, r"options say stylegan_size=256, but .* 32 pixels"),
        ({"input_nc": 1}, r"options say input_nc=1, but the tensor .*input_layer.0.weight has 3"),
        ({"label_nc": 19}, r"options say labels:19, .* has 3"),
        ({"label_nc": 1}, r"options say gray, which needs 1 input channels, .* has 3"),
        (
            {"encoder_type": TYPES["w"]},
            r"type is BackboneEncoderUsingLastLayerIntoW, but .* psp or e4e encoder",
        ),
        (
            {"encoder_type": "ResNetEncoder"},
            r"'ResNetEncoder' is unknown; expected one of GradualStyleEncoder",
        ),
        ({"output_size": 32, "learn_in_w": True}, r"options say learn_in_w=True, but .* psp encoder"),
        ({"n_iters_per_batch": 5}, r"a ReStyle model"),
    ],
)
def test_options_that_contradict_the_tensors_are_refused_with_both(load, opts, message):
    with pytest.raises(CheckpointError, match="model.pt: .*" + message):
        load(official(*networks(), opts=opts))


def test_cars_of_e4e_are_wide(load):
    encoder, generator = networks(
        replace(ENCODER, kind="e4e", num_styles=16, input_height=192, input_width=256),
        GeneratorConfig(channels=(4,) * 8, style_dim=12, mapping_layers=1),
    )
    opts = {"encoder_type": "Encoder4Editing", "stylegan_size": 512, "dataset_type": "cars_encode"}
    model = load(official(encoder, generator, opts=opts))
    assert_same(model.encoder, encoder)
    assert (model.input.height, model.input.width) == (192, 256)
    assert model.output_rows == (64, 448)
    assert model.encoder(torch.zeros(1, 3, 192, 256)).shape == (1, 16, 12)


def test_missing_surplus_and_misshapen_tensors_are_named(load):
    content = official(*networks())
    tensors = content["state_dict"]
    del tensors["encoder.latlayer1.bias"]
    tensors["encoder.styles.7.extra"] = torch.zeros(2, 3)
    tensors["encoder.styles.2.linear.weight"] = torch.zeros(9, 5)
    with pytest.raises(CheckpointError) as caught:
        load(content)
    message = str(caught.value)
    assert "encoder.latlayer1.bias is missing, expected (10,)" in message
    assert "encoder.styles.7.extra (2, 3) is surplus" in message
    assert "encoder.styles.2.linear.weight has shape (9, 5), expected (12, 5)" in message


def test_many_wrong_tensors_are_counted(load):
    content = official(*networks())
    for name in [name for name in content["state_dict"] if name.startswith("decoder.noises.")]:
        del content["state_dict"][name]
    del content["state_dict"]["decoder.to_rgb1.bias"], content["state_dict"]["decoder.input.input"]
    with pytest.raises(CheckpointError, match=r"and 1 more \(9 in all\)"):
        load(content)


def test_tensors_of_neither_network_are_named(load):
    content = official(*networks())
    content["state_dict"]["refiner.weight"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"surplus are refiner.weight \(4,\)"):
        load(content)


def test_a_tensor_that_the_architecture_is_read_from_must_be_there(load):
    content = official(*networks())
    del content["state_dict"]["encoder.input_layer.0.weight"]
    with pytest.raises(CheckpointError, match=r"tensor input_layer.0.weight is missing"):
        load(content)


def test_filters_come_from_the_file_and_must_be_4x4(load):
    content = official(*networks())
    content["state_dict"]["decoder.convs.0.conv.blur.kernel"] = torch.ones(4, 4)
    assert (load(content).generator.convs[0].conv.blur.kernel == 1).all()
    content["state_dict"]["decoder.convs.0.conv.blur.kernel"] = torch.ones(2, 2)
    with pytest.raises(CheckpointError, match=r"blur.kernel has shape \(2, 2\), expected \(4, 4\)"):
        load(content)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named_by_tensor(load, number):
    content = official(*networks())
    content["state_dict"]["decoder.conv1.conv.weight"][0, 0, 0, 0, 0] = number
    with pytest.raises(
        CheckpointError, match=r"NaN or infinity in decoder.conv1.conv.weight; .* earlier checkpoint"
    ):
        load(content)
    average = torch.full((8, 12), number)
    with pytest.raises(CheckpointError, match="NaN or infinity in latent_avg"):
        load(official(*networks(), latent_avg=average))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(load, dtype):
    encoder, generator = networks()
    content = official(encoder.to(dtype), generator.to(dtype), latent_avg=torch.ones(12, dtype=dtype))
    model = load(content)
    floating = [*model.encoder.parameters(), *model.generator.parameters(), model.latent_avg]
    assert {tensor.dtype for tensor in floating} == {torch.float32}
    assert_same(model.generator, generator.float())


def test_files_of_old_or_parallel_training_are_read(load):
    encoder, generator = networks()
    content = official(encoder, generator)
    content["state_dict"] = {
        f"module.{name}": tensor
        for name, tensor in content["state_dict"].items()
        if not name.endswith("num_batches_tracked")
    }
    assert_same(load(content).encoder, encoder)


def test_files_of_torch_before_1_6_are_read(write):
    encoder, generator = networks()
    path = write(official(encoder, generator), _use_new_zipfile_serialization=False)
    assert_same(checkpoints.load(path).encoder, encoder)


def test_options_may_be_a_namespace_with_numpy_values_and_paths(load):
    opts = {"output_size": np.int64(32), "start_from_latent_avg": np.bool_(False), "lr": np.float32(0.1),
            "exp_dir": pathlib.PurePosixPath("runs/1"), "betas": np.array([0.9, 0.99]),
            "device": None}  # fmt: skip
    model = load(official(*networks(), opts=argparse.Namespace(**opts), latent_avg=torch.ones(12)))
    assert model.latent_avg is None
    with pytest.raises(CheckpointError, match="options say output_size=64"):
        load(official(*networks(), opts=argparse.Namespace(output_size=np.int64(64))))


class Command:
    """What a hostile pickle holds: a function to call on loading."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_named_and_never_run(write, tmp_path, zipped):
    marker = tmp_path / "ran"
    content = {**official(*networks()), "note": Command(marker)}
    path = write(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"asks to run \w+\.mkdir; .* nothing was run"):
        checkpoints.load(path)
    assert not marker.exists()


def test_half_a_model_says_what_to_add(load):
    encoder, generator = networks()
    with pytest.raises(CheckpointError, match=r"holds no generator; add one with --generator FILE"):
        load(official(encoder))
    with pytest.raises(CheckpointError, match=r"holds no encoder; add one with --encoder FILE"):
        load(official(decoder=generator))


def test_an_encoder_can_be_paired_with_another_generator(write):
    encoder, generator = networks()
    other = Generator(GENERATOR)
    average = torch.randn(12)
    psp = write(official(encoder, generator, latent_avg=average), "psp.pt")
    pair = write({"g_ema": other.state_dict(), "latent_avg": torch.zeros(12)}, "other.pt")
    for model in (checkpoints.load(psp, generator=pair), checkpoints.load(pair, encoder=psp)):
        assert_same(model.encoder, encoder)
        assert_same(model.generator, other.eval())
        assert (model.latent_avg == average).all()
    assert model.provenance["encoder_source"] == "psp.pt"
    with pytest.raises(CheckpointError, match=r"both --encoder and --generator, .*psp.pt is not used"):
        checkpoints.load(psp, encoder=psp, generator=pair)


def test_a_pair_uses_the_encoders_average_if_the_generator_has_none(write):
    encoder, generator = networks()
    average = torch.randn(8, 12)
    psp = write(official(encoder, generator, latent_avg=average), "psp.pt")
    pair = write({"g_ema": Generator(GENERATOR).state_dict()}, "other.pt")
    assert (checkpoints.load(psp, generator=pair).latent_avg == average).all()


def test_an_encoder_alone_takes_its_rows_from_its_generator(write):
    encoder, generator = networks(
        replace(ENCODER, kind="w", head_width=10, input_height=256, input_width=256)
    )
    psp = write(official(encoder, opts={"encoder_type": TYPES["w"]}), "psp.pt")
    pair = write({"g_ema": generator.state_dict()}, "other.pt")
    assert_same(checkpoints.load(psp, generator=pair).encoder, encoder)


def test_a_pair_that_does_not_fit_is_refused(write):
    psp = write(official(*networks()), "psp.pt")
    larger = Generator(replace(GENERATOR, channels=(8, 8, 6, 4, 4)))
    pair = write({"g_ema": larger.state_dict()}, "other.pt")
    with pytest.raises(
        CheckpointError, match=r"codes of 8 styles of 12 numbers, but .* 64 pixels needs 10 of 12"
    ):
        checkpoints.load(psp, generator=pair)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_rosinality_generator_stands_alone(load, multiplier):
    widths = tuple(width // 64 for width in official_channels(256, multiplier))
    generator = Generator(GeneratorConfig(channels=widths, style_dim=12, mapping_layers=3)).eval()
    average = torch.randn(12)
    model = load({"g_ema": generator.state_dict(), "d": {}, "latent_avg": average,
                  "args": argparse.Namespace(size=256, n_mlp=3)})  # fmt: skip
    assert_same(model.generator, generator)
    assert (model.encoder, model.input, model.task) == (None, None, "generation")
    assert (model.latent_avg == average).all()
    assert model.source_format == "rosinality"


def test_a_rosinality_file_of_another_size_than_its_arguments_is_refused(load):
    with pytest.raises(CheckpointError, match=r"options say size=512, but .* 32 pixels"):
        load({"g_ema": Generator(GENERATOR).state_dict(), "args": argparse.Namespace(size=512)})


@pytest.mark.parametrize(("kind", "labels"), [("gray", None), ("labels", 5)])
def test_a_file_of_our_trainer_is_read_by_its_own_reader(tmp_path, kind, labels):
    encoder, generator = networks(replace(ENCODER, input_channels=labels or 1, widths=(4, 4, 4, 4)))
    path = tmp_path / "run.pt"
    average = torch.randn(12)
    trainer_checkpoint.save(
        path,
        trainer_checkpoint.Checkpoint(
            task="mine", input_kind=kind, labels=labels, model=Translation(encoder, generator, average)
        ),
    )
    model = checkpoints.load(path)
    assert_same(model.encoder, encoder)
    assert_same(model.generator, generator)
    assert (model.latent_avg == average).all()
    resize = "nearest" if labels else "bilinear"
    assert model.input == InputSpec(kind=kind, height=64, width=64, labels=labels, resize=resize)
    assert (model.task, model.source_format) == ("mine", "psp_rt.trainer")


def test_a_damaged_file_of_our_trainer_is_refused(load):
    with pytest.raises(CheckpointError, match=r"model.pt: .*version"):
        load({"format": "psp_rt.trainer", "version": 99})


def test_an_unknown_content_is_listed_beside_the_known_formats(load):
    with pytest.raises(
        CheckpointError, match=r"holds 2 entries \('epoch', 'weights'\); supported formats: pSp or e4e"
    ):
        load({"epoch": 1, "weights": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"holds a Tensor; supported formats"):
        load(torch.zeros(1))


def test_an_encoder_of_no_known_kind_is_described(load):
    content = official(*networks())
    tensors = content["state_dict"]
    content["state_dict"] = {
        name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.styles")
    }
    with pytest.raises(
        CheckpointError, match="has the layers body, input_layer, latlayer1, latlayer2; expected styles"
    ):
        load(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; supported formats: pSp"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model; give the checkpoint that it was made from"),
        (b"ftrt\x00\x00", "a TensorRT plan"),
        (b"<!DOCTYPE html><html>", "a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", r"begins with b'hello'; supported formats: pSp"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(path)


def test_a_missing_file_and_a_folder_are_said_to_be_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pt cannot be opened: No such file"):
        checkpoints.load(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="is a folder; give the checkpoint file in it"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("kind", ["meta", "quantised"])
def test_a_tensor_without_plain_numbers_is_named(write, kind):
    content = official(*networks())
    name, tensor = next((name, value) for name, value in content["state_dict"].items() if value.ndim == 4)
    odd = tensor.to("meta") if kind == "meta" else torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    content["state_dict"][name] = odd
    with pytest.raises(CheckpointError, match="is a quantized tensor"):
        checkpoints.load(write(content))


@pytest.mark.parametrize("name", ["x" * 300, "a\nb.pt"])
def test_odd_file_names_are_no_trouble(write, tmp_path, name):
    if len(name) < 255:
        write(official(*networks())).rename(tmp_path / name)
        assert checkpoints.load(tmp_path / name).provenance["source"] == "a?b.pt"
    else:
        with pytest.raises(CheckpointError, match="cannot be opened: File name too long"):
            checkpoints.load(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_to_be_copied_again(write, zipped):
    path = write(official(*networks()), _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=r"(incomplete|damaged).*download or copy it again"):
        checkpoints.load(path)


def test_damage_in_a_zips_directory_is_to_be_copied_again(write):
    path = write(official(*networks()))
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    data[start : start + 4] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"(incomplete|damaged).*download or copy it again"):
        checkpoints.load(path)


def test_an_engine_and_other_zips_are_told_from_checkpoints(tmp_path):
    path = tmp_path / "x.engine"
    for member, message in [
        ("manifest.json", "is already an engine file; use it with: psp-rt run x.engine"),
        ("x/constants.pkl", "is a TorchScript program"),
        ("photo.jpg", "a zip without a checkpoint"),
    ]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, b"")
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(path)


@pytest.mark.slow
@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the conformance vectors are not here")
def test_a_full_size_official_file_gives_the_official_results(write):
    spec = importlib.util.spec_from_file_location("weights", CONFORMANCE / "weights.py")
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)
    with torch.device("meta"):
        encoder = Encoder.create(EncoderConfig(input_channels=1))
        content = official(encoder, Generator(GeneratorConfig(channels=official_channels(1024))))
    kernel = Generator(GENERATOR).convs[0].conv.blur.kernel
    tensors = {
        name: kernel
        if name.endswith("kernel")
        else torch.from_numpy(formula.weight(name, tuple(tensor.shape)))
        for name, tensor in content["state_dict"].items()
    }
    opts = {
        "dataset_type": "celebs_sketch_to_face",
        "label_nc": 1,
        "input_nc": 1,
        "start_from_latent_avg": True,
        "output_size": 1024,
    }
    average = torch.from_numpy(formula.weight("latent_avg", (18, 512)))
    path = write({"state_dict": tensors, "opts": opts, "latent_avg": average})
    del tensors

    model = checkpoints.load(path, encoder_type="GradualStyleEncoder")
    expected = np.load(CONFORMANCE / "psp_sketch_1024.npz")
    images = torch.from_numpy(expected["images"]).float()[:, None] / 255
    with torch.no_grad():
        codes = model.encoder(images) + model.latent_avg
        pictures = model.generator(torch.from_numpy(expected["codes"]))
    crop = pictures[:, :, 480:544, 480:544]
    pooled = torch.nn.functional.adaptive_avg_pool2d(pictures, 64)
    for found, name in [(codes, "codes"), (pooled, "pooled"), (crop, "crop")]:
        assert np.abs(found.numpy() - expected[name]).max() < 1e-4 * np.ptp(expected[name])
    assert (model.task, model.input.kind) == ("sketch", "gray")
