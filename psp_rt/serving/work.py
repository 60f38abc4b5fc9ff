"""The work on one request, in a thread: decode, find and align, encode, mix, generate, store.

Each stage is timed; the server's metrics show where the time goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError, InputWarning
from ..faces import Face, paste_all
from ..faces.detect import default_finder
from ..images import Pixels, load
from ..input_checks import check_faces, collected
from ..preparation import Preparation, Prepared, prepare
from ..style import Codes, StyleMix
from ..translator import Translator
from .bodies import Body, Options
from .limits import Limits

STAGES = ("decode", "find", "align", "encode", "mix", "generate", "store")
QUALITY = 92  # of JPEG and WebP


class TooManyResults(InputError):
    """A request asks for more pictures than one may."""


@dataclass
class Times:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Result:
    """One picture that a request gets."""

    data: bytes  # a file
    width: int
    height: int
    face: int | None = None  # the number of the face, the largest first
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request gets."""

    results: list[Result]
    report: str
    warnings: list[InputWarning]
    times: Times


class TimedFinder:
    """The face finder, whose time counts for a stage of its own."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def find(self, pixels: Pixels) -> list[Face]:
        """Return the faces in RGB pixels."""
        with self._times.stage("find"):
            return default_finder().find(pixels)


def translate(translator: Translator, body: Body, limits: Limits) -> Answer:
    """Translate the picture of a request.

    Raises:
        InputError: There is no picture, or it is not what the model takes.
        TooManyResults: Too many faces or styles are asked for.
    """
    options, times = body.options, Times()
    if options.paste and preparation_of(translator, options).select is None:
        raise InputError("paste needs faces; this request looks for none")
    with collected() as warnings:
        prepared = prepared_picture(translator, body, "image", limits, times)
        styles = max(1, len(options.seeds))
        if len(prepared.pictures) * styles > limits.results:
            raise TooManyResults(
                f"{len(prepared.pictures)} faces in {styles} styles are more than the "
                f"{limits.results} results that one request may get"
            )
        with times.stage("encode"):
            codes = translator.encode(prepared.pictures)
        with times.stage("mix"):
            style = style_of(translator, body, limits, times)
        with times.stage("generate"):
            made = translator.generate(codes, style, truncation=options.truncation)
    # [faces, styles, H, W, 3]
    pictures = made.reshape(len(prepared.pictures), -1, *made.shape[-3:])
    seeds = options.seeds or (None,)
    with times.stage("store"):
        if options.paste and prepared.photo is not None:
            results = []
            for of_style, seed in zip(pictures.swapaxes(0, 1), seeds, strict=True):
                made_faces = [Image.fromarray(pixels) for pixels in of_style]
                whole = paste_all(prepared.photo, prepared.faces, made_faces)
                results.append(stored(whole, options, seed=seed))
        else:
            results = [
                stored(Image.fromarray(pixels), options, face=face if prepared.faces else None, seed=seed)
                for face, of_face in enumerate(pictures)
                for pixels, seed in zip(of_face, seeds, strict=True)
            ]
    return Answer(results=results, report=prepared.report, warnings=warnings, times=times)


def encode(translator: Translator, body: Body, limits: Limits) -> tuple[Codes, Answer]:
    """Return the codes [faces, L, D] of the picture of a request."""
    times = Times()
    with collected() as warnings:
        prepared = prepared_picture(translator, body, "image", limits, times)
        with times.stage("encode"):
            codes = translator.encode(prepared.pictures)
    return codes, Answer(results=[], report=prepared.report, warnings=warnings, times=times)


def generate(translator: Translator, codes: Codes | None, options: Options, limits: Limits) -> Answer:
    """Make pictures of codes [N, L, D]; without codes, of the seeds alone."""
    times = Times()
    count = (1 if codes is None else len(codes)) * max(1, len(options.seeds))
    if count > limits.results:
        raise TooManyResults(f"{count} results are more than the {limits.results} that one request may get")
    with times.stage("mix"):
        if codes is None:
            if not options.seeds:
                raise InputError("there are no codes and no seeds; send one of them")
            codes, style = translator.sample(list(options.seeds)), None
        else:
            style = random_style(translator, options) if options.seeds else None
    with times.stage("generate"):
        made = translator.generate(codes, style, truncation=options.truncation)
    pictures = made.reshape(-1, *made.shape[-3:])
    with times.stage("store"):
        seeds = (
            [*options.seeds] * (len(pictures) // len(options.seeds))
            if options.seeds
            else [None] * len(pictures)
        )
        results = [
            stored(Image.fromarray(pixels), options, seed=seed)
            for pixels, seed in zip(pictures, seeds, strict=True)
        ]
    return Answer(results=results, report="", warnings=[], times=times)


def preparation_of(translator: Translator, options: Options) -> Preparation:
    """Return what is done to the pictures of a request."""
    return Preparation.of(
        translator.manifest, faces=options.faces, clean=options.clean, from_photo=options.from_photo
    )


def prepared_picture(translator: Translator, body: Body, name: str, limits: Limits, times: Times) -> Prepared:
    """Return a picture of a request, decoded and ready for the encoder."""
    manifest = translator.manifest
    if name not in body.pictures:
        raise InputError(
            "there is no picture; send one as the body, as the form's file image, or as JSON's image"
        )
    if manifest.input is None:
        raise InputError("this engine has no encoder, so it takes no pictures; use /v1/generate")
    source = decode(body.pictures[name], manifest.input.kind, limits, times)
    preparation, found_before = preparation_of(translator, body.options), times.seconds.get("find", 0.0)
    with times.stage("align"):
        prepared = prepare(source, preparation, manifest, finder=TimedFinder(times))
    times.seconds["align"] -= times.seconds.get("find", 0.0) - found_before
    check_faces(prepared.cut_sides, manifest)
    return prepared


def style_of(translator: Translator, body: Body, limits: Limits, times: Times) -> StyleMix | None:
    """Return the styles that a request mixes in."""
    options = body.options
    if "style_from" in body.pictures:
        if options.seeds:
            raise InputError("style_from and seeds are both given; choose one")
        prepared = prepared_picture(translator, body, "style_from", limits, times)
        layers = options.layers or translator.manifest.style_layers
        return StyleMix(translator.encode(prepared.pictures[0]), layers=layers, alpha=options.alpha)
    return random_style(translator, options) if options.seeds else None


def random_style(translator: Translator, options: Options) -> StyleMix:
    """Return the styles of the seeds."""
    layers = options.layers or translator.manifest.style_layers
    return StyleMix(translator.sample(list(options.seeds)), layers=layers, alpha=options.alpha)


def decode(data: bytes, kind: str, limits: Limits, times: Times) -> Image.Image:
    """Return the picture of a file, within the limit of pixels.

    A browser's canvas has no gray pictures: label maps may come as RGB whose channels are equal.
    """
    with times.stage("decode"):
        picture = load(data, exact=kind == "labels", max_pixels=limits.pixels)
        if kind == "labels" and picture.mode in ("RGB", "RGBA"):
            pixels = np.asarray(picture)[:, :, :3]
            if (pixels == pixels[:, :, :1]).all():
                picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]))
    return picture


def stored(picture: Image.Image, options: Options, **which: Any) -> Result:
    """Return a picture as a file, in the size that is asked for."""
    if options.size is not None:
        scale = options.size / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    if options.format == "png":
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, options.format.upper(), quality=QUALITY)
    return Result(data=buffer.getvalue(), width=picture.width, height=picture.height, **which)
