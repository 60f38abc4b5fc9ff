"""Checkpoints as people have them: wrappings, options as text, pairs of files, tensors that are not used."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export.checkpoints import load as checkpoints
from export.cli import main
from export.errors import CheckpointError
from psp_rt import EngineFile
from psp_rt.errors import InputError
from tests.messages import assert_says
from trainer.checkpoint import load_generator
from trainer.networks import Encoder, EncoderConfig, Generator, GeneratorConfig

GENERATOR = GeneratorConfig(channels=(4, 4, 4), style_dim=8, mapping_layers=2)  # 16 pixels, 6 styles
ENCODER = EncoderConfig(
    num_styles=6,
    style_dim=8,
    input_height=64,
    input_width=64,
    widths=(4, 6, 8, 10),
    depths=(1, 1, 1, 1),
    head_width=4,
)
PSP = {"encoder_type": "GradualStyleEncoder", "output_size": 16, "start_from_latent_avg": True}
NAIVE = "BackboneEncoderUsingLastLayerIntoWPlus"
E4E = {"encoder_type": "Encoder4Editing", "stylegan_size": 16, "start_from_latent_avg": True}


def encoder_state(**sizes):
    torch.manual_seed(0)
    return Encoder.create(replace(ENCODER, **sizes)).state_dict()


def generator_state(**sizes):
    torch.manual_seed(1)
    return Generator(replace(GENERATOR, **sizes)).state_dict()


def named(part, tensors):
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def without(tensors, *ends):
    return {name: tensor for name, tensor in tensors.items() if not any(end in name for end in ends)}


def psp(encoder=None, generator=None, *, opts=None, average=0.5, **more):
    state = named("encoder", encoder or encoder_state()) | named("decoder", generator or generator_state())
    content = {"state_dict": state, "opts": PSP if opts is None else opts, **more}
    return content if average is None else {**content, "latent_avg": torch.full((6, 8), average)}


@pytest.fixture
def write(tmp_path):
    def save(content, name="model.pt", **kwargs):
        torch.save(content, tmp_path / name, **kwargs)
        return tmp_path / name

    return save


@pytest.fixture
def load(write):
    return lambda content, **kwargs: checkpoints.load(write(content), **kwargs)


def write_safetensors(path, tensors, metadata=None):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    types = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    for name, tensor in tensors.items():
        values = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {
            "dtype": types[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def same(found, state):
    own = found.state_dict()
    assert own.keys() == state.keys()
    return all(torch.equal(own[name], tensor) for name, tensor in state.items())


# Whose number it is.


@pytest.mark.parametrize(
    ("opts", "size", "rows"),
    [
        ({**PSP, "dataset_type": "cars_encode"}, (64, 64), None),
        ({**E4E, "dataset_type": "cars_encode"}, (48, 64), (2, 14)),
        ({**E4E, "dataset_type": "my_cars_encode"}, (48, 64), (2, 14)),
        ({**E4E, "dataset_type": "carsten"}, (64, 64), None),
        ({**E4E, "encoder_type": "GradualStyleEncoder", "dataset_type": "cars_2"}, (48, 64), (2, 14)),
    ],
)
def test_only_cars_of_e4e_are_wide(load, opts, size, rows):
    model = load(psp(opts=opts))
    assert (model.input.height, model.input.width) == size
    assert model.output_rows == rows
    assert ("output_rows_from" in model.provenance) == (rows is not None)


def test_each_number_of_a_pair_comes_from_the_file_of_its_network(write):
    bare = {"g_ema": generator_state(), "latent_avg": torch.zeros(8), "conv_clamp": 3.0}
    bare["opts"] = {"label_nc": 19}
    first = write(psp(opts={**PSP, "dataset_type": "my_toonify"}, conv_clamp=9.0), "psp.pt")
    other = write(bare, "other.pt")
    for model in (checkpoints.load(first, generator=other), checkpoints.load(other, encoder=first)):
        assert (model.latent_avg == 0.5).all()
        assert model.generator.config.conv_clamp == 3
        assert (model.task, model.input.kind) == ("toonify", "rgb")
        assert model.provenance["generator_conv_clamp_from"].startswith("other.pt")
        assert model.provenance["generator_sizes_from"].startswith("other.pt")
        for name in ("latent_avg", "encoder_type", "input", "input_size", "task", "num_styles"):
            assert model.provenance[f"{name}_from"].startswith("psp.pt"), name


def test_an_encoder_that_starts_from_an_average_it_lacks_takes_the_generators(write):
    other = write({"g_ema": generator_state(), "latent_avg": torch.ones(8)}, "other.pt")
    model = checkpoints.load(write(psp(average=None)), generator=other)
    assert (model.latent_avg == 1).all()
    assert model.provenance["latent_avg_from"] == "other.pt"
    assert (
        checkpoints.load(write(psp(average=None, opts={"output_size": 16})), generator=other).latent_avg
        is None
    )


def test_the_length_of_naive_styles_is_the_encoders(write):
    encoder = encoder_state(kind="naive_w+", num_styles=6)
    opts = {"encoder_type": NAIVE, "output_size": 16}
    first = write({"state_dict": named("encoder", encoder), "opts": opts})
    other = write({"g_ema": generator_state(style_dim=4)}, "other.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(first, generator=other)
    assert_says(caught, "6 styles of 8 numbers", "6 of 4")


# Options as text, as zero and as False.


@pytest.mark.parametrize("value", [False, 0, "False", "0", " no ", np.bool_(False), torch.tensor(False)])
def test_a_flag_that_is_off_is_off_in_every_spelling(load, value):
    opts = {**PSP, "start_from_latent_avg": value, "learn_in_w": value}
    assert load(psp(opts=opts)).latent_avg is None


@pytest.mark.parametrize("value", [True, 1, "True", "1", "yes"])
def test_a_flag_that_is_on_is_on_in_every_spelling(load, value):
    assert load(psp(opts={**PSP, "start_from_latent_avg": value})).latent_avg is not None
    with pytest.raises(CheckpointError) as caught:
        load(psp(opts={**PSP, "learn_in_w": value}))
    assert_says(caught, "learn_in_w")


@pytest.mark.parametrize(
    "opts",
    [
        {"output_size": "16", "input_nc": "3", "label_nc": "0", "encoder_type": " GradualStyleEncoder "},
        {"output_size": 16.0, "input_nc": np.int64(3), "label_nc": False, "n_iters_per_batch": "0"},
        {"stylegan_size": "None", "output_size": "16", "encoder_type": "None", "label_nc": "none"},
    ],
)
def test_numbers_as_text_mean_what_they_say(load, opts):
    model = load(psp(opts=opts))
    assert (model.source_format, model.encoder.config.kind, model.input.kind) == ("psp", "psp", "rgb")


@pytest.mark.parametrize(
    ("opts", "facts"),
    [
        ({"output_size": "32"}, ("output_size=32", "16 pixels")),
        ({"output_size": 0}, ("output_size=0", "16 pixels")),
        ({"output_size": "large"}, ("output_size", "'large'", "whole number")),
        ({"start_from_latent_avg": "maybe"}, ("start_from_latent_avg", "'maybe'", "True or False")),
        ({"learn_in_w": 2}, ("learn_in_w", "2", "True or False")),
        ({"label_nc": "19"}, ("labels:19", "--input rgb")),
        ({"input_nc": "1"}, ("input_nc=1",)),
    ],
)
def test_an_option_that_is_wrong_is_refused_by_its_name(load, opts, facts):
    with pytest.raises(CheckpointError) as caught:
        load(psp(opts={**PSP, **opts}))
    assert_says(caught, "model.pt", *facts)


def test_zero_labels_mean_rgb(load):
    content = psp(encoder_state(input_channels=5), opts={**PSP, "label_nc": 0})
    with pytest.raises(CheckpointError) as caught:
        load(content)
    assert_says(caught, "rgb", "5", "--input labels:5")
    assert load(content, input="labels:5").input.labels == 5


# Tensors that are not used.


def test_filters_may_be_missing(load, write):
    state = without(generator_state(), ".kernel")
    assert same(load(psp(generator=state)).generator, generator_state())
    assert same(checkpoints.load(write({"g_ema": state})).generator, generator_state())
    assert same(load_generator(write({"g_ema": state}))[0], generator_state())


@pytest.mark.parametrize(
    ("missing", "noise", "helps"),
    [
        (("noises.",), "random", "--noise random"),
        (("noises.",), "none", "--noise none"),
        (("noises.", ".noise.weight"), "none", "--noise none"),
        (("noises.noise_3",), "random", "--noise random"),
    ],
)
def test_noise_is_needed_only_if_it_is_used(load, missing, noise, helps):
    content = psp(generator=without(generator_state(), *missing))
    with pytest.raises(CheckpointError) as caught:
        load(content)
    assert_says(caught, "is missing", helps)
    with torch.no_grad():
        pictures = load(content, noise=noise).generator(torch.ones(1, 6, 8), noise="none")
        torch.testing.assert_close(pictures, load(psp()).generator(torch.ones(1, 6, 8), noise="none"))


def test_a_mapping_network_is_needed_only_without_an_average(load, write):
    state = without(generator_state(), "style.")
    model = load(psp(generator=state))
    torch.testing.assert_close(model.generator.mapping(torch.randn(3, 8)), torch.full((3, 8), 0.5))
    assert any("no mapping network" in note for note in model.notes)
    for content, asked in (psp(generator=state), {"latent_avg": "estimate"}), ({"g_ema": state}, {}):
        with pytest.raises(CheckpointError) as caught:
            load(content, **asked)
        assert_says(caught, "mapping network", "--encoder FILE")
    with pytest.raises(InputError, match="mapping network"):
        load_generator(write({"g_ema": state}))


def test_a_network_that_is_replaced_is_not_looked_at(write):
    broken = {"conv1.activate.bias": torch.zeros(3)}
    other = write({"g_ema": generator_state()}, "other.pt")
    model = checkpoints.load(write(psp(generator=broken)), generator=other)
    assert same(model.generator, generator_state())
    whole = write(psp(), "whole.pt")
    model = checkpoints.load(write(psp(encoder={"input_layer.0.weight": torch.zeros(3)})), encoder=whole)
    assert same(model.encoder, encoder_state())


def test_discriminators_and_losses_are_left_out(load):
    content = psp(
        discriminator_state_dict={"convs.0.0.weight": torch.zeros(1)}, d={"b4.conv.weight": torch.zeros(1)}
    )
    content["state_dict"] |= {"discriminator.x": torch.zeros(1), "id_loss.facenet.body.0": torch.zeros(1)}
    assert any("discriminator, id_loss" in note for note in load(content).notes)


# Wrappings.


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPINGS = {
    "the state dict itself": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "an average": lambda state: {"params_ema": state, "params": {name: t + 1 for name, t in state.items()}},
    "two levels": lambda state: {"checkpoint": {"net": state}},
    **{
        f"{prefix} before every name": lambda state, prefix=prefix: {
            prefix + name: t for name, t in state.items()
        }
        for prefix in ("module.", "_orig_mod.", "net.", "model.net.module.", "generator.", "g_ema.")
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_generator_is_found_in_any_wrapping(write, wrapping):
    path = write(WRAPPINGS[wrapping](generator_state()))
    model = checkpoints.load(path)
    assert same(model.generator, generator_state())
    assert (model.source_format, model.encoder) == ("rosinality", None)
    assert same(load_generator(path)[0], generator_state())


@pytest.mark.parametrize(
    "wrapping", [name for name in WRAPPINGS if "gen" not in name and "g_ema" not in name]
)
def test_an_encoder_is_found_in_any_wrapping(write, wrapping):
    other = write({"g_ema": generator_state()}, "other.pt")
    path = write(WRAPPINGS[wrapping](encoder_state()))
    model = checkpoints.load(other, encoder=path, encoder_type="psp", latent_avg="estimate")
    assert same(model.encoder, encoder_state())


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "_orig_mod.", "pipeline.net."])
def test_a_model_is_found_under_any_prefix(load, prefix):
    state = named("encoder", encoder_state()) | named("decoder", generator_state())
    state |= {"latent_avg": torch.ones(6, 8)}
    content = {prefix + name: tensor for name, tensor in state.items()}
    for whole in (content, {"state_dict": content}):
        model = load(whole, encoder_type="e4e")
        assert same(model.encoder, encoder_state())
        assert same(model.generator, generator_state())
        assert (model.latent_avg == 1).all()


def test_two_state_dicts_make_a_model(load):
    model = load(
        {"encoder": encoder_state(), "generator": generator_state(), "opts": PSP, "latent_avg": torch.ones(8)}
    )
    assert same(model.encoder, encoder_state())
    assert same(model.generator, generator_state())


def test_the_average_comes_before_the_generator_in_training(load):
    training = {name: tensor + 1 for name, tensor in generator_state().items()}
    both = {"g": training, "g_ema": generator_state(), "d": {"convs.0.0.weight": torch.zeros(1)}}
    assert same(load(both).generator, generator_state())
    model = load({"g": training})
    assert same(model.generator, training)
    assert any("g_ema" in note for note in model.notes)


def test_two_networks_that_could_both_be_meant_are_named(load):
    with pytest.raises(CheckpointError) as caught:
        load({"first": generator_state(), "second": generator_state()})
    assert_says(caught, "first", "second", "g_ema")


def test_an_encoder_without_options_must_say_what_its_codes_are_relative_to(write):
    other = write({"g_ema": generator_state()}, "other.pt")
    path = write(encoder_state())
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(other, encoder=path, encoder_type="psp")
    assert_says(caught, "--latent-avg estimate", "--latent-avg none")
    assert checkpoints.load(other, encoder=path, encoder_type="psp", latent_avg="none").latent_avg is None


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_model_is_found_in_a_larger_module(load, wrapped):
    state = {f"model.net.{name}": tensor for name, tensor in psp()["state_dict"].items()}
    state |= {"loss.lpips.conv.weight": torch.zeros(3, 3), "loss.weight": torch.zeros(1)}
    content = (
        {**psp(), "state_dict": state} if wrapped else {**state, "opts": PSP, "latent_avg": torch.ones(8)}
    )
    model = load(content)
    assert torch.equal(
        model.generator.state_dict()["input.input"], psp()["state_dict"]["decoder.input.input"]
    )
    assert model.encoder is not None
    assert any("loss" in note and "model.net." in note for note in model.notes)


@pytest.mark.parametrize("prefix", ["", "state_dict.", "net."])
def test_safetensors_are_read_under_the_same_names(tmp_path, prefix):
    state = named("encoder", encoder_state()) | named("decoder", generator_state())
    tensors = {prefix + name: tensor for name, tensor in state.items()} | {"latent_avg": torch.ones(8)}
    text = {name: str(value) for name, value in PSP.items()}
    for metadata in (text, {"format": "pt", "opts": json.dumps(PSP)}):
        path = write_safetensors(tmp_path / "model.safetensors", tensors, metadata)
        model = checkpoints.load(path)
        assert same(model.encoder, encoder_state())
        assert same(model.generator, generator_state())
        assert (model.latent_avg == 1).all()
    path = write_safetensors(
        tmp_path / "g.safetensors", {f"g_ema.{n}": t for n, t in generator_state().items()}
    )
    assert same(load_generator(path)[0], generator_state())


# More rows than the generator takes, and inputs that tensors cannot size.


@pytest.mark.parametrize("kind", ["psp", "e4e", "naive_w+"])
def test_the_first_rows_count(load, kind):
    names = {
        "psp": "GradualStyleEncoder",
        "e4e": "Encoder4Editing",
        "naive_w+": NAIVE,
    }
    sizes = {"kind": kind, "num_styles": 9} | (
        {"input_height": 256, "input_width": 256} if kind == "naive_w+" else {}
    )
    average = torch.arange(9.0)[:, None].expand(9, 8).clone()
    content = psp(encoder_state(**sizes), opts={"encoder_type": names[kind]}, average=None)
    model = load({**content, "latent_avg": average})
    images = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    whole = Encoder.create(replace(ENCODER, **sizes)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images), whole(images)[:, :6])
    assert (model.latent_avg == average[:6]).all()
    assert_says("; ".join(model.notes), "9 styles", "first 6", "9 rows")
    assert_says(model.provenance["notes"], "9 styles", "first 6")


def test_fewer_rows_are_an_error(load):
    with pytest.raises(CheckpointError, match="codes of 4 styles"):
        load(psp(encoder_state(num_styles=4)))
    with pytest.raises(CheckpointError, match=r"latent_avg has shape \(4, 8\)"):
        load({**psp(average=None), "latent_avg": torch.zeros(4, 8)})


def test_heads_for_large_inputs_take_smaller_ones(load):
    content = psp(encoder_state(input_height=256, input_width=256))
    model = load(content, input_size=(64, 48))
    assert (model.input.height, model.input.width) == (64, 48)
    assert model.encoder(torch.zeros(1, 3, 64, 48)).shape == (1, 6, 8)
    assert model.provenance["input_size_from"] == "model.pt: --input-size"
    assert any("256x256" in note and "--input-size" in note for note in load(content).notes)
    for size, fact in ((272, 256), "256"), ((40, 64), "16"):
        with pytest.raises(CheckpointError) as caught:
            load(content, input_size=size)
        assert_says(caught, "--input-size", fact)


@pytest.mark.parametrize("kind", ["w", "naive_w+"])
def test_an_input_size_that_tensors_do_not_say_is_printed(load, kind):
    names = {"w": "BackboneEncoderUsingLastLayerIntoW", "naive_w+": NAIVE}
    content = psp(encoder_state(kind=kind), opts={"encoder_type": names[kind]})
    assert any("256x256" in note and "assumed" in note for note in load(content).notes)
    assert load(content, input_size=(64, 64)).encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 6, 8)


def test_an_exported_engine_tells_what_was_assumed(write, tmp_path):
    encoder = encoder_state(input_height=128, input_width=128, num_styles=8)
    path = write(psp(encoder, without(generator_state(), "style.", "noises.", ".kernel")))
    engine = tmp_path / "a.engine"
    words = [str(path), "--output", str(engine), "--noise", "none", "--input-size", "64"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert_says(result.output, "64x64", "first 6", "no mapping network")
    with EngineFile.open(engine) as file:
        assert (file.manifest.input.height, file.manifest.num_styles) == (64, 6)
        assert file.manifest.provenance["input_size_from"] == "model.pt: --input-size"


# Other ways to save.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_protocol_is_read(write, protocol, zipped):
    path = write(psp(), pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    model = checkpoints.load(path)
    assert same(model.encoder, encoder_state())
    assert same(load_generator(path)[0], generator_state())
