"""`python -m trainer evaluate`: the paper's Table 1 for any runs."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from benchmarks.report import paper as runtime_column
from export.checkpoints import load as checkpoints
from export.engine import export_engine
from psp_rt.errors import PspError
from psp_rt.files import sha256
from tests.models import tiny_runs
from tests.models.tiny_runs import recipe_of, start
from trainer import checkpoint
from trainer.__main__ import main
from trainer.cli import evaluate as command
from trainer.data import inputs
from trainer.data.pairs import TrainingSet
from trainer.encoder.training import pool
from trainer.evaluation import measure as measuring
from trainer.evaluation import tables
from trainer.evaluation.measure import Candidate, Metrics, check_comparable
from trainer.losses.identity import ARCFACE, Identity
from trainer.losses.lpips import LpipsAlex, enlarge

CPU = torch.device("cpu")


class Colors(nn.Module):
    """Stands in for an identity network: the mean color of a face."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


@pytest.fixture
def faces(tmp_path):
    return tiny_runs.write_faces(tmp_path / "faces", count=11)


@pytest.fixture
def save_run(tmp_path):
    """Save a run with drawn weights, whose folder has the name that is given."""
    generator = tiny_runs.draw_generator()

    def save(name, recipe, **files):
        run = start(recipe, generator)
        run.files, run.images_seen = files, 40
        (tmp_path / name).mkdir()
        run.save(tmp_path / name / "latest.pt")
        return tmp_path / name

    return save


@pytest.fixture
def identity_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Identity, "load", lambda path: Identity(Colors(), ARCFACE))
    path = tmp_path / "identity.pth"
    path.write_bytes(b"an identity network")
    return path


def test_the_figures_are_those_of_the_averaged_model_over_every_photo(save_run, faces):
    recipe = recipe_of()
    folder = save_run("psp", recipe)
    torch.manual_seed(0)
    lpips, identity = LpipsAlex(), Identity(Colors(), ARCFACE)
    for head in lpips.heads:
        head.fill_(0.1)
    candidates = [Candidate.load(folder, CPU)]
    sets = measuring.load_sets(candidates, faces, None)
    (found,) = measuring.measure(candidates, sets, Metrics(lpips, identity), device=CPU)

    model, batch = (
        checkpoint.load(folder / "latest.pt").model,
        TrainingSet.load(recipe, faces).plain(range(11)),
    )
    with torch.no_grad():
        pictures = model(inputs.to_network(batch.sources, recipe)).clamp(-1, 1)
    targets = inputs.to_target(batch.targets)
    expected = {
        "mse": (pictures - targets).square().mean(dim=(1, 2, 3)),
        "lpips": lpips(enlarge(pictures), enlarge(targets)),
        "similarity": identity.similarity(pictures, targets),
    }
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(getattr(found, name)), values, rtol=1e-4, atol=1e-5)
    assert len(found.seconds) == 11
    assert min(found.seconds) > 0


def test_a_run_time_waits_for_the_picture_and_comes_after_the_warm_up(save_run, faces, monkeypatch):
    candidates = [Candidate.load(save_run("psp", recipe_of()), CPU)]
    sets, order = measuring.load_sets(candidates, faces, None), []
    translate = Candidate.translate
    monkeypatch.setattr(Candidate, "translate", lambda *seen: order.append("run") or translate(*seen))
    monkeypatch.setattr(measuring, "_wait", lambda device: order.append("wait"))
    measuring.measure(candidates, sets, Metrics(None, None), device=CPU)
    assert order == ["wait", "run", "wait"] * (measuring.WARM_UP + 11)


def test_models_of_different_tasks_share_a_table_each_with_its_own_input(save_run, faces):
    folders = [save_run("photo", recipe_of()), save_run("drawing", recipe_of("sketch"))]
    candidates = [Candidate.load(folder, CPU) for folder in folders]
    sets = measuring.load_sets([*candidates, candidates[0]], faces, None)
    assert sets[0] is sets[2]
    assert [data.plain([0]).sources.shape[3] for data in sets] == [3, 1, 3]
    comparison = command.evaluate(candidates, faces, device=CPU)
    assert [row.candidate.recipe.task for row in comparison.rows] == ["inversion", "sketch"]


def test_paired_inputs_come_from_their_folder(save_run, faces, tmp_path):
    folder = save_run("pairs", recipe_of("inversion", "source=pairs"))
    partners = tiny_runs.write_faces(tmp_path / "partners", count=11)
    comparison = command.evaluate([Candidate.load(folder, CPU)], faces, pairs=partners, device=CPU)
    assert len(comparison.rows[0].figures.mse) == 11
    with pytest.raises(PspError, match="needs --pairs: the folder of inputs"):
        command.evaluate([Candidate.load(folder, CPU)], faces, device=CPU)
    with pytest.raises(PspError, match="every run makes its inputs from the photos; leave it out"):
        command.evaluate(
            [Candidate.load(save_run("own", recipe_of()), CPU)], faces, pairs=partners, device=CPU
        )


def test_runs_compared_at_different_sizes_are_refused(save_run):
    recipe = recipe_of()
    sizes = [save_run("whole", recipe), save_run("half", replace(recipe, loss_size=16))]
    with pytest.raises(PspError, match=r"whole at 32x32, half at 16x16.*evaluate each size"):
        check_comparable([Candidate.load(path, CPU) for path in sizes])


