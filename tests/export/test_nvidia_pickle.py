"""Network pickles are made here by hand, in NVIDIA's layout, so that none of their code is needed."""

import io
import os
import pickle
import sys
from collections import OrderedDict
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from export.checkpoints import load as checkpoints
from export.cli import main
from export.errors import CheckpointError
from psp_rt.errors import PspError
from trainer.checkpoint import load_generator

CHANNELS, LENGTH, SIDES = (8, 8, 6), 12, (4, 8, 16)


class EasyDict(dict):
    """Stands for dnnlib's; its true home is set when the pickle is written."""


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the reader must not call this")


class Fake:
    """A module of a network pickle, which reduces to its state as theirs do."""

    def __init__(self, class_name, tensors, modules=None, **attributes):
        buffers = ("resample_filter", "noise_const", "w_avg")
        self.class_name = class_name
        self.state = {
            "training": False,
            "_parameters": OrderedDict(
                (n, torch.nn.Parameter(t)) for n, t in tensors.items() if n not in buffers
            ),
            "_buffers": OrderedDict((n, t) for n, t in tensors.items() if n in buffers),
            "_non_persistent_buffers_set": set(),
            "_modules": OrderedDict(modules or {}),
            "_init_kwargs": EasyDict(note="x"),
            **attributes,
        }

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit",
            "class_name": self.class_name,
        }
        return _reconstruct_persistent_obj, ({**meta, "state": self.state},)


def filter_taps():
    taps = torch.tensor([1.0, 3, 3, 1])
    return torch.outer(taps, taps) / 64


def dense(inputs, outputs, *, rate=1.0, activation="linear"):
    tensors = {"weight": torch.randn(outputs, inputs) / rate, "bias": torch.randn(outputs)}
    gains = {"weight_gain": rate / np.sqrt(inputs), "bias_gain": rate}  # a NumPy scalar, as in their files
    return Fake("FullyConnectedLayer", tensors, activation=activation, **gains)


def convolution(inputs, outputs, side, *, clamp):
    tensors = {
        "weight": torch.randn(outputs, inputs, 3, 3),
        "bias": torch.randn(outputs),
        "noise_strength": torch.randn([]),
        "noise_const": torch.randn(side, side),
        "resample_filter": filter_taps(),
    }
    fields = {"activation": "lrelu", "use_noise": True, "conv_clamp": clamp}
    return Fake("SynthesisLayer", tensors, {"affine": dense(LENGTH, inputs)}, **fields)


def block(inputs, outputs, side, *, clamp):
    colors = {"weight": torch.randn(3, outputs, 1, 1), "bias": torch.randn(3)}
    modules = {"conv0": convolution(inputs, outputs, side, clamp=clamp)} if inputs else {}
    modules["conv1"] = convolution(outputs, outputs, side, clamp=clamp)
    modules["torgb"] = Fake("ToRGBLayer", colors, {"affine": dense(LENGTH, outputs)}, conv_clamp=clamp)
    tensors = {"resample_filter": filter_taps()}
    if not inputs:
        tensors["const"] = torch.randn(outputs, side, side)
    return Fake("SynthesisBlock", tensors, modules, architecture="skip")


def network(*, clamp=None):
    torch.manual_seed(0)
    inputs = (0, *CHANNELS)
    blocks = {f"b{side}": block(inputs[i], CHANNELS[i], side, clamp=clamp) for i, side in enumerate(SIDES)}
    layers = {f"fc{i}": dense(LENGTH, LENGTH, rate=0.01, activation="lrelu") for i in range(2)}
    return Fake(
        "Generator",
        {},
        {
            "synthesis": Fake("SynthesisNetwork", {}, blocks),
            "mapping": Fake("MappingNetwork", {"w_avg": torch.randn(LENGTH)}, layers),
        },
        z_dim=LENGTH,
        c_dim=0,
        w_dim=LENGTH,
        img_resolution=SIDES[-1],
        img_channels=3,
    )


def at(module, path):
    """Return the state of a module inside."""
    for name in filter(None, path.split(".")):
        module = module.state["_modules"][name]
    return module.state


@pytest.fixture
def write(tmp_path, monkeypatch):
    def save(content, protocol=pickle.DEFAULT_PROTOCOL):
        homes = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
        path = tmp_path / "network.pkl"
        with monkeypatch.context() as patch, path.open("wb") as file:
            for name, thing in homes.items():
                module = ModuleType(name)
                setattr(module, thing.__name__, thing)
                patch.setitem(sys.modules, name, module)
                patch.setitem(sys.modules, name.split(".")[0], ModuleType("package"))
                patch.setattr(thing, "__module__", name)
            pickle.dump(content, file, protocol)
        return path

    return save


