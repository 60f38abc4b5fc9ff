"""An encoder in two precisions: its backbone in FP32, its map2style heads in BF16.

The heads are half of the work of a pSp encoder and most of its weights, and end in one linear layer each, so
little is rounded after them; the backbone's 24 blocks add up what they are given. Measured on the three
demonstration models and 40 photos, in BF16 against FP32: heads alone move codes by at most 0.4 % of their
range and pictures by 57 dB or more; the whole encoder moves them by up to 7 %, and pictures to 33 dB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ...hardware.openvino import load_openvino

# The name that `export` gives to the first convolution of a head; OpenVINO may add to it.
FIRST_OF_HEAD = re.compile(r"/encoder/styles\.\d+/convs/convs\.0/Conv\b")


class TwoPrecisions:
    """Two compiled models, the second of which reads what the first gives."""

    def __init__(self, backbone: Any, heads: Any) -> None:
        self._backbone, self._heads = backbone, heads

    def create_infer_request(self) -> TwoRequests:
        """Return what runs them."""
        return TwoRequests(self._backbone.create_infer_request(), self._heads.create_infer_request())


class TwoRequests:
    """Runs both models, as a request of OpenVINO's runs one; the maps between them are not copied."""

    def __init__(self, backbone: Any, heads: Any) -> None:
        self._backbone, self._heads = backbone, heads
        for number in range(len(backbone.model_outputs)):
            heads.set_input_tensor(number, backbone.get_output_tensor(number))

    def infer(self, inputs: Mapping[str, Any], **how: bool) -> None:
        """Run both."""
        self._backbone.infer(inputs, **how)
        self._heads.infer()

    def get_output_tensor(self, number: int) -> Any:
        """Return a result of the heads."""
        return self._heads.get_output_tensor(number)


def compile_in_two(model: Any, compile_model: Callable[[Any, str], Any]) -> Any | None:
    """Compile an encoder in two parts, or return None where it has no heads of pSp's.

    Args:
        model: Taken apart.
        compile_model: Compiles a part in "fp32" or "bf16".
    """
    openvino = load_openvino()
    firsts = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution" and FIRST_OF_HEAD.match(node.get_friendly_name())
    ]
    maps: dict[tuple[str, int], tuple[Any, Any]] = {}  # the source of each, and what the heads read instead
    for first in firsts:
        source = first.input_value(0)
        key = source.get_node().get_friendly_name(), source.get_index()
        if key not in maps:
            read = openvino.op.Parameter(source.get_element_type(), source.get_partial_shape())
            maps[key] = source, read
        first.input(0).replace_source_output(maps[key][1].output(0))
    if not maps:
        return None
    given = [openvino.op.Result(source) for source, _ in maps.values()]
    heads = openvino.Model(model.get_results(), [read for _, read in maps.values()], "heads")
    backbone = openvino.Model(given, model.get_parameters(), "backbone")
    return TwoPrecisions(compile_model(backbone, "fp32"), compile_model(heads, "bf16"))
