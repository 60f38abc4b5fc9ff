"""What an engine holds, in words: the text of ``psp-rt info``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..engine.manifest import Manifest
from ..engine.plans import PlanRecord, records
from ..engine.reader import EngineFile
from ..errors import PspError
from ..hardware.choose import Hardware, choose

FIGURES = {  # of the manifest's parity: how people read it, and its unit
    "codes_relative_error": ("codes, FP32", "{:.1e} of their range"),
    "styles_relative_error": ("styles of seeds, FP32", "{:.1e} of their range"),
    "picture_max_levels": ("pictures, FP32", "at most {:g} grey levels"),
    "picture_psnr_db": ("pictures, FP32", "{:.1f} dB"),
    "fp16_weights_psnr_db": ("weights stored as FP16", "{:.1f} dB"),
    "fp16_generator_psnr_db": ("FP16 generator, emulated", "{:.1f} dB"),
    "fp16_end_to_end_psnr_db": ("FP16 graphs, emulated", "{:.1f} dB"),
}
PLAN_FIGURES = {  # likewise, of a plan's
    "styles_psnr_db": ("styles of seeds", "{:.1f} dB"),
    "codes_psnr_db": ("codes", "{:.1f} dB"),
    "picture_psnr_db": ("pictures", "{:.1f} dB"),
}
GRAPHS = {"fp32": "fp32", "fp16": "fp32, and fp16 for TensorRT plans"}


def described(file: EngineFile) -> Iterator[str]:
    """Yield the lines that describe an engine, in groups."""
    manifest, plans = file.manifest, records(file)
    groups = {
        "Model": _model(manifest),
        "On this machine": {"auto takes": runs_on(Hardware(), file)},
        "Against PyTorch": in_words(manifest.parity),
        "Made from": dict(manifest.provenance),
        "Members": {name: _megabytes(member.size) for name, member in manifest.members.items()},
        "TensorRT plans": {target: _plan(record) for target, record in plans.items()},
    }
    for number, (heading, lines) in enumerate(group for group in groups.items() if group[1]):
        if number:
            yield ""
        yield heading
        for name, value in lines.items():
            yield f"  {name:24} {value}"


def runs_on(machine: Hardware, file: EngineFile | None = None) -> str:
    """Return what a Translator takes by itself here, and why; without a file, for any that has no plan."""
    try:
        choice = choose(machine, engine=file)
        if file is not None and not choice.plan:
            file.check_has_graphs(choice.reason)
    except PspError as error:
        return f"nothing: {error}"
    return f"{choice.device} with {choice.backend}, {choice.precision}: {choice.reason}"


def _model(manifest: Manifest) -> dict[str, str]:
    spec, output = manifest.input, manifest.output
    takes = "no pictures (generator only)"
    if spec is not None:
        kind = f"labels 0-{(spec.labels or 1) - 1}" if spec.kind == "labels" else spec.kind
        takes = f"{kind}, {spec.height} x {spec.width} (height x width), others resized: {spec.resize}"
    return {
        "task": manifest.task,
        "takes": takes,
        "gives": f"rgb, {output.height} x {output.width}",
        "styles": f"{manifest.num_styles} rows of {manifest.style_dim}",
        "noise": manifest.noise,
        "graphs": GRAPHS[manifest.precision],
        "weights": f"stored as {manifest.weights}",
    }


def in_words(figures: Mapping[str, float], words: Mapping[str, tuple[str, str]] = FIGURES) -> dict[str, str]:
    """Return figures of parity as people read them: what was compared, and how far it is off."""
    lines: dict[str, str] = {}
    for key, value in figures.items():
        name, form = words.get(key, (key, "{:g}"))
        text = form.format(value)
        lines[name] = f"{lines[name]}, {text}" if name in lines else text
    return lines


def _plan(record: PlanRecord) -> str:
    return f"{record.precision}, batches {record.min_batch} to {record.max_batch}, for {record.machine}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
