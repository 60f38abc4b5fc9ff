"""What is compared. Each contender is one way to run the same model on the same inputs.

N is the batch, L the number of styles, D the style dimension. Another contender is one more class and one
more line of `on_cpu` or `on_gpu`.
"""

from benchmarks.contenders.entry import Contender, Entry
from benchmarks.contenders.on_cpu import ON_CPU
from benchmarks.contenders.on_gpu import ON_GPU

__all__ = ["ENTRIES", "Contender", "Entry"]

ENTRIES = (*ON_CPU, *ON_GPU)
