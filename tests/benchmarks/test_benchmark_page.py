"""The page shows what was measured, and needs nothing but itself."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import latency
from benchmarks.measure.limits import Ceilings, Work
from benchmarks.measure.timing import ContenderRun, Timing
from benchmarks.report import page
from benchmarks.report.result import ContenderResult, ModelResult, Results
from benchmarks.report.tables import all_tables
from psp_rt import PspError

NAMES = ("psp_rt-cpu", "psp_rt-openvino", "pytorch-original")
PROVENANCE = {"cpu": "A <processor>", "date": "today", "commit": "abc", "threads": "2", "load": "0.1"}
VOID = {"meta", "br"}


def model(kind: str, side: int) -> ModelResult:
    """Return a model on which all contenders were timed."""
    found = ModelResult(name=f"{kind}-{side}", kind=kind, input="256 x 256 rgb", output=f"{side} x {side}")
    found.output_pixels = side**2
    found.standings = [
        ContenderResult(name=name, what=name, device="cpu", precision="fp32", status="timed")
        for name in NAMES
    ]
    found.works = {
        (graph, batch): Work(macs=10**9 * batch, weight_bytes=1)
        for graph in ("encoder", "generator")
        for batch in (1, 2, 4)
    }
    ceilings = Ceilings(threads=1, side=100, copied_bytes=4)
    for call in ceilings.calls():
        call.timing.samples_ms.append(0.01)
    found.ceilings = {"cpu": ceilings}
    for number, name in enumerate(NAMES):
        for stage, batch in (
            ("encode", 1),
            ("style-mix", 1),
            ("generate", 1),
            ("end to end", 1),
            ("end to end", 2),
            ("end to end", 4),
        ):
            samples = [side * batch * (number + 1) + spread for spread in (0.0, 1.0, 2.0)]
            found.timings.append(
                Timing(contender=name, stage=stage, batch=batch, images=batch, samples_ms=samples)
            )
        for clones in (1, 2, 4):
            samples = [2.0 * side * clones]
            found.timings.append(
                Timing(
                    contender=name,
                    stage=f"{clones} clone{'s' * (clones > 1)}",
                    batch=1,
                    images=2 * clones,
                    samples_ms=samples,
                )
            )
        found.alone += [
            ContenderRun(
                contender=name,
                batch=batch,
                clones=1,
                open_s=1,
                first_run_s=1,
                second_run_s=1,
                peak_mib=100 * batch,
                device_mib=None,
            )
            for batch in (1, 2, 4)
        ]
    return found


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(
        provenance={**PROVENANCE, "command": "python benchmarks/latency.py --html <file>"},
        settings={"rounds": 3, "warmup": 1},
        models=[model("psp", 256), model("psp", 512), model("psp", 1024)],
        complete=True,
    )


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return page.page(results, list(all_tables(results)))


class Nesting(HTMLParser):
    """Checks that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_neither_network_nor_script(text: str):
    parser = Nesting()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "<script" not in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses  # markers refer to their shapes
    assert all(address.startswith("#") for address in addresses)
    assert "A &lt;processor&gt;" in text
    assert "--html &lt;file&gt;" in text


def test_every_plot_is_there_and_its_text_is_text(text: str):
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL)]
    titles = [plot.attrib["aria-label"] for plot in plots]
    for model_name in ("psp-256", "psp-512", "psp-1024"):
        assert f"How the times are spread: {model_name}, batch 1" in titles
        assert f"What a picture's time is made of: {model_name}, batch 1" in titles
        assert f"Distance from the machine's limit: {model_name}, batch 1" in titles
        assert f"Scaling: {model_name} against batch" in titles
        assert f"Scaling: {model_name} against clones at work at once" in titles
    assert "Scaling: psp against output size" in titles
    assert "The paper's runtime column, and ours" in titles
    for plot in plots:
        words = {node.text for node in plot.iter("{http://www.w3.org/2000/svg}text")}
        assert any("psp_rt-openvino" in (word or "") for word in words)


def test_no_id_stands_twice_and_every_one_that_is_meant_exists(text: str):
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(ids)


def test_a_contender_has_one_color_in_all_plots(text: str):
    from benchmarks.report.plots import COLORS

    colors = [COLORS[name] for name in NAMES]
    assert len(set(colors)) == len(NAMES)
    for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        assert COLORS["psp_rt-openvino"] in svg


def test_all_tables_and_the_headline_are_on_the_page(results: Results, text: str):
    for table in all_tables(results):
        assert page.escape(table.title) in text
    assert "psp-1024: psp_rt-openvino takes 2049 ms from file to picture (median)" in text
    assert "pytorch-original takes 1.50 times as long" in text


@pytest.mark.slow
def test_the_page_is_the_same_when_it_is_made_again(results: Results, text: str):
    assert page.page(results, list(all_tables(results))) == text


def test_an_interrupted_run_says_so_on_top(results: Results):
    cut = Results(provenance=results.provenance, settings=results.settings, models=[ModelResult(name="m")])
    assert "The run was interrupted" in page.page(cut, list(all_tables(cut)))


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PspError, match="matplotlib"):
        page.check_matplotlib()
    assert latency.main(["--quick", "--html", str(tmp_path / "a.html")]) == 2
    assert "pip install '.[benchmarks]'" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_matplotlib_is_loaded_for_a_page_alone():
    script = "import sys; import benchmarks.latency; assert 'matplotlib' not in sys.modules"
    import subprocess

    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
