"""From an engine back to a checkpoint that computes the same, and can be trained on."""

import copy

import numpy as np
import pytest
import torch

from export.checkpoints import load as checkpoints
from export.engine import Settings, export_engine
from models.recover import main, recover
from psp_rt import InputError, Translator
from tests.models import tiny_engine
from tests.models.tiny_models import GENERATOR, draw, encoder_config
from trainer import checkpoint
from trainer.loop.average import spread_statistics
from trainer.networks import Encoder, Generator, Translation


def drawn_model(kind="psp", *, average=True, task="inversion", channels=3):
    rng = np.random.default_rng(5)
    sizes = {"input_height": 64, "input_width": 64, "input_channels": channels}
    networks = Encoder.create(encoder_config(kind, **sizes)), Generator(GENERATOR)
    for network in networks:
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("kernel"):
                tensor.copy_(torch.from_numpy(draw(rng, name, tuple(tensor.shape))))
    rows = torch.randn(GENERATOR.num_styles, GENERATOR.style_dim, generator=torch.Generator().manual_seed(1))
    if kind == "w":
        rows = rows[:1]  # which adds one style, too
    kinds = {1: ("gray", None), 3: ("rgb", None)}
    input_kind, labels = kinds.get(channels, ("labels", channels))
    model = Translation(*networks, rows if average else None).eval()
    return checkpoint.Checkpoint(task=task, input_kind=input_kind, labels=labels, model=model)


def engine_of(found, folder, **settings):
    checkpoint.save(folder / "given.pt", found)
    path = folder / f"{found.task}.engine"
    export_engine(checkpoints.load(folder / "given.pt"), path, Settings(**settings))
    return path


def pictures(model, sources, noise="const"):
    with torch.no_grad():
        return model(sources, noise=noise)


@pytest.fixture(scope="module")
def psp(tmp_path_factory):
    """A model with a pSp encoder, and the same recovered from its engine."""
    given = drawn_model()
    return given, recover(engine_of(given, tmp_path_factory.mktemp("psp")))


def check_same(given, found):
    sources = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        expected = given.model.encode(sources)
        torch.testing.assert_close(found.model.encode(sources), expected, rtol=1e-3, atol=1e-4)
        z = torch.randn(3, GENERATOR.style_dim, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(
            found.model.generator.mapping(z), given.model.generator.mapping(z), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(
        pictures(found.model, sources), pictures(given.model, sources), rtol=1e-3, atol=1e-3
    )


def test_the_model_comes_back(psp):
    given, found = psp
    assert found.model.encoder.config.kind == "psp"
    assert found.model.latent_avg is not None
    check_same(given, found)


@pytest.mark.parametrize(("kind", "average"), [("e4e", False), ("w", True), ("naive_w+", False)])
def test_other_encoders_come_back_with_and_without_an_average(tmp_path, kind, average):
    given = drawn_model(kind, average=average)
    found = recover(engine_of(given, tmp_path))
    assert found.model.encoder.config.kind == kind
    assert (found.model.latent_avg is not None) == average
    check_same(given, found)


@pytest.mark.parametrize(
    ("channels", "kind", "labels", "noise"), [(1, "gray", None, "none"), (5, "labels", 5, "random")]
)
def test_other_inputs_and_noise_come_back(tmp_path, channels, kind, labels, noise):
    given = drawn_model(task="sketch", channels=channels)
    found = recover(engine_of(given, tmp_path, noise=noise))
    assert (found.task, found.input_kind, found.labels) == ("sketch", kind, labels)
    strengths, expected = (
        [layer.noise.weight.item() for layer in (model.conv1, *model.convs)]
        for model in (found.model.generator, given.model.generator)
    )
    assert strengths == pytest.approx(expected if noise == "random" else [0.0] * len(expected), rel=1e-5)


@pytest.mark.slow
def test_the_command_writes_what_exports_to_the_same_pictures(tmp_path, capsys):
    path = engine_of(drawn_model(), tmp_path, storage="fp16")
    assert main([str(path), str(tmp_path / "back.pt")]) == 0
    assert "inversion, 32 pixels, 8 styles" in capsys.readouterr().out
    export_engine(checkpoints.load(tmp_path / "back.pt"), tmp_path / "again.engine", Settings(storage="fp16"))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with (
        Translator(path, device="cpu") as before,
        Translator(tmp_path / "again.engine", device="cpu") as after,
    ):
        difference = before.run(picture).astype(int) - after.run(picture)
    assert np.abs(difference).max() <= 1


def test_measured_statistics_are_the_data_s_and_change_no_code(psp):
    encoder = copy.deepcopy(psp[1].model.encoder)
    before = copy.deepcopy(encoder)
    sources = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    spread_statistics(encoder, sources)
    with torch.no_grad():
        torch.testing.assert_close(encoder(sources), before(sources), rtol=1e-3, atol=1e-4)
        first = encoder.input_layer[0](sources)
    norm = encoder.input_layer[1]
    torch.testing.assert_close(norm.running_mean, first.mean(dim=(0, 2, 3)))
    # So in training, where a batch's own statistics are used, the first layer gives what it gave.
    training = copy.deepcopy(encoder.input_layer).train()
    with torch.no_grad():
        torch.testing.assert_close(training(sources), before.input_layer(sources), rtol=1e-2, atol=1e-2)


def test_an_engine_of_other_graphs_is_refused(tmp_path):
    path = tiny_engine.build(tmp_path / "tiny.engine")
    with pytest.raises(InputError, match="contains unknown graphs"):
        recover(path)


def test_a_generator_alone_is_refused(tmp_path):
    path = tiny_engine.build(tmp_path / "tiny.engine", None)
    with pytest.raises(InputError, match="contains a generator alone; expected an engine with an encoder"):
        recover(path)
