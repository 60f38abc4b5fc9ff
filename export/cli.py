"""The command line of the export: ``python -m export``."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from export.checkpoints.load import LatentAverage, load
from export.describe import Description, describe
from export.engine import Precision, Settings, export_engine
from export.graphs.trace import Storage
from export.inspect.kernels import Card, count_kernels, kernel_lines, kernels_json
from export.inspect.report import Inspection, compare_precisions, lines, view_graphs
from psp_rt import EngineFile, OutputError
from psp_rt.build import BuildOptions, BuildRequest, prepare
from psp_rt.cli.build import build_and_report
from psp_rt.cli.group import Commands
from psp_rt.engine import ALIGNMENTS
from psp_rt.files import check_apart, check_writable, write_atomically
from psp_rt.hardware import default_threads
from trainer import checkpoint as trainer_checkpoint
from trainer.networks import Noise

File = click.Path(path_type=Path)
DEFAULT = "export"
TIMED_RUNS = 10


alignment_option = click.option(
    "--alignment",
    type=click.Choice(ALIGNMENTS),
    help="How the encoder's pictures are cut: ffhq, aligned faces; none, any picture. Default: as the file "
    "says by its data set.",
)
layers_option = click.option(
    "--default-layers", metavar="LAYERS", help="Layers that random styles replace by default, such as 3-."
)


class ExportCommands(Commands):
    """A group in which a first word that is not a command is the checkpoint to export."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command before anything but a command or ``--help``."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=ExportCommands)
def main() -> None:
    """Turn checkpoints into engine files, and look into engine files.

    python -m export CHECKPOINT --output NAME.engine is short for python -m export export CHECKPOINT ...
    """


@main.command(DEFAULT)
@click.argument("checkpoint", type=File)
@click.option("--output", "-o", type=File, required=True, help="The engine to write, NAME.engine.")
@click.option("--encoder", type=File, help="Take the encoder from this checkpoint.")
@click.option("--generator", type=File, help="Take the generator from this checkpoint.")
@click.option(
    "--noise",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="The checkpoint's noise images, new noise in every run, or none.",
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
    help="fp16 adds FP16 graphs for TensorRT. The graphs for ONNX Runtime are always FP32.",
)
@click.option(
    "--pictures",
    type=File,
    multiple=True,
    help="Pictures such as the encoder was trained on, a file or a folder: with fp16 checked for overflow; "
    "100 or more also tell which pictures the model was not made for. May be repeated.",
)
@click.option(
    "--input",
    "input_kind",
    metavar="rgb|gray|labels:N",
    help="The input of the encoder, if the file does not state it.",
)
@click.option(
    "--label-resize",
    type=click.Choice(["bilinear", "nearest"]),
    help="How label maps of other sizes are resized. Official checkpoints were trained with bilinear.",
)
@click.option(
    "--encoder-type",
    type=click.Choice(["psp", "e4e", "w", "naive_w+"]),
    help="The kind of encoder, if the file does not state it. The tensors of e4e look like those of pSp.",
)
@click.option(
    "--input-size",
    metavar="HEIGHTxWIDTH",
    callback=lambda context, option, text: parse_size(text),
    help="The size of the encoder's input. Default: the largest that its tensors allow, or 256x256.",
)
@click.option(
    "--latent-avg",
    type=click.Choice(["estimate", "none"]),
    help="Estimate a missing latent average: the mean of 10,000 mapped z. Or use none.",
)
@click.option(
    "--conv-clamp",
    type=float,
    metavar="BOUND",
    help="The bound on the generator's activations, if the file does not state it. StyleGAN2-ADA's is 256 "
    "where it was trained in FP16.",
)
@click.option("--task", help="The name of the task, if the file does not state it.")
@alignment_option
@layers_option
@click.option(
    "--tensorrt", is_flag=True, help="Afterwards build TensorRT plans for this GPU, as psp-rt build does."
)
@click.option("--force", is_flag=True, help="Write the engine even if it misses the parity bars.")
def export_command(
    *,
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
    input_size: tuple[int, int] | None,
    latent_avg: LatentAverage | None,
    conv_clamp: float | None,
    task: str | None,
    alignment: str | None,
    default_layers: str | None,
    tensorrt: bool,
    force: bool,
) -> None:
    """Turn CHECKPOINT into one engine file that runs wherever ONNX Runtime does.

    Reads official pSp and e4e files, StyleGAN2 generators (rosinality's .pt, NVIDIA's stylegan2-ada
    .pkl), the same tensors in other wrappings or as .safetensors, and the checkpoints of
    python -m trainer. Code stored in a file is never executed.
    """
    check_apart(output, checkpoint, encoder, generator)
    request = BuildRequest(engine=output, options=BuildOptions())
    if tensorrt:
        prepare(request)  # reports a missing GPU now, not after the export

    click.echo(f"... reading {checkpoint}")
    model = load(
        checkpoint,
        encoder=encoder,
        generator=generator,
        encoder_type=encoder_type,
        latent_avg=latent_avg or "file",
        input=input_kind,
        label_resize=label_resize,
        input_size=input_size,
        noise=noise,
        conv_clamp=conv_clamp,
    )
    for note in model.notes:
        click.echo(f"note: {note}")
    if task:
        model = replace(model, task=task)
    if alignment:
        if model.encoder is None:
            raise click.UsageError("--alignment says what an encoder expects, and this is a generator alone")
        provenance = model.provenance | {"alignment": "--alignment"}
        model = replace(model, alignment=alignment, provenance=provenance)
    settings = Settings(
        noise=noise,
        storage=weights,
        precision=precision,
        pictures=pictures,
        default_layers=default_layers,
        force=force,
    )
    manifest = export_engine(model, output, settings, report=lambda step: click.echo(f"... {step}"))

    click.echo("against PyTorch:")
    for name, figure in manifest.parity.items():
        click.echo(f"  {name:28} {figure:.3g}")
    for graph, layers in manifest.fp32_layers.items():
        if layers:
            click.echo(f"in FP32 because of their range, {graph}: {', '.join(layers)}")
    size_mib = output.stat().st_size / 2**20
    click.echo(f"wrote {output} ({size_mib:.1f} MiB); try it with: psp-rt run {output} INPUT --output FILE")
    if tensorrt:
        build_and_report(request)


