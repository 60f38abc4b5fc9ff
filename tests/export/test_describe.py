"""What an engine says about itself: how its pictures are cut, default layers, which codes are usual."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from export.__main__ import main
from export.checkpoints.formats import alignment_of
from export.describe import Description, describe
from psp_rt import EngineFile, InputError, Translator
from psp_rt.engine.statistics import CODES, STYLES, Statistics
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, WIDTH, D, L


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    values = np.random.default_rng(0).integers(0, 256, (120, HEIGHT, WIDTH, 3), np.uint8)
    for number, pixels in enumerate(values):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def engine(tmp_path):
    return tiny_engine.build(tmp_path / "a.engine")


@pytest.mark.parametrize(
    ("dataset", "alignment"),
    [
        *[("ffhq_encode", "ffhq"), ("ffhq_frontalize", "ffhq"), ("celebs_sketch_to_face", "ffhq")],
        *[("celebs_super_resolution", "ffhq"), ("cars_encode", "none"), ("horse_encode", "none")],
        *[("church_encode", "none"), ("cats_encode", "none"), ("afhq_wild_encode", "none"), ("", None)],
    ],
)
def test_official_data_sets_are_recognized(dataset, alignment):
    assert alignment_of(dataset) == alignment


def test_describe_changes_the_description_and_nothing_else(engine, pictures):
    with EngineFile.open(engine) as file:
        before = {name: bytes(file.view(name)) for name in file.manifest.members}
    changes = Description(alignment="ffhq", default_layers="2-", pictures=[pictures])
    manifest = describe(engine, changes)
    assert (manifest.alignment, manifest.default_layers) == ("ffhq", "2-")
    assert manifest.provenance["alignment"] == "--alignment"
    assert_says(manifest.provenance["strange_above"], "99.9%", "120 pictures")
    with EngineFile.open(engine) as file:
        assert before == {name: bytes(file.view(name)) for name in before}
        assert set(file.manifest.members) - set(before) == {STYLES, CODES}
        styles = Statistics.from_bytes(file.view(STYLES), D, member=STYLES)
        codes = Statistics.from_bytes(file.view(CODES), L, D, member=CODES)
    # The tiny mapping is w = z / 2 + 1/4.
    np.testing.assert_allclose(styles.mean, 0.25, atol=0.03)
    np.testing.assert_allclose(styles.spread, 0.5, atol=0.03)
    files = sorted(pictures.iterdir())
    with Translator(engine) as translator:
        distances = codes.distance(translator.encode(files))
    assert np.median(distances) < manifest.strange_above < 2 * distances.max()


def test_what_is_not_said_stays(engine, pictures, tmp_path):
    describe(engine, Description(alignment="ffhq", pictures=[pictures]))
    second = describe(engine, Description(default_layers="3-"), output=tmp_path / "b.engine")
    assert (second.alignment, second.default_layers) == ("ffhq", "3-")
    assert second.strange_above is not None
    assert CODES in second.members


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (Description(default_layers="9-"), ["9-", "1-6"]),
        (Description(default_layers="-3"), ["-3", "1-3"]),
        (Description(default_layers="x"), ["x", "8-18"]),
    ],
)
def test_layers_that_the_model_has_not_are_refused(engine, changes, facts):
    before = engine.read_bytes()
    with pytest.raises(InputError) as refused:
        describe(engine, changes)
    assert_says(refused, *facts)
    assert engine.read_bytes() == before


def test_too_few_pictures_and_no_encoder_are_messages(engine, pictures, tmp_path):
    with pytest.raises(InputError) as refused:
        describe(engine, Description(pictures=[pictures / "000.png"]))
    assert_says(refused, "1 picture", "100")
    generator = tiny_engine.build(tmp_path / "g.engine", None)
    with pytest.raises(InputError, match="no encoder"):
        describe(generator, Description(alignment="none"))


def test_the_command_says_what_the_engine_says(engine, tmp_path):
    words = [
        "describe",
        engine,
        "--alignment",
        "none",
        "--default-layers",
        "2-",
        "--output",
        tmp_path / "b.engine",
    ]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert_says(done.output, "b.engine", "alignment none", "layers 2-", "no limit")
    refused = CliRunner().invoke(main, ["describe", str(engine), "--from-photos"])
    assert_says(refused.output, "--pictures")
