"""Pictures that are on the GPU stay there: PyTorch, CuPy and pycuda, in one process.

    python examples/device_arrays.py sketch.engine            # what of the three is installed
    python examples/device_arrays.py sketch.engine --library torch

Each function below stands alone. All share the GPU's primary context; pycuda joins it by
``pycuda.autoprimaryctx`` (its ``autoinit`` makes a context of its own, which psp_rt refuses).
"""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np

import psp_rt


def with_torch(translator: psp_rt.Translator, picture: np.ndarray) -> np.ndarray:
    """Translate in PyTorch's own stream; nothing waits until the result is looked at."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        frame = torch.from_numpy(picture).cuda(non_blocking=True)
        face = translator.run(frame, stream=stream)  # a tensor, as the input is
        return face.cpu().numpy()


def with_torch_again_and_again(translator: psp_rt.Translator, picture: np.ndarray) -> np.ndarray:
    """Translate into memory that is used again: for loops, where taking memory would cost time."""
    import torch

    size = translator.manifest.output
    frame = torch.from_numpy(picture).cuda()
    face = torch.empty((size.height, size.width, 3), dtype=torch.uint8, device="cuda")
    for _ in range(100):
        translator.run(frame, out=face, stream=torch.cuda.current_stream())
    return face.cpu().numpy()


def with_cupy(translator: psp_rt.Translator, picture: np.ndarray) -> np.ndarray:
    """Translate an array of CuPy; without a stream, the result is there when run() returns."""
    import cupy

    return cupy.asnumpy(translator.run(cupy.asarray(picture)))


def with_pycuda(translator: psp_rt.Translator, picture: np.ndarray) -> np.ndarray:
    """Translate an array of pycuda into another one."""
    import pycuda.autoprimaryctx  # noqa: F401
    from pycuda import driver, gpuarray

    size, stream = translator.manifest.output, driver.Stream()
    frame = gpuarray.to_gpu_async(picture, stream=stream)
    face = gpuarray.empty((size.height, size.width, 3), np.uint8)
    translator.run(frame, out=face, stream=stream)
    stream.synchronize()
    return face.get()


def by_address(translator: psp_rt.Translator, picture: np.ndarray) -> np.ndarray:
    """Translate memory that is known by its address alone, as a C++ host has it."""
    import torch

    size = translator.manifest.output
    frame = torch.from_numpy(picture).cuda()
    face = torch.empty((size.height, size.width, 3), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    memory = psp_rt.DeviceArray.from_pointer(frame.data_ptr(), picture.shape, owner=frame)
    translator.run(memory, out=psp_rt.DeviceArray.from_pointer(face.data_ptr(), tuple(face.shape)))
    return face.cpu().numpy()


EXAMPLES = {
    "torch": [with_torch, with_torch_again_and_again, by_address],
    "cupy": [with_cupy],
    "pycuda": [with_pycuda],
}


def main() -> None:
    """Run the examples, and compare each with the way through the host."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("--library", choices=EXAMPLES, help="By default all that are installed.")
    arguments = parser.parse_args()
    installed = [name for name in EXAMPLES if importlib.util.find_spec(name)]

    with psp_rt.Translator(arguments.engine, device="cuda", color="rgb") as translator:
        size = translator.manifest.input
        if size is None:
            parser.error("this engine has no encoder; take one that translates pictures")
        values = np.random.default_rng(0).integers(0, 2, (size.height, size.width, size.channels), np.uint8)
        expected = translator.run(values)
        for library in [arguments.library] if arguments.library else installed:
            for example in EXAMPLES[library]:
                same = np.array_equal(example(translator, values), expected)
                print(
                    f"{example.__name__:28} {'the same as' if same else 'NOT the same as'} through the host"
                )


if __name__ == "__main__":
    main()