@main.command("describe")
@click.argument("engine", type=File)
@alignment_option
@layers_option
@click.option(
    "--pictures",
    type=File,
    multiple=True,
    help="Pictures such as the encoder was trained on, 100 or more: a file or a folder. May be repeated.",
)
@click.option(
    "--from-photos",
    is_flag=True,
    help="The pictures are aligned photos: they are drawn or made smaller as the engine's task needs.",
)
@click.option("--output", "-o", type=File, help="Write another engine instead of changing this one.")
def describe_command(
    *,
    engine: Path,
    alignment: str | None,
    default_layers: str | None,
    pictures: tuple[Path, ...],
    from_photos: bool,
    output: Path | None,
) -> None:
    """Change what ENGINE says about itself; its graphs stay as they are.

    With --pictures it also measures which codes are usual, so that the runtime can warn of pictures that the
    model was not made for.
    """
    if from_photos and not pictures:
        raise click.UsageError("--from-photos needs --pictures; add them")
    check_apart(output or engine, *pictures)
    changes = Description(
        alignment=alignment, default_layers=default_layers, pictures=pictures, from_photos=from_photos
    )
    manifest = describe(
        engine, changes, output=output, report=lambda step: click.echo(f"... {step}", err=True)
    )
    limit = manifest.strange_above
    click.echo(
        f"wrote {output or engine}: alignment {manifest.alignment or 'not stated'}, default layers "
        f"{manifest.default_layers or 'not stated'}, "
        + ("no limit of strange codes" if limit is None else f"codes are strange above {limit:.2f}")
    )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return the height and width of "64" or "192x256"."""
    if text is None:
        return None
    sides = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if not sides:
        raise click.BadParameter(f"{text!r}; expected HEIGHTxWIDTH, for example 256x256 or 192x256")
    return int(sides[1]), int(sides[2] or sides[1])


@main.command("inspect")
@click.argument("engine", type=File)
@click.option("--layers", is_flag=True, help="Print every layer.")
@click.option("--time", "timed", is_flag=True, help="Time each layer of the FP32 graphs on the CPU.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one for each physical core.")
@click.option("--compare", is_flag=True, help="Compare FP16, emulated, with FP32 layer by layer.")
@click.option(
    "--pictures", type=File, multiple=True, help="A picture or a folder to compare on. May be repeated."
)
@click.option("--save-for-polygraphy", type=File, metavar="DIR", help="Save the comparison for Polygraphy.")
@click.option(
    "--kernels", is_flag=True, help="Count the kernels on a GPU, without one: needs TensorRT for RTX."
)
@click.option("--batch", type=click.IntRange(1, 256), default=1, show_default=True, help="For --kernels.")
@click.option(
    "--bandwidth",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="TB/S",
    help="Of the card to estimate.",
)
@click.option(
    "--peak",
    type=click.FloatRange(0, min_open=True),
    default=790.0,
    show_default=True,
    metavar="TFLOP/S",
    help="Of its tensor cores, FP16.",
)
@click.option("--json", "json_file", type=File, metavar="FILE", help="Also write everything to this file.")
def inspect_command(
    *,
    engine: Path,
    layers: bool,
    timed: bool,
    threads: int | None,
    kernels: bool,
    batch: int,
    bandwidth: float,
    peak: float,
    compare: bool,
    pictures: tuple[Path, ...],
    save_for_polygraphy: Path | None,
    json_file: Path | None,
) -> None:
    """Show the layers of ENGINE, their precision, and with --time how long each takes.

    With --kernels it shows instead what a GPU runs for the FP16 graphs. TensorRT for RTX builds them for
    compute capability 8.9, which needs no GPU.
    """
    if not compare and (pictures or save_for_polygraphy is not None):
        raise click.UsageError("--pictures and --save-for-polygraphy are for --compare; add that")
    if json_file is not None:
        check_apart(json_file, engine, *pictures)
        check_writable(json_file)
    if save_for_polygraphy is not None and save_for_polygraphy.is_file():
        raise OutputError(
            f"{save_for_polygraphy} is a file; give the name of a folder for Polygraphy's files"
        )

    def report(step: str) -> None:
        click.echo(f"... {step}", err=True)

    if kernels and (layers or timed or compare):
        raise click.UsageError("--kernels goes without --layers, --time and --compare; run it by itself")
    found = Inspection(engine=str(engine))
    with EngineFile.open(engine) as file:
        if kernels:
            card = Card(bandwidth_tb_s=bandwidth, peak_tflops=peak)
            counted = count_kernels(file, batch=batch, report=report)
            for line in kernel_lines(counted, card):
                click.echo(line)
            if json_file is not None:
                write_atomically(json_file, json.dumps(kernels_json(counted, card), indent=1) + "\n")
                click.echo(f"wrote {json_file}")
            return
        found.graphs = view_graphs(
            file,
            time_runs=TIMED_RUNS if timed else 0,
            threads=default_threads() if threads is None else threads,
            report=report,
        )
        if compare:
            found.differences = compare_precisions(file, pictures, save_to=save_for_polygraphy, report=report)
    for line in lines(found, every_layer=layers):
        click.echo(line)
    if json_file is not None:
        write_atomically(json_file, json.dumps(found.as_json(), indent=1) + "\n")
        click.echo(f"wrote {json_file}")


@main.command("convert")
@click.argument("source", type=File)
@click.argument("output", type=File)
def convert_command(source: Path, output: Path) -> None:
    """Write the generator of SOURCE to OUTPUT, a .pt for python -m trainer encoder --generator.

    Reads NVIDIA's stylegan2-ada .pkl and every other format that the export reads. Code stored in a file is
    never executed. A missing latent average is estimated.
    """
    check_apart(output, source)
    check_writable(output)
    model = load(source)
    for note in model.notes:
        click.echo(f"note: {note}")
    average = model.generator.mean_style() if model.latent_avg is None else model.latent_avg
    content: dict[str, Any] = {
        "g_ema": model.generator.state_dict(),  # the averaged generator, under rosinality's names
        "latent_avg": average.mean(dim=0) if average.ndim == 2 else average,  # [D]
    }
    config = model.generator.config
    if config.conv_clamp is not None:
        content["conv_clamp"] = config.conv_clamp  # bound on the activations
    trainer_checkpoint.write(output, content)
    click.echo(f"wrote {output}: StyleGAN2 of {config.size} pixels, {config.num_styles} styles")
