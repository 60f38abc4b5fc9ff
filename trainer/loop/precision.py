"""BF16 where the device computes in it.

Processors and GPUs without BF16 emulate it. Training on such a processor took 2.6 times as long as in FP32,
which is also more exact, so a run on one computes in FP32 and says so.
"""

import torch

FIRST_GPUS = (8, 0)  # compute capability: Ampere; PyTorch emulates BF16 on older ones
PROCESSOR_PARTS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has BF16, as far as PyTorch can tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in older versions
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_GPUS
    if device.type != "cpu" or capabilities is None:
        return True
    found = capabilities()
    return any(found.get(part) for part in PROCESSOR_PARTS)


def half_precision(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """Compute convolutions and products in BF16 where that is wanted and there; weights stay FP32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and computes_bf16(device))


def shortfall(device: torch.device, *, wanted: bool = True) -> list[str]:
    """Return a line for the user where BF16 is wanted and not there."""
    if not wanted or computes_bf16(device):
        return []
    what = "GPU" if device.type == "cuda" else "processor"
    return [f"this {what} has no BF16, so the run computes in FP32"]
