"""The paper's ablation as one command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import encoders, readme_tables
from benchmarks.report import provenance
from benchmarks.training_speed import drawn_files, sizes
from trainer.checkpoint import load_generator
from trainer.losses.identity import MOBILEFACENET, Identity
from trainer.losses.lpips import LpipsAlex

QUICK = ("--quick", "--device", "cpu")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    assert encoders.main([*QUICK, "--output", str(folder)]) == 0
    return folder


def test_every_encoder_is_trained_alike_and_measured(output):
    content = json.loads((output / "comparison.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == ["w", "naive-w+", "psp", "psp-without-identity"]
    assert [row["encoder"] for row in rows.values()] == ["w", "naive_w+", "psp", "psp"]
    assert [row["circular"] for row in rows.values()] == ["yes", "yes", "yes", "no"]
    assert {row["images_seen"] for row in rows.values()} == {4}
    recipes = content["recipes"]
    assert {(recipe["seed"], recipe["images"], recipe["batch"]) for recipe in recipes.values()} == {(0, 4, 4)}
    assert [recipe["losses"]["identity"] for recipe in recipes.values()] == [0.1, 0.1, 0.1, 0]
    assert content["provenance"]["command"].startswith("python benchmarks/encoders.py --quick")
    assert str(output.parent) not in json.dumps(content)
    assert "| pSp [paper] |" in (output / "comparison.md").read_text()
    shown = readme_tables.block(output / "comparison.json")
    assert "| naive-w+ |" in shown
    assert "| pSp (paper) | 0.58 | 0.19 | 0.04 | 0.106 |" in shown
    assert "python benchmarks/encoders.py --quick" in shown
    with Image.open(output / "comparison.png") as sheet:
        assert sheet.size == (6 * 32 * 2, 2 * 32 * 2 + 14)  # input, target and four encoders, two photos


def test_the_same_command_goes_on_where_it_stopped(output, capsys):
    before = (output / "psp/latest.pt").read_bytes()
    assert encoders.main([*QUICK, "--output", str(output)]) == 0
    assert capsys.readouterr().err.count("resuming after 4 images") == 4
    assert (output / "psp/latest.pt").read_bytes() == before


def test_without_a_network_no_encoder_has_an_identity_loss(tmp_path):
    args = encoders.parser().parse_args(["--generator", "g.pt", "--count", "7", "--set", "batch=2"])
    todo = encoders.experiment(args)
    assert list(todo.variants()) == ["w", "naive-w+", "psp"]
    for changes in todo.variants().values():
        assert {"images=7", "batch=2", "losses.identity=0"} <= set(changes)
    with_network = replace(todo, files=replace(todo.files, identity=Path("i.ckpt")))
    assert list(with_network.variants())[-1] == "psp-without-identity"


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit):
        encoders.main(["--generator", "g.pt", "--images", "photos", "--lpips-features", "f", "--output", "o"])
    assert "name --validation, --lpips-heads, or --quick" in capsys.readouterr().err


def test_drawn_files_are_read_like_real_ones(tmp_path):
    path = drawn_files.generator(tmp_path / "g.pt", sizes.TINY_GENERATOR)
    assert load_generator(path)[0].config == sizes.TINY_GENERATOR
    assert Identity.load(drawn_files.identity(tmp_path / "i.ckpt")).crop == MOBILEFACENET
    features, heads = drawn_files.lpips(tmp_path)
    lpips = LpipsAlex.load(features=features, heads=heads)
    assert lpips(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)) > 0


def test_a_command_is_shown_without_the_folders_of_this_machine():
    shown = provenance.shown_command(["--images", "../faces/train", "/data/x.pt", "runs/a"], program="b.py")
    assert shown == "python b.py --images train x.pt runs/a"
