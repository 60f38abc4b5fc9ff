"""The command line of the export; `python -m export` runs it."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from export.checkpoints import load as checkpoints
from export.engine import Precision, Settings, export_engine
from export.graphs.trace import Storage
from export.inspect_command import inspect_command
from psp_rt.build.build import BuildRequest, prepare
from psp_rt.build.builder import BuildOptions
from psp_rt.cli.build import build_and_tell
from psp_rt.cli.group import Command
from psp_rt.cli.info import in_words
from psp_rt.files import check_apart
from trainer.networks import Noise

File = click.Path(path_type=Path)


class ExportCommand(Command):
    """Exports a checkpoint, unless its first word is the name of another command."""

    def main(  # type: ignore[override]  # click's has overloads for what this one passes on
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Hand what follows the word `inspect` to that command; any other first word is a checkpoint."""
        words = sys.argv[1:] if args is None else list(args)
        if words[:1] == [inspect_command.name]:
            return inspect_command.main(words[1:], f"{prog_name or 'export'} inspect", **extra)
        return super().main(words, prog_name, **extra)


@click.command(cls=ExportCommand)
@click.argument("checkpoint", type=File)
@click.option("--output", "-o", type=File, required=True, help="The engine to write, NAME.engine.")
@click.option("--encoder", type=File, help="Take the encoder from this checkpoint.")
@click.option("--generator", type=File, help="Take the generator from this checkpoint.")
@click.option(
    "--noise",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="The checkpoint's noise pictures, new ones at every run, or none.",
)
@click.option(
    "--weights",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="How the file stores the weights; fp16 halves it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16 adds graphs in FP16 for TensorRT; those for ONNX Runtime are always FP32.",
)
@click.option(
    "--pictures",
    type=File,
    multiple=True,
    help="A picture or a folder of them: with fp16, overflow is looked for on these. May be repeated.",
)
@click.option(
    "--input",
    "input_kind",
    metavar="rgb|gray|labels:N",
    help="What the encoder reads, if the file is silent.",
)
@click.option(
    "--label-resize",
    type=click.Choice(["bilinear", "nearest"]),
    help="How label maps of another size are resized. Official checkpoints were trained with bilinear.",
)
@click.option(
    "--encoder-type",
    type=click.Choice(["psp", "e4e", "w", "naive_w+"]),
    help="The kind of encoder, if the file is silent: e4e has the tensors of pSp.",
)
@click.option(
    "--latent-avg",
    type=click.Choice(["estimate"]),
    help="Estimate a latent average that is missing: the mean of 10,000 mapped z.",
)
@click.option("--task", help="The name of the task, if the file does not say.")
@click.option(
    "--tensorrt", is_flag=True, help="Then build TensorRT plans for this GPU, as psp-rt build does."
)
@click.option("--force", is_flag=True, help="Write the engine even if it misses the parity bars.")
def main(
    checkpoint: Path,
    output: Path,
    encoder: Path | None,
    generator: Path | None,
    noise: Noise,
    weights: Storage,
    precision: Precision,
    pictures: tuple[Path, ...],
    input_kind: str | None,
    label_resize: str | None,
    encoder_type: str | None,
    latent_avg: checkpoints.LatentAverage | None,
    task: str | None,
    tensorrt: bool,
    force: bool,
) -> None:
    """Turn CHECKPOINT into one engine file that runs wherever ONNX Runtime does.

    Reads official pSp and e4e files, StyleGAN2 generators (rosinality's .pt, NVIDIA's stylegan2-ada
    .pkl) and what `python -m trainer` writes. Nothing stored in a file is ever executed.

    To look into an engine: python -m export inspect --help
    """
    if pictures and precision == "fp32":
        raise click.UsageError("--pictures are for --precision fp16; add that, or leave them out")
    check_apart(output, checkpoint, encoder, generator)
    request = BuildRequest(engine=output, options=BuildOptions())
    if tensorrt:
        prepare(request)  # a missing GPU is said now, not after the export
    click.echo(f"... reading {checkpoint}")
    model = checkpoints.load(
        checkpoint,
        encoder=encoder,
        generator=generator,
        encoder_type=encoder_type,
        latent_avg=latent_avg or "file",
        input=input_kind,
        label_resize=label_resize,
    )
    if task:
        model = replace(model, task=task)
    settings = Settings(noise=noise, storage=weights, precision=precision, pictures=pictures, force=force)
    manifest = export_engine(model, output, settings, report=lambda step: click.echo(f"... {step}"))
    click.echo("against PyTorch:")
    for name, text in in_words(manifest.parity).items():
        click.echo(f"  {name:24} {text}")
    for graph, layers in manifest.fp32_layers.items():
        if layers:
            click.echo(f"in FP32 for their range    {graph}: {', '.join(layers)}")
    size_mib = output.stat().st_size / 2**20
    click.echo(f"wrote {output} ({size_mib:.1f} MiB); try it with: psp-rt run {output} INPUT --output FILE")
    if tensorrt:
        build_and_tell(request)
