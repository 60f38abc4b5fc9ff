"""Rebuild the official models of a folder of conformance vectors, in the official file format.

The folder holds what the public pSp code computed with weights drawn from a formula. It is looked
for beside the checkout (``../shared/conformance``) or where PSP_RT_CONFORMANCE says.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.networks import (
    Encoder,
    EncoderConfig,
    EncoderKind,
    Generator,
    GeneratorConfig,
    official_channels,
)

FOLDER = Path(os.environ.get("PSP_RT_CONFORMANCE", Path(__file__).parents[3] / "shared" / "conformance"))


@dataclass(frozen=True)
class Case:
    """One official model."""

    name: str
    size: int
    kind: EncoderKind
    encoder_type: str
    channels: int = 3
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def num_styles(self) -> int:
        return 2 * self.size.bit_length() - 4


SKETCH = (("dataset_type", "celebs_sketch_to_face"), ("label_nc", 1), ("input_nc", 1))
SEGMENTATION = (("dataset_type", "celebs_seg_to_face"), ("label_nc", 19), ("input_nc", 19))
CASES = [
    Case("psp_inversion_256", 256, "psp", "GradualStyleEncoder", options=(("dataset_type", "ffhq_encode"),)),
    Case("psp_sketch_1024", 1024, "psp", "GradualStyleEncoder", 1, SKETCH),
    Case("psp_segmentation_256", 256, "psp", "GradualStyleEncoder", 19, SEGMENTATION),
    Case("w_encoder_256", 256, "w", "BackboneEncoderUsingLastLayerIntoW", options=(("learn_in_w", True),)),
    Case("naive_wplus_256", 256, "naive_w+", "BackboneEncoderUsingLastLayerIntoWPlus"),
    Case("psp_mix_512", 512, "psp", "GradualStyleEncoder"),
]


def vectors(case: Case) -> dict[str, np.ndarray]:
    """Return the arrays of a case."""
    with np.load(FOLDER / f"{case.name}.npz") as arrays:
        return dict(arrays)


def write_checkpoint(case: Case, path: Path) -> None:
    """Write the model of a case as an official ``.pt``."""
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(channels=official_channels(case.size)))
        encoder = Encoder.create(
            EncoderConfig(kind=case.kind, num_styles=case.num_styles, input_channels=case.channels)
        )
    state = _draw("encoder.", encoder) | _draw("decoder.", generator)
    rows = 1 if case.kind == "w" else case.num_styles
    options = {"encoder_type": case.encoder_type, "output_size": case.size, "start_from_latent_avg": True}
    torch.save(
        {
            "state_dict": state,
            "opts": options | dict(case.options),
            "latent_avg": torch.from_numpy(_formula()("latent_avg", (rows, 512))),
        },
        path,
    )


def generator(size: int) -> Generator:
    """Return the official generator of a size, with the weights that the vectors were computed with."""
    network = Generator(GeneratorConfig(channels=official_channels(size)))
    state = _draw("decoder.", network)
    network.load_state_dict({name.removeprefix("decoder."): tensor for name, tensor in state.items()})
    return network.eval().requires_grad_(False)


def _draw(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16
    return {
        prefix + name: kernel
        if name.endswith("kernel")
        else torch.from_numpy(np.asarray(_formula()(prefix + name, tuple(tensor.shape))))
        for name, tensor in module.state_dict().items()
    }


def _formula() -> Any:
    spec = importlib.util.spec_from_file_location("conformance_weights", FOLDER / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.weight
