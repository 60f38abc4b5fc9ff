"""Write README's tables from the committed results: ``make readme-tables``.

Each table stands between two comments, ``<!-- NAME: ... -->`` and ``<!-- /NAME -->``, and is made from the
JSON file that `benchmarks/latency.py` or `benchmarks/encoders.py` wrote. tests/test_readme.py holds that
README agrees.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU = RESULTS / "cpu-1024.json"
ENCODERS = RESULTS / "encoders-64.json"
STAGES = ("encode", "generate", "end to end")
NAMES = {
    "pytorch-original": "PyTorch, original formulation",
    "pytorch": "PyTorch, our networks",
    "psp_rt-cpu": "psp_rt (ONNX Runtime, FP32)",
    "psp_rt-openvino": "psp_rt (OpenVINO, FP32)",
    "pytorch-original-bf16": "PyTorch, original formulation, BF16 autocast",
    "psp_rt-openvino-bf16": "psp_rt (OpenVINO, generator in BF16)",
}
OURS = ("psp_rt-openvino", "psp_rt-cpu")  # in FP32, the faster one first


def main() -> None:
    """Rewrite README."""
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text()))


def updated(text: str) -> str:
    """Return README's text with every table made anew."""
    text = _replace(text, "speed", speed(json.loads(CPU.read_text())))
    return _replace(text, "encoders", encoders(json.loads(ENCODERS.read_text())))


def speed(results: Mapping[str, Any]) -> str:
    """Return the table of medians on a CPU, and what else is promised."""
    model, where = results["models"][0], results["provenance"]
    medians = {(timing["contender"], timing["stage"]): timing["p50_ms"] for timing in model["timings"]}
    lines = [
        "The official architecture (input 256, output 1024) with drawn weights, one picture, "
        f"{where['threads']} threads on {where['cpu']} ({where['cpus']} cores), medians of "
        f"{results['settings']['rounds']} rounds:",
        "",
        "| seconds | " + " | ".join(STAGES) + " |",
        "| --- |" + " ---: |" * len(STAGES),
    ]
    for contender, name in NAMES.items():
        if (contender, STAGES[0]) not in medians:
            continue  # it could not run, or its pictures were wrong
        times = [f"{medians[contender, stage] / 1000:.2f}" for stage in STAGES]
        lines.append(f"| {name} | " + " | ".join(times) + " |")
    ours = next(contender for contender in OURS if (contender, STAGES[0]) in medians)
    faster = [medians["pytorch-original", stage] / medians[ours, stage] for stage in STAGES]
    lines.append(
        f"| **original / {NAMES[ours]}** | " + " | ".join(f"**{ratio:.2f}x**" for ratio in faster) + " |"
    )
    mixed = medians[ours, "4 runs"] / medians[ours, "4 mixed"]
    lines += [
        "",
        f"Four style-mixed results of one picture take {medians[ours, '4 mixed'] / 1000:.2f} s "
        f"together; four full runs take {mixed:.2f} times as long.",
        *(
            f"{fresh['what']}: import {fresh['import_s']:.2f} s, open {fresh['open_s']:.2f} s, first picture "
            f"{fresh['first_run_s']:.2f} s, peak memory {fresh['peak_mib']:.0f} MiB."
            for fresh in model["fresh"]
        ),
        "",
        f"Made by `{where['command']}`, then `make readme-tables`; the whole result is in "
        f"[{CPU.relative_to(ROOT)}]({CPU.relative_to(ROOT)}).",
    ]
    return "\n".join(lines)


def encoders(results: Mapping[str, Any]) -> str:
    """Return the table of the paper's ablation."""
    rows, where = results["rows"], results["provenance"]
    lines = [
        f"Trained on {rows[0]['images_seen']:,} photos each for one generator of "
        f"{results['compared_size']} pixels, measured on {results['data']['photos']} photos of other people:",
        "",
        "| encoder | similarity | LPIPS | MSE |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        circular = " (circular)" if row["circular"] == "yes" else ""
        lines.append(
            f"| {row['name']} | {row['similarity']:.3f}{circular} | {row['lpips']:.3f} | {row['mse']:.4f} |"
        )
    lines += [
        "",
        "Circular: measured by the network that the encoder was trained with; there was only one at hand. "
        "So nothing is known of the likeness but that the identity loss does its work, at some cost to LPIPS "
        "and MSE.",
        "",
        f"Made by `{where['command']}`, then `make readme-tables`; the whole result, with the paper's "
        f"own rows, is in [{ENCODERS.relative_to(ROOT)}]({ENCODERS.relative_to(ROOT)}).",
    ]
    return "\n".join(lines)


def _replace(text: str, name: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    found, count = pattern.subn(lambda match: f"{match[1]}{table}\n{match[2]}", text)
    if count != 1:
        sys.exit(f"README.md has {count} places for the table {name}; expected 1")
    return found


if __name__ == "__main__":
    main()
