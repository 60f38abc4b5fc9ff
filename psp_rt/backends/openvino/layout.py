"""A rewrite for OpenVINO's layout: colour layers that read their map channels last.

OpenVINO keeps the maps of convolutions channels last on the CPU. The exported colour layers multiply
weights [N, 3, C] with a map [N, C, H * W] (`export/ops.py`), for which it first turned every map
around: measured on the official generator at 1024 pixels, 17 % of its time, and the pictures are the
same to the last bit without. ONNX Runtime keeps another layout, so the graphs stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...hardware.openvino import load_openvino


def read_channels_last(model: Any) -> int:
    """Rewrite the products of a compiled-to-be OpenVINO model in place; return how many there were.

    Only a product of weights [1, O, C] and a map [1, C, H, W] seen as [1, C, H * W], whose result is at
    once seen as [1, O, H, W], is touched.
    """
    rewritten = 0
    for product in model.get_ordered_ops():
        if product.get_type_name() == "MatMul" and not any(product.get_attributes().values()):
            rewritten += _rewrite(product)
    return rewritten


def _rewrite(product: Any) -> bool:
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
    points = ops.reshape(_turned(whole, [0, 2, 3, 1]), _whole([1, height * width, channels]), False)
    colours = ops.matmul(points, weights, False, True)  # [1, H * W, O]
    pictures = _turned(
        ops.reshape(colours, _whole([1, height, width, outputs]), False).output(0), [0, 3, 1, 2]
    )
    for node in followers:
        node.output(0).replace(pictures.output(0))
    return True


def _turned(port: Any, axes: list[int]) -> Any:
    return load_openvino().opset13.transpose(port, _whole(axes))


def _whole(numbers: list[int]) -> Any:
    return load_openvino().op.Constant(np.array(numbers, np.int64))
