"""Does a model fit into this machine's memory? An estimate, on the high side."""

from pathlib import Path

from benchmarks.architecture import Architecture

MAPS_AT_ONCE = 8  # of the largest size, in eager PyTorch: input, output, filtered, modulated, and spare
# PyTorch's, ONNX Runtime's mapped and packed ones, OpenVINO's three (FP32, BF16, all in BF16), and one
# while an engine is made
WEIGHT_COPIES = 7


def needed_bytes(architecture: Architecture, *, batch: int) -> int:
    """Return the memory that measuring a model takes, all contenders open."""
    weights = WEIGHT_COPIES * architecture.parameter_bytes()
    return weights + MAPS_AT_ONCE * batch * architecture.activation_bytes()


def available_bytes() -> int | None:
    """Return the memory that is free for us, or None where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    group = _group_bytes()
    return group if free is None else free if group is None else min(free, group)


def _group_bytes() -> int | None:
    """Return what a container's own limit leaves; file pages in its use can be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used["anon"])
    except (OSError, KeyError, ValueError):
        return None


def shortage(architecture: Architecture, *, batch: int) -> str:
    """Return why a model is skipped, or nothing if it fits."""
    needed, available = needed_bytes(architecture, batch=batch), available_bytes()
    if available is None or needed <= available:
        return ""
    return f"needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free"
