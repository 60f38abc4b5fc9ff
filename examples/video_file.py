"""A film through a model, frame by frame, with OpenCV (`pip install 'psp_rt[cpu]' opencv-python-headless`).

For films of people, with their sound, there is `psp-rt video`; this is the loop for a program of your own.

    python examples/video_file.py sketch.engine in.mp4 out.mp4

Reading, translating and writing are all in the time that it prints. Sound is left behind; it comes back by
`ffmpeg -i out.mp4 -i in.mp4 -map 0:v -map 1:a? -c copy both.mp4`.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

import psp_rt


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield the frames of a film, BGR [H, W, 3]."""
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def translate(translator: psp_rt.Translator, source: str, target: str) -> tuple[int, float, float]:
    """Translate a film; return its frames, the seconds that they took, and the film's own frame rate."""
    capture, size = cv2.VideoCapture(source), translator.manifest.output
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    frames = frames_of(capture)
    first = next(frames, None)
    if first is None:
        raise psp_rt.InputError(f"{source} is no film that OpenCV can read")
    if Path(source).resolve() == Path(target).resolve():
        raise psp_rt.OutputError(f"{target} is the source, and would be overwritten; choose another name")
    writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*"mp4v"), rate, (size.width, size.height))
    if not writer.isOpened():
        raise psp_rt.OutputError(f"OpenCV cannot write {target}; use NAME.mp4 in a folder that is there")

    count, start = 0, time.perf_counter()
    try:
        for result in translator.stream(chain([first], frames)):
            writer.write(result)
            count += 1
    finally:  # what is written so far stays a film
        writer.release()
        capture.release()
    return count, time.perf_counter() - start, rate


def main() -> None:
    """Translate a film and say how fast that was."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("source")
    parser.add_argument("target")
    arguments = parser.parse_args()
    try:
        with psp_rt.Translator(arguments.engine) as translator:
            print(f"{arguments.engine} runs on {translator.runs_on}")
            count, seconds, rate = translate(translator, arguments.source, arguments.target)
    except psp_rt.PspError as error:
        raise SystemExit(f"Error: {error}") from None
    print(
        f"{count} frames in {seconds:.2f} s: {count / seconds:.1f} a second; the film has {rate:g} a second"
    )


if __name__ == "__main__":
    main()
