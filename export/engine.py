"""Turn a model into an engine file: three graphs, checked against PyTorch before anything is written."""

import datetime
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import psp_rt
from export import onnx_files, parity
from export.checkpoints import Model
from export.graphs import EncoderGraph, GeneratorGraph, MappingGraph
from psp_rt import ImageSize, Manifest, OutputError
from psp_rt.engine_file import check_writable, write_engine
from trainer.networks import Noise

Members = dict[str, Path]


def export_engine(
    model: Model,
    output: Path,
    *,
    noise: Noise = "const",
    storage: onnx_files.Storage = "fp32",
    force: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Write the engine file of a model.

    Args:
        model: The model. Its encoder is rewritten for inference and cannot be trained on; with
            ``fp16`` its encoder and its latent average keep the rounded values.
        output: NAME.engine; it appears when it is complete.
        noise: ``const`` uses the checkpoint's noise pictures, ``random`` draws new ones at every
            run, ``none`` leaves them out.
        storage: ``fp16`` halves the file; the graphs still compute in FP32.
        force: Write the engine even where it is further from PyTorch than the bars allow.
        report: Called with each step that begins.

    Raises:
        OutputError: The file cannot be written.
        ParityError: The engine does not compute what the checkpoint does.
    """
    check_writable(output)
    # Drawn noise cannot be compared; such an engine is checked with the constant one in its place.
    checked_noise: Noise = "const" if noise == "random" else noise
    report("running the checkpoint in PyTorch")
    expected = parity.expect(parity.networks(model, noise=checked_noise), model)

    encoder = None
    if model.encoder is not None and model.input is not None:
        encoder = EncoderGraph(model.encoder, model.latent_avg, kind=model.input.kind)
    mapping = MappingGraph(model.generator)
    generator = GeneratorGraph(model.generator, noise=checked_noise, rows=model.output_rows)
    figures: dict[str, float] = {}
    if storage == "fp16":
        report("running it with weights rounded to FP16")
        onnx_files.round_to_fp16([module for module in (encoder, mapping, generator) if module is not None])
        exact, expected = expected, parity.expect(_rounded(encoder, mapping, generator), model)
        figures["fp16_weights_psnr_db"] = parity.psnr_db(expected.pictures, exact.pictures)

    with _folder_beside(output) as folder:
        report("tracing the generator")
        members = _trace_generator(generator, model, folder, storage=storage)
        report("tracing the mapping network")
        example = torch.zeros(2, model.generator.config.style_dim)
        members |= _trace(mapping, {"z": example}, "w", folder, "mapping", storage=storage)
        if encoder is not None and model.input is not None:
            report("tracing the encoder")
            spec = model.input
            image = torch.zeros(2, spec.height, spec.width, spec.channels, dtype=torch.uint8)
            members |= _trace(encoder, {"image": image}, "codes", folder, "encoder", storage=storage)

        report("comparing the engine with PyTorch")
        trial = folder / "trial.engine"
        write_engine(trial, _describe(model, checked_noise, storage, figures), members)
        figures |= parity.measure(trial, expected)
        trial.unlink()
        parity.check_finite(figures)
        if not force:
            parity.check(figures)

        if noise == "random":
            report("tracing the generator with drawn noise")
            drawn = GeneratorGraph(model.generator, noise=noise, rows=model.output_rows)
            if storage == "fp16":
                onnx_files.round_to_fp16([drawn])
            members |= _trace_generator(drawn, model, folder, storage=storage)
        report(f"writing {output}")
        return write_engine(output, _describe(model, noise, storage, figures), members)


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


def _describe(model: Model, noise: Noise, storage: onnx_files.Storage, figures: dict[str, float]) -> Manifest:
    config = model.generator.config
    first, last = model.output_rows or (0, config.size)
    return Manifest(
        task=model.task,
        input=model.input,
        output=ImageSize(height=last - first, width=config.size),
        num_styles=config.num_styles,
        style_dim=config.style_dim,
        noise=noise,
        weights=storage,
        provenance={
            **model.provenance,
            "exporter": psp_rt.__version__,
            "torch": torch.__version__,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        parity=figures,
    )


@contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """Make a folder for the parts on the disk where the engine will be: they may be gigabytes."""
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}. Nothing is left of it"
        ) from error
