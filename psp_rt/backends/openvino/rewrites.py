"""Rewrites for OpenVINO on the CPU: an encoder in two precisions, color layers that read channels last."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...hardware.openvino import load_openvino

# The name that `export` gives to the first convolution of a head; OpenVINO may append to it.
FIRST_OF_HEAD = re.compile(r"/encoder/styles\.\d+/convs/convs\.0/Conv\b")


class TwoPrecisions:
    """An encoder as two compiled models: its backbone in FP32, and its map2style heads in BF16.

    The heads are half of the work of a pSp encoder and most of its weights, and end in one linear layer each,
    so little is rounded after them; the backbone's 24 blocks add up rounding errors. Measured on the three
    demonstration models and 40 photos, in BF16 against FP32: heads alone move codes by at most 0.4 % of their
    range and pictures by 57 dB or more; the whole encoder moves codes by up to 7 %, and pictures to 33 dB.
    """

    def __init__(self, backbone: Any, heads: Any) -> None:
        self._backbone, self._heads = backbone, heads

    def create_infer_request(self) -> TwoRequests:
        """Return a request that runs both."""
        return TwoRequests(self._backbone.create_infer_request(), self._heads.create_infer_request())


class TwoRequests:
    """Runs both models like one request of OpenVINO's; the maps between them are not copied."""

    def __init__(self, backbone: Any, heads: Any) -> None:
        self._backbone, self._heads = backbone, heads
        for number in range(len(backbone.model_outputs)):
            heads.set_input_tensor(number, backbone.get_output_tensor(number))

    def infer(self, inputs: Mapping[str, Any], **options: bool) -> None:
        """Run both."""
        self._backbone.infer(inputs, **options)
        self._heads.infer()

    def get_output_tensor(self, number: int) -> Any:
        """Return a result of the heads."""
        return self._heads.get_output_tensor(number)


def compile_in_two(model: Any, compile_model: Callable[[Any, str], Any]) -> Any | None:
    """Compile an encoder in two parts, or return None if it has no heads like pSp's.

    Args:
        model: The encoder, which is taken apart.
        compile_model: Compiles a part in "fp32" or "bf16".
    """
    openvino = load_openvino()
    firsts = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution" and FIRST_OF_HEAD.match(node.get_friendly_name())
    ]
    maps: dict[
        tuple[str, int], tuple[Any, Any]
    ] = {}  # the source of each map, and the parameter that replaces it
    for first in firsts:
        source = first.input_value(0)
        key = source.get_node().get_friendly_name(), source.get_index()
        if key not in maps:
            read = openvino.op.Parameter(source.get_element_type(), source.get_partial_shape())
            maps[key] = source, read
        first.input(0).replace_source_output(maps[key][1].output(0))
    if not maps:
        return None
    results = [openvino.op.Result(source) for source, _ in maps.values()]
    heads = openvino.Model(model.get_results(), [read for _, read in maps.values()], "heads")
    backbone = openvino.Model(results, model.get_parameters(), "backbone")
    return TwoPrecisions(compile_model(backbone, "fp32"), compile_model(heads, "bf16"))


def read_channels_last(model: Any) -> int:
    """Rewrite color layers in place so that they read their map channels last; return how many there were.

    OpenVINO keeps the maps of convolutions channels last on the CPU. The exported color layers multiply
    weights [1, O, C] with a map [1, C, H, W] seen as [1, C, H * W] (`export/graphs/ops.py`), for which
    OpenVINO first transposes every map: 17 % of the time of the official generator at 1024 pixels, and the
    pictures are the same to the last bit without. ONNX Runtime uses another layout, so the exported graphs
    stay as they are.
    """
    rewritten = 0
    for product in model.get_ordered_ops():
        if product.get_type_name() == "MatMul" and not any(product.get_attributes().values()):
            rewritten += _rewrite(product)
    return rewritten


def _rewrite(product: Any) -> bool:
    """Rewrite one product, if its operands and all uses of its result have the shapes of a color layer."""
    weights, flat = (product.input(number).get_source_output() for number in (0, 1))
    flattening = flat.get_node()
    followers = [follower.get_node() for follower in product.output(0).get_target_inputs()]
    if not all(node.get_type_name() == "Reshape" for node in (flattening, *followers)):
        return False
    whole = flattening.input(0).get_source_output()
    ports = (weights, whole, flat, *(node.output(0) for node in followers))
    if not all(port.get_partial_shape().is_static for port in ports):
        return False
    sizes = [list(port.get_shape()) for port in ports]
    if (len(sizes[0]), len(sizes[1])) != (3, 4):
        return False
    (_, outputs, channels), (one, depth, height, width) = sizes[:2]
    expected = [[1, outputs, depth], [1, depth, height, width], [1, depth, height * width]]
    if one != 1 or channels != depth or sizes != expected + [[1, outputs, height, width]] * len(followers):
        return False

    ops = load_openvino().opset13
    points = ops.reshape(_transposed(whole, [0, 2, 3, 1]), _constant([1, height * width, channels]), False)
    colors = ops.matmul(points, weights, False, True)  # [1, H * W, O]
    image = ops.reshape(colors, _constant([1, height, width, outputs]), False)
    pictures = _transposed(image.output(0), [0, 3, 1, 2])
    for node in followers:
        node.output(0).replace(pictures.output(0))
    return True


def _transposed(port: Any, axes: list[int]) -> Any:
    return load_openvino().opset13.transpose(port, _constant(axes))


def _constant(numbers: list[int]) -> Any:
    return load_openvino().op.Constant(np.array(numbers, np.int64))
