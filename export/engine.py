"""Turn a model into an engine file: its graphs, checked against PyTorch before anything is written."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import psp_rt
from export import parity
from export.checkpoints.load import Model
from export.graphs import half_precision
from export.graphs import trace as onnx_files
from export.graphs.networks import EncoderGraph, GeneratorGraph, MappingGraph
from psp_rt import ImageSize, Manifest
from psp_rt.engine.writer import write_engine
from psp_rt.files import check_writable, folder_beside
from trainer.networks import Noise

Members = dict[str, Path]
Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is written.

    Args:
        noise: ``const`` uses the checkpoint's noise pictures, ``random`` draws new ones at every
            run, ``none`` leaves them out.
        storage: ``fp16`` halves the file; the portable graphs still compute in FP32.
        precision: ``fp16`` adds the graphs that TensorRT builds from; the portable ones are always FP32.
        pictures: What activations are measured on, files or folders; for ``fp16``.
        force: Write the engine even where it is further from PyTorch than the bars allow.
    """

    noise: Noise = "const"
    storage: onnx_files.Storage = "fp32"
    precision: Precision = "fp32"
    pictures: Sequence[Path] = ()
    force: bool = False

    @property
    def checked_noise(self) -> Noise:
        """Drawn noise cannot be compared; such an engine is checked with the constant one in its place."""
        return "const" if self.noise == "random" else self.noise


@dataclass(kw_only=True)
class Parts:
    """What has been made of an engine so far."""

    members: Members = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    fp32_layers: dict[str, tuple[str, ...]] = field(default_factory=dict)


