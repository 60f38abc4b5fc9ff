"""Count the kernels of the full-size FP16 graphs, and the memory that they move: needs no GPU.

    python benchmarks/kernels.py --json benchmarks/results/kernels-1024.json

The model is the official pSp with drawn weights. The figures are those of `export inspect --kernels`; the
times are a model's, not measured. Exporting takes minutes and 12 GB of memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workloads.models import draw, named
from export.engine import Settings, export_engine
from export.inspect.kernels import Card, count_kernels, kernel_lines, kernels_json
from psp_rt import EngineFile
from psp_rt.cli.group import Command
from psp_rt.files import check_writable, write_atomically

CARDS = {"H100": Card(), "H200": Card(bandwidth_tb_s=4.3)}  # bandwidths are assumed


@click.command(cls=Command)
@click.option("--model", default="psp-1024", show_default=True, help="Also psp-tiny, for a trial.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")
def main(model: str, batches: tuple[int, ...], json_file: Path | None) -> None:
    """Export the official pSp with drawn weights in FP16 and count its kernels."""
    if json_file is not None:
        check_writable(json_file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.engine"
        settings = Settings(precision="fp16", storage="fp16")
        manifest = export_engine(draw(named(model)), path, settings, report=click.echo)
        found: dict[str, Any] = {"model": model, "parity": dict(manifest.parity), "batches": {}}
        with EngineFile.open(path) as engine:
            found["megabytes_of_members"] = {
                name: round(member.size / 1e6, 1)
                for name, member in engine.manifest.members.items()
                if name.endswith((".weights", ".onnx"))
            }
            for batch in batches:
                graphs = count_kernels(engine, batch=batch, report=click.echo)
                for line in kernel_lines(graphs, CARDS["H100"]):
                    click.echo(line)
                found["batches"][str(batch)] = kernels_json(graphs, CARDS["H100"]) | {
                    "estimate_ms_per_picture": {
                        name: round(sum(graph.us(card) for graph in graphs) / batch / 1000, 3)
                        for name, card in CARDS.items()
                    }
                }
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=1) + "\n")
        click.echo(f"wrote {json_file}")


if __name__ == "__main__":
    main()