@pytest.fixture
def load(write):
    return lambda generator, **kwargs: checkpoints.load(write({"G_ema": generator}), **kwargs)


# What the file means, written from the StyleGAN2 paper without a look at our generator.


def run_dense(state, x):
    weight, bias = state["_parameters"]["weight"], state["_parameters"]["bias"]
    x = x @ (weight * float(state["weight_gain"])).T + bias * state["bias_gain"]
    return F.leaky_relu(x, 0.2) * 2**0.5 if state["activation"] == "lrelu" else x


def zeros_between(x):
    """Return [N, C, 2H - 1, 2W - 1]."""
    spread = x.new_zeros(*x.shape[:2], x.shape[2] * 2 - 1, x.shape[3] * 2 - 1)
    spread[:, :, ::2, ::2] = x
    return spread


def per_channel(x, taps):
    return F.conv2d(x, taps.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def run_convolution(module, x, w, *, up=False):
    """Filter and convolve one picture, without regard to speed: the order does not matter."""
    state, tensors = module.state, {**module.state["_parameters"], **module.state["_buffers"]}
    weight = tensors["weight"] * run_dense(at(module, "affine"), w)[0, None, :, None, None]
    weight = weight * (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
    if up:  # a convolution, not a correlation: this is what needs no flip of the stored weight
        x = per_channel(F.pad(zeros_between(x), (5, 5, 5, 5)), tensors["resample_filter"] * 4)
        x = F.conv2d(x, weight.flip(2, 3))[:, :, 2:-2, 2:-2]
    else:
        x = F.conv2d(x, weight, padding=1)
    x = x + tensors["noise_const"] * tensors["noise_strength"] + tensors["bias"][:, None, None]
    return bounded(F.leaky_relu(x, 0.2) * 2**0.5, state["conv_clamp"])


def run_colors(module, x, w):
    tensors = module.state["_parameters"]
    style = run_dense(at(module, "affine"), w)[0] / tensors["weight"].shape[1] ** 0.5
    rgb = F.conv2d(x, tensors["weight"] * style[None, :, None, None]) + tensors["bias"][:, None, None]
    return bounded(rgb, module.state["conv_clamp"])


def bounded(x, clamp):
    return x if clamp is None else x.clamp(-clamp, clamp)


@torch.no_grad()
def run(generator, codes):
    """Return the picture of one code [L, D]."""
    rows = iter(codes[:, None])
    rgb = None
    for side, module in at(generator, "synthesis")["_modules"].items():
        layers = module.state["_modules"]
        if side == "b4":
            x, row = module.state["_parameters"]["const"][None], next(rows)
        else:
            x, row = run_convolution(layers["conv0"], x, row, up=True), next(rows)
            below = per_channel(F.pad(zeros_between(rgb), (2, 2, 2, 2)), filter_taps() * 4)
        x, row = run_convolution(layers["conv1"], x, row), next(rows)
        colors = run_colors(layers["torgb"], x, row)
        rgb = colors if rgb is None else below + colors
    return rgb


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_pickle_gives_the_pictures_that_its_layers_mean(write, protocol):
    generator = network()
    model = checkpoints.load(write({"G": None, "D": None, "G_ema": generator}, protocol))
    codes = torch.randn(6, LENGTH)
    expected = run(generator, codes)
    torch.testing.assert_close(
        model.generator(codes[None]), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
    )
    assert model.generator.config.channels == CHANNELS
    assert model.encoder is None
    assert (model.source_format, model.task) == ("stylegan2-ada", "generation")


def test_the_mapping_and_its_average_are_the_files(load):
    generator = network()
    model = load(generator)
    z = torch.randn(3, LENGTH)
    w = z / z.square().mean(dim=1, keepdim=True).sqrt()
    for layer in at(generator, "mapping")["_modules"].values():
        w = run_dense(layer.state, w)
    torch.testing.assert_close(model.generator.mapping(z), w)
    assert (model.latent_avg == at(generator, "mapping")["_buffers"]["w_avg"]).all()


def test_a_bound_on_the_activations_is_kept(load):
    generator, codes = network(clamp=0.5), torch.randn(6, LENGTH)
    model = load(generator)
    assert model.generator.config.conv_clamp == 0.5
    expected = run(generator, codes)
    torch.testing.assert_close(model.generator(codes[None]), expected, rtol=1e-4, atol=1e-4)
    assert (expected != run(network(), codes)).any()


@pytest.mark.parametrize(
    ("path", "name", "value", "message"),
    [
        ("", "c_dim", 10, r"c_dim \(classes\) is 10, expected 0; supported are unconditional"),
        ("", "z_dim", 64, r"z_dim is 64, expected 12"),
        ("", "img_channels", 1, r"img_channels is 1, expected 3"),
        ("synthesis.b8", "architecture", "resnet", r"architecture is 'resnet' and 'skip', expected 'skip'"),
        ("synthesis.b8.conv0", "activation", "relu", r"activation is 'lrelu' and 'relu', expected 'lrelu'"),
        ("synthesis.b8.conv0", "use_noise", False, r"use_noise is False and True, expected True"),
        ("synthesis.b8.conv0", "conv_clamp", 256, r"conv_clamp of all layers is 256 and None"),
        ("mapping.fc0", "bias_gain", 1, r"lr_multiplier is 0.01 and 1, expected 0.01"),
        ("mapping.fc0", "weight_gain", 1.0, r"weight_gain is 0.01 and 3.46\d+, expected 0.01"),
    ],
)
def test_what_computes_something_else_is_refused(load, path, name, value, message):
    generator = network()
    at(generator, path)[name] = value
    with pytest.raises(CheckpointError, match="network.pkl: the generator's " + message):
        load(generator)


def test_another_filter_is_refused(load):
    generator = network()
    at(generator, "synthesis.b8")["_buffers"]["resample_filter"] = torch.full((4, 4), 1 / 16)
    with pytest.raises(CheckpointError, match=r"resample_filter \[1, 3, 3, 1\] is False and True"):
        load(generator)


def test_a_network_of_another_kind_is_refused(load):
    generator = network()
    del at(generator, "synthesis.b8")["_buffers"]["resample_filter"]
    with pytest.raises(
        CheckpointError, match=r"not a stylegan2-ada generator \(KeyError\('resample_filter'\)\)"
    ):
        load(generator)
    with pytest.raises(CheckpointError, match="G_ema is a dict; expected a network"):
        load({})


def test_missing_and_surplus_tensors_of_a_pickle_are_named(load):
    generator = network()
    del at(generator, "synthesis.b16.torgb")["_parameters"]["bias"]
    at(generator, "mapping")["_buffers"]["extra"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"to_rgbs.1.bias is missing.*mapping.extra \(2,\) is surplus"):
        load(generator)


def tensors_of(module, prefix=""):
    """Return a network's state dict under NVIDIA's names."""
    found = {prefix + name: value.detach() for part in ("_parameters", "_buffers")
             for name, value in module.state[part].items()}  # fmt: skip
    for name, child in module.state["_modules"].items():
        found |= tensors_of(child, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("prefix", ["", "module.", "G_ema."])
def test_bare_tensors_under_nvidias_names_are_the_pickles(write, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in tensors_of(network(clamp=2)).items()}
    expected = checkpoints.load(write({"G_ema": network(clamp=2)}))
    for content in (state, {"G_ema": state}, {"g_ema": state, "conv_clamp": "2"}):
        torch.save(content, tmp_path / "bare.pt")
        model = checkpoints.load(tmp_path / "bare.pt")
        assert model.source_format == "stylegan2-ada"
        for name, tensor in expected.generator.state_dict().items():
            assert torch.equal(model.generator.state_dict()[name], tensor), name
        assert torch.equal(model.latent_avg, expected.latent_avg)
        stated = "conv_clamp" in content
        assert model.generator.config.conv_clamp == (2 if stated else None)
        assert any("--conv-clamp 256" in note for note in model.notes) is not stated
        clamped = checkpoints.load(tmp_path / "bare.pt", conv_clamp=2)
        assert clamped.generator.config.conv_clamp == 2
        assert not any("conv_clamp" in note for note in clamped.notes)
        if stated:
            with pytest.raises(PspError, match=r"--conv-clamp is 3, but bare.pt says 2"):
                checkpoints.load(tmp_path / "bare.pt", conv_clamp=3)
    with pytest.raises(PspError, match="export convert"):
        load_generator(tmp_path / "bare.pt")


def test_a_stylegan3_is_called_by_its_name(load, tmp_path):
    layer = Fake("SynthesisLayer", {"weight": torch.zeros(2, 2, 3, 3)}, {"affine": dense(LENGTH, 2)})
    synthesis = Fake("SynthesisNetwork", {}, {"input": Fake("SynthesisInput", {}), "L0_36_512": layer})
    mapping = Fake("MappingNetwork", {"w_avg": torch.zeros(LENGTH)}, {"fc0": dense(LENGTH, LENGTH)})
    generator = Fake("Generator", {}, {"synthesis": synthesis, "mapping": mapping}, c_dim=0, z_dim=LENGTH)
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        load(generator)
    torch.save({"G_ema": tensors_of(generator)}, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        checkpoints.load(tmp_path / "bare.pt")


class Call:
    """Asks for any function to be called on loading."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_code_in_a_pickle_is_named_and_never_run(load, tmp_path):
    generator = network()
    at(generator, "mapping")["hook"] = Call(os.mkdir, str(tmp_path / "ran"))
    with pytest.raises(CheckpointError, match=r"asks to run \w+\.mkdir; .* nothing was run"):
        load(generator)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_bytes_of_a_tensor_is_named_and_never_run(load, tmp_path):
    inner = io.BytesIO()
    torch.save(Call(os.mkdir, str(tmp_path / "ran")), inner)
    with pytest.raises(CheckpointError, match=r"asks to run \w+\.mkdir"):
        load(Call(torch.storage._load_from_bytes, inner.getvalue()))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, torch.load, torch.hub.load, pickle.loads])
def test_no_function_beyond_the_list_can_be_reached(load, function):
    with pytest.raises(CheckpointError, match="asks to run"):
        load(Call(function, "1"))


def test_the_functions_of_the_list_cannot_be_changed(tmp_path):
    path = tmp_path / "network.pkl"
    change = b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x05_makeK\x01sb."  # BUILD with {"_make": 1}
    path.write_bytes(change)
    with pytest.raises(CheckpointError, match=r"damaged .a state for a function"):
        checkpoints.load(path)


def test_a_tensor_cannot_reach_outside_of_its_storage(load):
    _, (storage, *_) = torch.zeros(4).__reduce_ex__(2)
    call = Call(torch._utils._rebuild_tensor_v2, storage, 0, (1000,), (1,), False, OrderedDict())
    with pytest.raises(CheckpointError, match=r"damaged .*out of bounds"):
        load(call)


def test_a_tensorflow_pickle_says_how_to_convert_it(tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\n.")
    with pytest.raises(
        CheckpointError, match=r"TensorFlow version of StyleGAN; convert it first with legacy.py"
    ):
        checkpoints.load(path)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_pickle_is_to_be_copied_again(write, kept):
    path = write({"G_ema": network()})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"damaged .*; download or copy it again"):
        checkpoints.load(path)


def test_a_converted_pickle_is_read_by_the_trainer_and_the_export(write, tmp_path):
    pickled, converted = write({"G_ema": network(clamp=0.5)}), tmp_path / "generator.pt"
    result = CliRunner().invoke(main, ["convert", str(pickled), str(converted)])
    assert result.exit_code == 0, result.output
    assert "StyleGAN2 of 16 pixels, 6 styles" in result.output
    original, codes = checkpoints.load(pickled), torch.randn(2, 6, LENGTH)
    trained_for, average = load_generator(converted)
    for generator in (trained_for, checkpoints.load(converted).generator):
        assert generator.config.conv_clamp == 0.5
        torch.testing.assert_close(generator(codes), original.generator(codes), rtol=0, atol=0)
    torch.testing.assert_close(average.expand(6, -1), original.latent_avg)


def test_the_trainer_says_how_to_convert_a_pickle(write):
    with pytest.raises(PspError, match=r"convert .* first: python -m export convert FILE\.pkl FILE\.pt"):
        load_generator(write({"G_ema": network()}))


def test_a_file_that_cannot_be_converted_says_why(tmp_path):
    (tmp_path / "text.pkl").write_bytes(b"text")
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "text.pkl"), str(tmp_path / "out.pt")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert not (tmp_path / "out.pt").exists()


def test_a_bound_that_is_no_number_is_refused(write, tmp_path):
    source = write({"G_ema": network(clamp=1)})
    CliRunner().invoke(main, ["convert", str(source), str(tmp_path / "generator.pt")])
    content = torch.load(tmp_path / "generator.pt", weights_only=True)
    for wrong in ("much", -1.0):
        torch.save({**content, "conv_clamp": wrong}, tmp_path / "wrong.pt")
        with pytest.raises(CheckpointError, match=r"conv_clamp is .*; expected a number above 0"):
            checkpoints.load(tmp_path / "wrong.pt")