def export_engine(
    model: Model,
    output: Path,
    settings: Settings | None = None,
    *,
    report: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Write the engine file of a model.

    Args:
        model: The model. Its encoder is rewritten for inference and cannot be trained on; stored as
            FP16 its encoder and its latent average keep the rounded values.
        output: NAME.engine; it appears when it is complete.
        settings: How it is written.
        report: Called with each step that begins.

    Raises:
        OutputError: The file cannot be written.
        ParityError: The engine does not compute what the checkpoint does.
    """
    settings = settings or Settings()
    check_writable(output)
    pictures = half_precision.load_pictures(settings.pictures, model.input)
    report("running the checkpoint in PyTorch")
    expected = parity.expect(parity.networks(model, noise=settings.checked_noise), model)
    graphs = _graphs(model, settings)
    parts = Parts()
    if settings.storage == "fp16":
        report("running it with weights rounded to FP16")
        onnx_files.round_to_fp16([module for module in graphs if module is not None])
        exact, expected = expected, parity.expect(_rounded(*graphs), model)
        parts.figures["fp16_weights_psnr_db"] = parity.psnr_db(expected.pictures, exact.pictures)

    with folder_beside(output, otherwise="Nothing is left of it") as folder:
        parts.members |= _trace_all(graphs, model, folder, settings, report)
        report("comparing the engine with PyTorch")
        trial = folder / "trial.engine"
        write_engine(trial, _describe(model, settings, parts), parts.members)
        parts.figures |= parity.measure(trial, expected)
        parity.check_finite(parts.figures)
        if not settings.force:
            parity.check(parts.figures)
        samples = None
        if settings.precision == "fp16":
            report("measuring activations for FP16")
            samples = half_precision.sample(trial, expected.images if pictures is None else pictures)
        trial.unlink()
        _finish(model, folder, settings, parts, samples, report)
        report(f"writing {output}")
        return write_engine(output, _describe(model, settings, parts), parts.members)


def _graphs(model: Model, settings: Settings) -> tuple[EncoderGraph | None, MappingGraph, GeneratorGraph]:
    encoder = None
    if model.encoder is not None and model.input is not None:
        encoder = EncoderGraph(model.encoder, model.latent_avg, kind=model.input.kind)
    generator = GeneratorGraph(model.generator, noise=settings.checked_noise, rows=model.output_rows)
    return encoder, MappingGraph(model.generator), generator


def _trace_all(
    graphs: tuple[EncoderGraph | None, MappingGraph, GeneratorGraph],
    model: Model,
    folder: Path,
    settings: Settings,
    report: Callable[[str], None],
) -> Members:
    encoder, mapping, generator = graphs
    report("tracing the generator")
    members = _trace_generator(generator, model, folder, storage=settings.storage)
    report("tracing the mapping network")
    example = torch.zeros(2, model.generator.config.style_dim)
    members |= _trace(mapping, {"z": example}, "w", folder, "mapping", storage=settings.storage)
    if encoder is not None and model.input is not None:
        report("tracing the encoder")
        spec = model.input
        image = torch.zeros(2, spec.height, spec.width, spec.channels, dtype=torch.uint8)
        members |= _trace(encoder, {"image": image}, "codes", folder, "encoder", storage=settings.storage)
    return members


def _finish(
    model: Model,
    folder: Path,
    settings: Settings,
    parts: Parts,
    samples: half_precision.Samples | None,
    report: Callable[[str], None],
) -> None:
    """Add the FP16 graphs, compared with the FP32 ones, and put drawn noise in the place of the constant."""
    if samples is not None:
        for name in ["generator"] + ["encoder"] * (samples.images is not None):
            _add_fp16(folder, name, parts, samples)
        report("comparing FP16 with FP32")
        figures = half_precision.compare(folder, samples)
        parts.figures |= figures
        if not settings.force:
            parity.check(figures)
    if settings.noise == "random":
        report("tracing the generator with drawn noise")
        drawn = GeneratorGraph(model.generator, noise=settings.noise, rows=model.output_rows)
        if settings.storage == "fp16":
            onnx_files.round_to_fp16([drawn])
        parts.members |= _trace_generator(drawn, model, folder, storage=settings.storage)
        if samples is not None:
            _add_fp16(folder, "generator", parts, samples)


def _add_fp16(folder: Path, name: str, parts: Parts, samples: half_precision.Samples) -> None:
    path, parts.fp32_layers[name] = half_precision.write(folder, name, samples)
    parts.members[path.name] = path


def _rounded(
    encoder: EncoderGraph | None, mapping: MappingGraph, generator: GeneratorGraph
) -> parity.Reference:
    """Return the graphs, whose weights have been rounded, as a reference in PyTorch."""
    encode = None
    if encoder is not None:

        def encode(images: NDArray[np.uint8]) -> Tensor:
            codes: Tensor = encoder(torch.from_numpy(images))
            return codes

    return parity.Reference(encode=encode, map=mapping, generate=generator.synthesize)


def _trace_generator(
    graph: GeneratorGraph, model: Model, folder: Path, *, storage: onnx_files.Storage
) -> Members:
    config = model.generator.config
    codes = torch.zeros(2, config.num_styles, config.style_dim)
    inputs = {"codes": codes, "reference": codes.clone(), "weights": torch.zeros(2, config.num_styles)}
    return _trace(graph, inputs, "image", folder, "generator", storage=storage)


def _trace(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    output: str,
    folder: Path,
    name: str,
    *,
    storage: onnx_files.Storage,
) -> Members:
    paths = onnx_files.trace(graph, inputs, output, folder, name, storage=storage)
    return {path.name: path for path in paths}


def _describe(model: Model, settings: Settings, parts: Parts) -> Manifest:
    config = model.generator.config
    first, last = model.output_rows or (0, config.size)
    return Manifest(
        task=model.task,
        input=model.input,
        output=ImageSize(height=last - first, width=config.size),
        num_styles=config.num_styles,
        style_dim=config.style_dim,
        noise=settings.noise,
        precision=settings.precision if "generator.fp16.onnx" in parts.members else "fp32",
        weights=settings.storage,
        provenance={
            **model.provenance,
            "exporter": psp_rt.__version__,
            "torch": torch.__version__,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        parity=parts.figures,
        fp32_layers=parts.fp32_layers,
    )
