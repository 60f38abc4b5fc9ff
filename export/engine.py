"""Turn a model into an engine file: its graphs, checked against PyTorch before anything is written."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import psp_rt
from export import parity
from export.checkpoints.tensors import Model
from export.graphs import fp16
from export.graphs.activations import psnr_db
from export.graphs.gpu import gpu_form
from export.graphs.networks import EncoderGraph, GeneratorGraph, MappingGraph
from export.graphs.trace import Storage, round_to_fp16, trace, trace_again
from export.strangeness import Usual, measure
from psp_rt.engine import ImageSize, Manifest, write_engine
from psp_rt.files import check_writable, folder_beside
from psp_rt.style import layer_rows
from trainer.networks import Noise

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is written.

    Args:
        noise: ``const`` uses the checkpoint's noise images, ``random`` draws new noise in every run,
            ``none`` leaves the noise out.
        storage: ``fp16`` halves the file; the portable graphs still compute in FP32.
        precision: ``fp16`` adds the graphs that TensorRT builds from; the portable ones are always FP32.
        pictures: Files or folders, such as the encoder was trained on: activations are measured on the
            first of them, for ``fp16``; of a hundred or more, also which codes are usual.
        default_layers: The paper's layers that random styles replace by default; None for those of psp_rt.
        force: Write the engine even if its parity figures miss the bars.
    """

    noise: Noise = "const"
    storage: Storage = "fp32"
    precision: Precision = "fp32"
    pictures: Sequence[Path] = ()
    default_layers: str | None = None
    force: bool = False


