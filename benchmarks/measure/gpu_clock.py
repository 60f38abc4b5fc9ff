"""The clock of a GPU: CUDA's events in its own queue of work. It has not run on a GPU yet."""

from collections.abc import Callable

import torch


def event_ms(run: Callable[[], object]) -> float:
    """Return the GPU's milliseconds from the start of a call's work to its end, gaps included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
