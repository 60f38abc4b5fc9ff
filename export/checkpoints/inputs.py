"""What an encoder's input channels mean."""

import re

from export.checkpoints.contents import Overrides
from export.errors import CheckpointError
from psp_rt.engine.manifest import RESIZES, InputSpec


def input_spec(
    channels: int,
    *,
    height: int,
    width: int,
    declared: str | None,
    label_resize: str,
    overrides: Overrides,
) -> InputSpec:
    """Return the input of an encoder.

    Args:
        channels: Of its first convolution.
        declared: "rgb", "gray" or "labels:N" as the file says; None to go by the number of channels.
        label_resize: How models of this format were trained; ``overrides`` may say otherwise.

    Raises:
        CheckpointError: What the file or the user says does not fit the number of channels.
    """
    if channels == 6 and not (overrides.input or declared):
        raise CheckpointError(
            "the encoder has 6 input channels: a ReStyle model, which refines its result in steps; these are "
            "not supported. If the input is a map of six labels, add --input labels:6"
        )
    text = overrides.input or declared or {1: "gray", 3: "rgb"}.get(channels, f"labels:{channels}")
    kind, needed = _parse(text)
    if needed != channels:
        who = "--input says" if overrides.input else "the file's options say"
        raise CheckpointError(
            f"{who} {text}, which needs {needed} input channels, but the tensor input_layer.0.weight "
            f"has {channels}"
        )
    if kind != "labels":
        if overrides.label_resize:
            raise CheckpointError(f"--label-resize is for label maps, but the input is {kind}; leave it out")
        return InputSpec(kind=kind, height=height, width=width)
    resize = overrides.label_resize or label_resize
    if resize not in RESIZES:
        raise CheckpointError(f"--label-resize is {resize!r}; expected one of {', '.join(RESIZES)}")
    return InputSpec(kind="labels", height=height, width=width, labels=channels, resize=resize)


def _parse(text: str) -> tuple[str, int]:
    if text in ("rgb", "gray"):
        return text, 3 if text == "rgb" else 1
    labels = re.fullmatch(r"labels:([1-9]\d{0,2})", text)
    if not labels or labels[1] == "1":  # of one label there is no map
        raise CheckpointError(f"--input is {text!r}; expected rgb, gray or labels:N, for example labels:19")
    return "labels", int(labels[1])
