"""The texts of ``psp-rt info`` (what an engine holds) and ``psp-rt doctor`` (what this machine has)."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from ..cuda.device import INSTALL_BINDINGS
from ..engine.manifest import Manifest
from ..engine.plans import PlanRecord, obstacle, records
from ..engine.reader import EngineFile
from ..errors import PspError
from ..hardware.choose import Hardware, choose
from ..hardware.openvino import INSTALL_OPENVINO, OpenVinoState
from ..hardware.probe import CUDA_PROVIDER, INSTALL_CUDA, default_threads
from ..translator import Translator

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "cuda-bindings")
FIGURES = {  # figures of the manifest's parity: title and format
    "codes_relative_error": ("codes, FP32", "{:.1e} of their range"),
    "styles_relative_error": ("styles of seeds, FP32", "{:.1e} of their range"),
    "picture_max_levels": ("pictures, FP32", "at most {:g} gray levels"),
    "picture_psnr_db": ("pictures, FP32", "{:.1f} dB"),
    "fp16_weights_psnr_db": ("weights stored as FP16", "{:.1f} dB"),
    "fp16_generator_psnr_db": ("FP16 generator, emulated", "{:.1f} dB"),
    "fp16_end_to_end_psnr_db": ("FP16 graphs, emulated", "{:.1f} dB"),
}
PLAN_FIGURES = {  # the same for a plan's parity
    "styles_psnr_db": ("styles of seeds", "{:.1f} dB"),
    "codes_psnr_db": ("codes", "{:.1f} dB"),
    "picture_psnr_db": ("pictures", "{:.1f} dB"),
}
ALIGNED = {  # what the manifest says of the pictures that the encoder expects
    "ffhq": "aligned faces, as FFHQ's",
    "none": "any picture",
    None: "not stated: --faces largest aligns",
}
GRAPHS = {"fp32": "fp32", "fp16": "fp32, and fp16 for TensorRT plans"}


def describe(file: EngineFile) -> Iterator[str]:
    """Yield the lines that describe an engine, in groups."""
    manifest, plans = file.manifest, records(file)
    groups = {
        "Model": _model(manifest),
        "On this machine": {"auto uses": runs_on(Hardware(), file)},
        "Against PyTorch": in_words(manifest.parity),
        "Made from": dict(manifest.provenance),
        "Members": {name: _megabytes(member.size) for name, member in manifest.members.items()},
        "TensorRT plans": {target: _plan_text(record) for target, record in plans.items()},
    }
    for number, (heading, lines) in enumerate(group for group in groups.items() if group[1]):
        if number:
            yield ""
        yield heading
        for name, value in lines.items():
            yield f"  {name:24} {value}"


def runs_on(machine: Hardware, file: EngineFile | None = None) -> str:
    """Return what a Translator uses by default here, and why; without a file, for an engine without plans."""
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
        "pictures": ALIGNED[manifest.alignment],
        "seeds change": f"layers {manifest.style_layers} of {manifest.num_styles}",
        "strange codes": _strange(manifest),
        "styles": f"{manifest.num_styles} rows of {manifest.style_dim}",
        "noise": manifest.noise,
        "graphs": GRAPHS[manifest.precision],
        "weights": f"stored as {manifest.weights}",
    }


def _strange(manifest: Manifest) -> str:
    if manifest.strange_above is None:
        return "not measured: no warning for pictures that the model was not made for"
    return f"a warning above {manifest.strange_above:.2f} spreads from usual ones"


def in_words(figures: Mapping[str, float], words: Mapping[str, tuple[str, str]] = FIGURES) -> dict[str, str]:
    """Return parity figures as lines to read: what was compared, and the difference."""
    lines: dict[str, str] = {}
    for key, value in figures.items():
        name, form = words.get(key, (key, "{:g}"))
        text = form.format(value)
        lines[name] = f"{lines[name]}, {text}" if name in lines else text
    return lines


def _plan_text(record: PlanRecord) -> str:
    return f"{record.precision}, batches {record.min_batch} to {record.max_batch}, for {record.machine}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def diagnose(engine: Path | None) -> Iterator[str]:
    """Yield the lines about this machine; with an engine, run it once."""
    machine, installed = Hardware(), installed_packages()
    yield _line("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield _line("psp_rt", installed_packages(["psp_rt"]).get("psp_rt", "from a checkout"))
    for name in PACKAGES:
        yield _line(name, installed.get(name, "not installed"))
    yield _line("providers", ", ".join(machine.providers) if machine.providers else "none")
    yield _line("bf16", _bf16(machine.openvino))
    yield _line("driver", machine.driver.problem or f"CUDA {machine.driver.cuda_version}")
    for index, gpu in enumerate(machine.driver.gpus):
        yield _line(f"cuda:{index}", gpu)
    yield _line("threads", str(default_threads() or "all cores"))
    yield _line("auto uses", runs_on(machine))
    for fault in faults(machine, installed):
        yield _line("to fix", fault)
    if engine is not None:
        for line in _plan_states(engine, machine):
            yield _line("plan", line)
        yield _line("engine", _trial(engine))


def installed_packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def faults(machine: Hardware, installed: dict[str, str]) -> list[str]:
    """Return what is wrong or missing, each with the command that fixes it."""
    found = []
    if machine.providers is None and machine.driver.gpus:
        found.append(f"this machine has a GPU, but ONNX Runtime is not installed: {INSTALL_CUDA}")
    elif {"onnxruntime", "onnxruntime-gpu"} <= installed.keys():
        found.append(
            f"onnxruntime and onnxruntime-gpu are both installed and hide each other: {INSTALL_CUDA}"
        )
    elif machine.driver.gpus and CUDA_PROVIDER not in (machine.providers or ()):
        found.append(f"this machine has a GPU, but ONNX Runtime has no CUDA provider: {INSTALL_CUDA}")
    if machine.driver.gpus and "tensorrt" in installed and "cuda-bindings" not in installed:
        found.append(f"TensorRT plans need cuda-bindings: {INSTALL_BINDINGS}")
    if machine.openvino.problem and machine.openvino_is_faster:
        found.append(f"{machine.openvino.problem}: models on the CPU would run faster")
    return found


def _bf16(openvino: OpenVinoState) -> str:
    if openvino.problem:
        return f"needs OpenVINO: {INSTALL_OPENVINO}"
    return "yes, precision='bf16'" if "BF16" in openvino.capabilities else "not supported by this processor"


def _plan_states(engine: Path, machine: Hardware) -> Iterator[str]:
    """Yield for each plan of an engine whether the first GPU can run it."""
    with EngineFile.open(engine, needs_graphs=False) as file:
        for target, record in records(file).items():
            state = machine.tensorrt(0)
            problem = state.problem if state.machine is None else obstacle(record, state.machine, file)
            yield f"{target}: {problem or 'runs here'}"


def _trial(engine: Path) -> str:
    """Load an engine and generate one picture."""
    start = time.perf_counter()
    with Translator(engine) as translator:
        translator.generate(translator.sample(0))
        seconds = time.perf_counter() - start
        where = f"{translator.device} with {translator.backend}, {translator.precision}"
        return f"{engine} runs on {where}: loaded and first picture made in {seconds:.2f} s"


def _line(name: str, value: str) -> str:
    return f"{name:16} {value}"
