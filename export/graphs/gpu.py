"""The form of the encoder and the generator that suits a GPU: fewer kernels, and less memory moved.

The FP16 graphs have this form; the portable graphs keep theirs, which suits a CPU. Both compute the same
(tests/export/test_gpu_form.py). A GPU's compiler fuses what follows a convolution into it, and each kernel
that is left costs its start and its traffic, so

    styles          all affine layers are one product; demodulation is one product for each width
    colors          are three weighted sums over the channels: a product would need another memory layout
    PReLU           is ``relu(x) + a * (x - relu(x))``, which fuses into the convolution before it
    gates           of squeeze-and-excite add up their few hidden channels one by one, so that the last step
                    fuses into the multiplication of the map
    heads           that read one map share its first convolution; then all heads are one grouped convolution
    last pixels     a 3x3 convolution of at most 2 pixels keeps only the taps that see them

No weight is stored again: what is joined here lies side by side in the file (`joined`), and a graph may refer
to all of it as one tensor.
"""

from export.graphs.gpu_encoder import GpuEncoderGraph
from export.graphs.gpu_generator import GpuGeneratorGraph
from export.graphs.networks import EncoderGraph, GeneratorGraph


def gpu_form(plain: EncoderGraph | GeneratorGraph) -> GpuEncoderGraph | GpuGeneratorGraph:
    """Return the GPU's form of a graph, which shares its tensors."""
    return GpuEncoderGraph(plain) if isinstance(plain, EncoderGraph) else GpuGeneratorGraph(plain)
