"""The lines that a page shows for a result file, for each format."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.report.paper import METHODS, OTHERS, OUTPUT_SIDE
from benchmarks.report.statistics import Axis
from benchmarks.report.tables import AXES, PER, point

SCALED = ("end to end", "peak memory")
STAGES = ("encode", "generate", "end to end")
NAMES = {
    "pytorch-original": "PyTorch, original formulation",
    "pytorch": "PyTorch, our networks",
    "psp_rt-cpu": "psp_rt (ONNX Runtime, FP32)",
    "psp_rt-openvino": "psp_rt (OpenVINO, FP32)",
    "pytorch-original-bf16": "PyTorch, original formulation, BF16 autocast",
    "psp_rt-openvino-bf16": "psp_rt (OpenVINO, heads and generator in BF16)",
    "pytorch-original-cuda": "PyTorch on CUDA, original formulation",
    "pytorch-cuda": "PyTorch on CUDA, our networks",
    "pytorch-cuda-fp16": "PyTorch on CUDA, our networks, FP16 autocast",
    "pytorch-compiled-cuda-fp16": "torch.compile on CUDA, our networks, FP16 autocast",
    "psp_rt-cuda": "psp_rt (ONNX Runtime CUDA, FP32)",
    "psp_rt-tensorrt": "psp_rt (TensorRT, FP32)",
    "psp_rt-tensorrt-fp16": "psp_rt (TensorRT, FP16)",
}
OURS = (  # the first one that ran stands for psp_rt
    "psp_rt-tensorrt-fp16",
    "psp_rt-tensorrt",
    "psp_rt-cuda",
    "psp_rt-openvino",
    "psp_rt-cpu",
)
Medians = Mapping[tuple[str, str], float]  # (contender, stage) -> ms


def latency(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the medians of each model, mixing and cold start; for a scaling run its curves."""
    if content["scaling"]:
        yield from _scaling(content)
        return
    where = content["provenance"]
    measured = [model for model in content["models"] if model["timings"]]
    for number, model in enumerate(measured):
        if number:
            yield ""
        medians = {
            (timing["contender"], timing["stage"]): timing["p50_ms"]
            for timing in model["timings"]
            if timing["batch"] == 1
        }
        gpu = f", {where['gpu']}" if where.get("gpu") else ""
        yield (
            f"{_heading(model)} with drawn weights, one picture, {where['threads']} threads on "
            f"{where['cpu']} ({where['cpus']} cores){gpu}, medians of {content['settings']['rounds']} rounds:"
        )
        yield ""
        yield from _medians(medians)
        yield ""
        yield from _mixing(medians)
        for fresh in model["fresh"]:
            yield (
                f"{fresh['what']}: import {fresh['import_s']:.2f} s, open {fresh['open_s']:.2f} s, first "
                f"picture {fresh['first_run_s']:.2f} s, peak memory {fresh['peak_mib']:.0f} MiB."
            )
    yield from _against_paper(content)