def export_engine(
    model: Model,
    output: Path,
    settings: Settings | None = None,
    *,
    report: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Write the engine file of a model, after checking it against PyTorch.

    Args:
        model: The model. Its encoder is rewritten for inference and cannot be trained afterwards. If
            weights are stored as FP16, its encoder and latent average keep the rounded values.
        output: NAME.engine; it appears when it is complete.
        settings: How it is written.
        report: Called at the start of each step.

    Raises:
        OutputError: The file cannot be written.
        ParityError: The engine does not compute what the checkpoint computes.
    """
    settings = settings or Settings()
    _check(model, output, settings)
    pictures = fp16.load_pictures(settings.pictures, model.input)
    # Random noise cannot be compared; such an engine is checked with constant noise in its place.
    noise: Noise = "const" if settings.noise == "random" else settings.noise

    # What the engine must reproduce: the trainer's own networks, before anything is rewritten.
    report("running the checkpoint in PyTorch")
    expected = parity.expect(parity.networks(model, noise=noise), model)
    figures: dict[str, float] = {}

    # The graphs as modules. Weights that the file stores as FP16 are rounded before the comparison.
    generator = GeneratorGraph(model.generator, noise=noise, rows=model.output_rows)
    graphs: list[EncoderGraph | GeneratorGraph | MappingGraph] = [generator, MappingGraph(model.generator)]
    if model.encoder is not None and model.input is not None:
        graphs.append(EncoderGraph(model.encoder, model.latent_avg, kind=model.input.kind))
    if settings.storage == "fp16":
        report("running it with weights rounded to FP16")
        round_to_fp16(graphs)
        exact, expected = expected, parity.expect(_reference(graphs), model)
        figures["fp16_weights_psnr_db"] = psnr_db(expected.pictures, exact.pictures)

    with folder_beside(output, otherwise="Nothing is left of it") as folder:
        members: dict[str, Path] = {}
        for graph in graphs:
            report(f"tracing the {graph.name}")
            members |= _trace(graph, folder, settings)

        # Compare a trial engine with PyTorch, through the Translator that users will run.
        report("comparing the engine with PyTorch")
        trial = folder / "trial.engine"
        write_engine(trial, _manifest(model, settings, figures, {}, None), members)
        figures |= parity.measure(trial, expected)
        parity.check(figures, force=settings.force)

        # Measure the average style, and which codes are usual.
        report("measuring styles and codes")
        statistics, usual = measure(trial, settings.pictures)

        # Add the FP16 graphs. Layers that would overflow on the samples stay in FP32.
        fp32_layers: dict[str, tuple[str, ...]] = {}
        samples = None
        if settings.precision == "fp16":
            report("measuring activations for FP16")
            samples = fp16.sample(trial, expected.images if pictures is None else pictures)
            for graph in graphs:
                if not isinstance(graph, MappingGraph):
                    members |= _add_fp16(graph, folder, samples, fp32_layers)
            report("comparing FP16 with FP32")
            figures |= fp16.compare(folder, samples)
            parity.check(figures, force=settings.force)
        trial.unlink()

        # Replace constant noise by random noise, which was not compared.
        if settings.noise == "random":
            report("tracing the generator with random noise")
            generator = GeneratorGraph(model.generator, noise="random", rows=model.output_rows)
            if settings.storage == "fp16":
                round_to_fp16([generator])
            members |= _trace(generator, folder, settings)
            if samples is not None:
                members |= _add_fp16(generator, folder, samples, fp32_layers)

        report(f"writing {output}")
        manifest = _manifest(model, settings, figures, fp32_layers, usual)
        return write_engine(output, manifest, {**members, **statistics})


def check_layers(layers: str | None, num_styles: int) -> None:
    """Raise InputError for default layers that a manifest cannot hold."""
    if layers is None:
        return
    layer_rows(layers, num_styles)
    if not layers[0].isdigit():
        raise psp_rt.InputError(f"default layers are {layers!r}; expected a first layer: '1{layers.strip()}'")


def _check(model: Model, output: Path, settings: Settings) -> None:
    """Raise an error for what would fail only at the end."""
    check_writable(output)
    check_layers(settings.default_layers, model.generator.config.num_styles)


def _trace(
    graph: EncoderGraph | GeneratorGraph | MappingGraph, folder: Path, settings: Settings
) -> dict[str, Path]:
    """Write the files of a graph and return them by their names in the engine."""
    joined: list[tuple[str, ...]] = []
    if settings.precision == "fp16" and not isinstance(graph, MappingGraph):
        joined = list(gpu_form(graph).joined.values())
    inputs, storage = graph.example_inputs(), settings.storage
    paths = trace(graph, inputs, graph.output, folder, graph.name, storage=storage, joined=joined)
    return {path.name: path for path in paths}


def _add_fp16(
    graph: EncoderGraph | GeneratorGraph,
    folder: Path,
    samples: fp16.Samples,
    fp32_layers: dict[str, tuple[str, ...]],
) -> dict[str, Path]:
    """Write the FP16 graph of a traced graph, note its layers in FP32, and return the files that it needs."""
    form, path, name = gpu_form(graph), folder / f"{graph.name}.onnx", f"{graph.name}.gpu"
    single = trace_again(form, form.example_inputs(), form.output, path, name=name, joined=form.joined)
    half, fp32_layers[graph.name] = fp16.add(single, samples)
    single.unlink()
    weights = path.with_suffix(".weights")  # perhaps with more than before
    return {file.name: file for file in (half, weights) if file.exists()}


def _reference(graphs: Sequence[EncoderGraph | GeneratorGraph | MappingGraph]) -> parity.Reference:
    """Return the graphs, whose weights have been rounded, as a reference in PyTorch."""
    generator, mapping, *encoders = graphs
    assert isinstance(generator, GeneratorGraph)
    return parity.Reference(
        encode=(lambda images: encoders[0](torch.from_numpy(images))) if encoders else None,
        map=mapping,
        generate=generator.synthesize,
    )


def _manifest(
    model: Model,
    settings: Settings,
    figures: Mapping[str, float],
    fp32_layers: Mapping[str, tuple[str, ...]],
    usual: Usual | None,
) -> Manifest:
    """Return the manifest; the engine has FP16 graphs if there are lists of layers that stay in FP32."""
    config = model.generator.config
    first, last = model.output_rows or (0, config.size)
    return Manifest(
        task=model.task,
        input=model.input,
        output=ImageSize(height=last - first, width=config.size),
        num_styles=config.num_styles,
        style_dim=config.style_dim,
        noise=settings.noise,
        precision="fp16" if fp32_layers else "fp32",
        weights=settings.storage,
        provenance={
            **model.provenance,
            "exporter": psp_rt.__version__,
            "torch": torch.__version__,
            **(usual.provenance() if usual else {}),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        parity=dict(figures),
        fp32_layers=dict(fp32_layers),
        alignment=model.alignment,
        default_layers=settings.default_layers,
        strange_above=usual.limit if usual else None,
    )
