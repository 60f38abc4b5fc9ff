"""BF16 in training: where the processor has it, and never emulated."""

import pytest
import torch

from trainer.loop import average as precision

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    def has(**parts):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: parts, raising=False)

    return has


def dtype_of_a_convolution(device, **wanted):
    with precision.half_precision(device, **wanted):
        return torch.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)).dtype


def test_a_processor_with_bf16_computes_in_it(processor):
    processor(avx512_bf16=False, amx_bf16=True)
    assert dtype_of_a_convolution(CPU) == torch.bfloat16
    assert precision.precision_notes(CPU) == []


def test_a_processor_without_bf16_does_not_emulate_it_and_the_user_is_told(processor):
    processor(avx512_f=True, avx512_bf16=False)
    assert dtype_of_a_convolution(CPU) == torch.float32
    assert precision.precision_notes(CPU) == ["this processor has no BF16, so the run computes in FP32"]


def test_who_wants_fp32_gets_it_without_a_word(processor):
    processor(avx512_bf16=True)
    assert dtype_of_a_convolution(CPU, wanted=False) == torch.float32
    processor()
    assert precision.precision_notes(CPU, wanted=False) == []


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_since_ampere(processor, monkeypatch, capability, has):
    processor()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert precision.computes_bf16(gpu) == has
    assert (
        precision.precision_notes(gpu) == [] if has else ["this GPU has no BF16, so the run computes in FP32"]
    )