def _against_paper(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paper's runtime column next to ours, if more than one encoder was measured."""
    rows = {(row["method"], row["contender"]): row for row in content["paper"]}
    ours = next((name for name in OURS if any(contender == name for _, contender in rows)), "")
    methods = [method for method in METHODS.values() if (method, ours) in rows]
    if not ours or len(methods) < 2:
        return
    shown = [name for name in (OTHERS[ours][0], ours) if (methods[0], name) in rows]
    yield ""
    yield (
        "Table 1 of the paper, its runtime column, and ours: seconds an image, and in brackets what that use "
        "of the arithmetic would be on the paper's card, by the peaks of both:"
    )
    yield ""
    yield "| encoder | the paper, Tesla P40 | " + " | ".join(NAMES[name] for name in shown) + " |"
    yield "| --- | ---: |" + " ---: |" * len(shown)
    for method in methods:
        cells = [f"{rows[method, '']['seconds']:.3f}"]
        for found in (rows[method, name] for name in shown):
            cells.append(f"{found['seconds']:.2f} ({found['p40_seconds']:.3f})")
        yield f"| {method} | " + " | ".join(cells) + " |"


def _scaling(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield how psp_rt's time and memory grow, with fitted lines."""
    where, curves = content["provenance"], content["scaling"]
    ours = next(name for name in OURS if name in {curve["contender"] for curve in curves})
    yield (
        f"{NAMES[ours]}, end to end, {where['threads']} threads on {where['cpu']} ({where['cpus']} cores), "
        f"medians of {content['settings']['rounds']} rounds; lines of least squares, in brackets the root "
        "mean square of what they leave:"
    )
    yield ""
    yield "| against | model | what | measured | line |"
    yield "| --- | --- | --- | --- | --- |"
    for axis in AXES:
        for curve in curves:
            if (curve["axis"], curve["contender"]) == (axis, ours) and curve["what"] in SCALED:
                yield _curve(axis, curve)


def _curve(axis: Axis, curve: Mapping[str, Any]) -> str:
    unit = curve["unit"]
    what = "peak memory, MiB" if unit == "MiB" else "time, ms"
    measured = ", ".join(f"{point(axis, x)}: {_whole(value)}" for x, value in curve["points"])
    line = curve["line"]
    fitted = "" if line is None else (
        f"{_whole(line['fixed'])} + {_whole(line['slope'])} a {PER[axis]} ({_whole(line['residual'])})"
    )  # fmt: skip
    return f"| {AXES[axis]} | {curve['model']} | {what} | {measured} | {fitted} |"


def _whole(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _heading(model: Mapping[str, Any]) -> str:
    side = model["output"].partition(" ")[0]
    kind = "" if model["encoder"] == "psp" else f", {model['encoder']} encoder"
    full = "The official architecture" if side == str(OUTPUT_SIDE) else "The official architecture, smaller"
    return f"{full} (input {model['input'].partition(' ')[0]}, output {side}{kind})"


def _medians(medians: Medians) -> Iterator[str]:
    shown = [name for name in NAMES if all((name, stage) in medians for stage in STAGES)]
    fast = min(medians[name, "end to end"] for name in shown) < 100
    yield f"| {'milliseconds' if fast else 'seconds'} | " + " | ".join(STAGES) + " |"
    yield "| --- |" + " ---: |" * len(STAGES)
    for name in shown:  # others could not run, or their pictures were wrong
        times = [medians[name, stage] for stage in STAGES]
        cells = [f"{ms:.3g}" if fast else f"{ms / 1000:.2f}" for ms in times]
        yield f"| {NAMES[name]} | " + " | ".join(cells) + " |"
    ours = _ours(medians)
    original = OTHERS[ours][0] if ours else ""
    if original in shown:
        faster = [medians[original, stage] / medians[ours, stage] for stage in STAGES]
        cells = [f"**{ratio:.2f}x**" for ratio in faster]
        yield f"| **original / {NAMES[ours]}** | " + " | ".join(cells) + " |"


def _mixing(medians: Medians) -> Iterator[str]:
    ours = _ours(medians)
    if ours and (ours, "4 mixed") in medians:
        together, apart = medians[ours, "4 mixed"], medians[ours, "4 runs"]
        yield (
            f"Four style-mixed results of one picture take {together / 1000:.2f} s together; four full runs "
            f"take {apart / together:.2f} times as long."
        )


def _ours(medians: Medians) -> str:
    return next((name for name in OURS if (name, STAGES[0]) in medians), "")


def training(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield images per second of the loops of each task."""
    where, settings = content["provenance"], content["settings"]
    yield (
        f"Images a second in training on {where['device']}, medians of {settings['rounds']} calls of "
        f"{settings['steps']} steps:"
    )
    yield ""
    yield "| task | loop | images/s | x plain | waited for data |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for task in content["tasks"]:
        for row in task["loops"]:
            rate = row["batch"] * settings["steps"] * 1000 / row["p50_ms"]
            waited = row["waited_for_data"]
            cells = [f"{rate:.2f}", f"{row['faster_than_plain']['value']:.2f}"]
            cells.append("" if waited is None else f"{waited:.1%}")
            yield f"| {task['task']} | {row['contender']} | " + " | ".join(cells) + " |"


def evaluation(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paper's ablation: ours, then the paper's rows."""
    size, count = content["compared_size"], content["data"]["photos"]
    yield f"Means of {count} photos at {size}x{size}; the paper's rows are quoted, from other photos:"
    yield ""
    yield "| method | similarity | LPIPS | MSE | s/image |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in content["rows"]:
        similarity = "-" if row["similarity"] is None else f"{row['similarity']:.3f}"
        mark = {"yes": " (circular)", "not recorded": " (?)"}.get(row["circular"], "")
        figures = f"{row['lpips']:.3f} | {row['mse']:.4f} | {row['seconds']:.4f}"
        yield f"| {row['name']} | {similarity}{mark} | {figures} |"
    for row in content["paper"]["rows"]:
        figures = f"{row['lpips']:.2f} | {row['mse']:.2f} | {row['seconds']:.3f}"
        yield f"| {row['method']} (paper) | {row['similarity']:.2f} | {figures} |"
    if any(row["circular"] == "yes" for row in content["rows"]):
        yield ""
        yield "Circular: measured by the network that the run was trained with."


BLOCKS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "psp_rt.latency": latency,
    "psp_rt.training_speed": training,
    "psp_rt.evaluation": evaluation,
}