def test_the_network_of_the_loss_is_named_circular(save_run, faces, identity_file):
    known = sha256(identity_file)
    trained = recipe_of("inversion", "losses.identity=0.1")
    folders = [
        save_run("same", trained, identity=known),
        save_run("other", trained, identity="another file"),
        save_run("without", recipe_of()),
        save_run("silent", trained),
    ]
    candidates = [Candidate.load(folder, CPU) for folder in folders]
    comparison = command.evaluate(candidates, faces, identity_network=identity_file, device=CPU)
    assert [row.circular for row in comparison.rows] == ["yes", "no", "no", "not recorded"]
    text = comparison.as_text()
    assert [line.count("(circular)") for line in text.splitlines()[1:5]] == [1, 0, 0, 0]
    assert "measured by the same network that this run was trained with" in text
    assert "does not record which identity network" in text
    assert comparison.as_json()["identity"] == known


def test_a_file_without_a_recipe_is_measured_by_its_tasks_default_and_says_so(save_run, faces):
    folder = save_run("old", recipe_of("super-resolution"))
    kept = checkpoint.load(folder / "latest.pt")
    checkpoint.save(folder / "plain.pt", replace(kept, training={}))
    candidate = Candidate.load(folder / "plain.pt", CPU)
    assert (candidate.recipe.input_size, candidate.recipe.loss_size) == (32, 32)
    assert candidate.recipe.factors == (1, 2, 4, 8, 16)
    text = command.evaluate([candidate], faces, device=CPU).as_text()
    assert "identity network" not in text  # without a similarity there is nothing to say of it
    assert "The file contains no recipe, so the task's default was used: old/plain." in text
    checkpoint.save(folder / "cats.pt", replace(kept, training={}, task="cats"))
    with pytest.raises(PspError, match="has the task 'cats' but no recipe"):
        Candidate.load(folder / "cats.pt", CPU)
    checkpoint.save(folder / "gray.pt", replace(kept, training={}, task="sketch"))
    with pytest.raises(PspError, match="reads rgb of 32x32, which is not what the recipe of sketch makes"):
        Candidate.load(folder / "gray.pt", CPU)


def test_the_command_writes_a_table_a_page_a_file_and_a_sheet(save_run, faces, tmp_path):
    (faces / "broken.jpg").write_bytes(b"no picture")
    runs = [str(save_run("psp", recipe_of())), str(save_run("w", recipe_of("inversion", "encoder=w")))]
    files = {kind: tmp_path / f"table.{kind}" for kind in ("md", "json", "png")}
    written = ["--markdown", files["md"], "--json", files["json"], "--sheet", files["png"]]
    result = CliRunner().invoke(
        main, ["evaluate", *runs, "--images", str(faces), "--device", "cpu", *map(str, written)]
    )
    assert result.exit_code == 0, result.output
    for shown in (result.output, files["md"].read_text()):
        assert "Left out: broken.jpg, is not a picture that Pillow can read." in shown
        assert "other data (CelebA-HQ), another card (Tesla P40)" in shown
        assert "pooled to 32x32 (the paper: 256x256)" in shown
        assert "LPIPS compares pictures enlarged to 128x128" in shown
        assert "after 3 warm-up runs" in shown
    assert "| pSp [paper] | 0.58 | 0.19 | 0.04 | 0.106 |" in files["md"].read_text()
    content = json.loads(files["json"].read_text())
    assert content["data"] == {
        "photos": 11,
        "left_out": {"broken.jpg": "is not a picture that Pillow can read"},
    }
    first, second = content["rows"]
    assert (first["name"], first["encoder"], second["encoder"]) == ("psp", "psp", "w")
    assert first["mse"] == pytest.approx(np.mean(first["each"]["mse"]), abs=1e-5)
    assert first["encoder_parameters"] > second["encoder_parameters"]
    assert first["similarity"] is first["lpips"] is first["circular"] is None
    assert str(tmp_path) not in files["json"].read_text()
    with Image.open(files["png"]) as sheet:
        assert sheet.size == (4 * 32 * 2, 8 * 32 * 2 + 14)  # input, target and two runs, eight photos


def test_an_engine_is_measured_as_it_is_deployed(save_run, faces, tmp_path):
    """The runtime's pictures have the error of the checkpoint's, up to rounding to bytes."""
    run = save_run("sketches", recipe_of("sketch"))
    export_engine(checkpoints.load(run / "latest.pt"), tmp_path / "sketches.engine")
    candidates = [Candidate.load(path, CPU) for path in (run, tmp_path / "sketches.engine")]
    trained, deployed = command.evaluate(candidates, faces, device=CPU).rows
    assert deployed.candidate.name == "sketches.engine"
    assert deployed.cells()[6:] == ("engine", "sketch")
    np.testing.assert_allclose(deployed.figures.mse, trained.figures.mse, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lpips-heads", "HERE"], "LPIPS needs both its files: --lpips-features and --lpips-heads"),
        (["--json", "absent/table.json"], "table.json cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(options, message, save_run, faces):
    run = save_run("psp", recipe_of())
    options = [str(run / "latest.pt") if option == "HERE" else option for option in options]
    result = CliRunner().invoke(main, ["evaluate", str(run), "--images", str(faces), *options])
    assert result.exit_code == 1
    assert message in result.output


def test_the_quoted_rows_are_those_of_the_runtime_benchmark():
    assert {row.method: row.seconds for row in tables.TABLE_1} == runtime_column.SECONDS
    assert asdict(tables.TABLE_1[-1])["similarity"] == 0.58


def test_pictures_are_compared_as_a_file_would_hold_them(save_run):
    candidate = Candidate.load(save_run("psp", replace(recipe_of(), loss_size=16)), CPU)
    pictures = torch.full((1, 3, 32, 32), 1.5)
    assert (candidate.compared(pictures) == torch.ones(1, 3, 16, 16)).all()
    assert tables.mean([]) is None
    assert pool(pictures, 32) is pictures
