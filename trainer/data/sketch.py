"""Sketches as training inputs: drawn from photos by many hands, and no two scans of them alike.

The lines come from `psp_rt.pencil`; a hand says how they are put on paper. People use fine liners and
markers, search for a line with several, hatch or shade what is dark, and scan or photograph the sheet.
What the runtime cleans before the model sees it (`psp_rt.paper`) is cleaned here, too.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from psp_rt import paper
from psp_rt.pencil import UNIT_SIZE, Field, Gray, Pencil, draw

__all__ = ["HANDS", "Gray", "Pencil", "draw", "draw_by_any_hand", "vary"]

Rng = np.random.Generator
PHOTO_NOISE = 4.0  # gray levels of the grain of paper, at most


def pen(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw clear lines of a random pencil."""
    return draw(photo, rng)


def fine_liner(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw many thin lines."""
    thin = {"width": 0.3, "thinness": rng.uniform(0.6, 0.75), "detail": rng.uniform(0.45, 0.6)}
    return draw(photo, rng, pencil=replace(Pencil.random(rng), **thin))


def marker(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw few lines, broad and black: up to 6 % of the face's width."""
    few = {
        "detail": rng.uniform(0.7, 1.0),
        "ink": rng.uniform(0.08, 0.12),
        "shortest": rng.uniform(0.05, 0.09),
    }
    lines = draw(photo, rng, pencil=replace(Pencil.random(rng), **few, darkness=0.95))
    return broadened(lines, rng.uniform(0.5, 2.2) * len(photo) / UNIT_SIZE)


def outlines(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw only what is long: the shape of face, hair and shoulders, and little of the features."""
    long = {
        "detail": rng.uniform(0.9, 1.6),
        "ink": rng.uniform(0.06, 0.1),
        "shortest": rng.uniform(0.1, 0.16),
    }
    return draw(photo, rng, pencil=replace(Pencil.random(rng), **long))


def searching(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw every line two or three times, lightly and beside itself, with gaps."""
    sheet = np.full(photo.shape[:2], 255, np.uint8)
    for _ in range(rng.integers(2, 4)):
        light = {"wobble": rng.uniform(0.5, 1.6), "darkness": rng.uniform(0.4, 0.8)}
        lines = draw(
            photo, rng, pencil=replace(Pencil.random(rng), **light, unevenness=rng.uniform(0.3, 1.0))
        )
        sheet = np.minimum(sheet, lines)
    return sheet


def shaded(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw lines, and lay soft gray over what is dark."""
    tone = np.clip(darkness(photo, rng) - rng.uniform(0.2, 0.4), 0, 1) * rng.uniform(0.3, 0.7)
    return with_tone(draw(photo, rng), tone)


def hatched(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw lines, and hatch what is dark, crosswise where it is darkest."""
    dark = darkness(photo, rng)
    angle, spacing = rng.uniform(0, math.pi), rng.uniform(1.8, 4)
    tone = np.zeros_like(dark)
    for threshold, turn in ((0.35, 0.0), (0.6, rng.uniform(0.5, 1.5)), (0.8, rng.uniform(-1.2, -0.4))):
        strokes = stripes(len(photo), angle + turn, spacing, rng) > rng.uniform(0.2, 0.6)
        tone = np.maximum(tone, strokes * (dark > threshold))
    return with_tone(draw(photo, rng), tone.astype(np.float32) * rng.uniform(0.3, 0.8))


def engraved(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Cut tones into parallel lines that swell where it is dark, as an engraver does."""
    dark = darkness(photo, rng)
    swelling = stripes(len(photo), rng.uniform(-0.5, 0.5), rng.uniform(2.4, 4.0), rng)
    tone: Field = np.clip(4 * (dark * 1.5 - 0.15 - (1 - swelling) / 2), 0, 1).astype(np.float32)
    return with_tone(draw(photo, rng), tone * np.float32(rng.uniform(0.5, 0.9)))


# How often each of them draws. Lines are what most people draw, and what is measured.
HANDS: dict[Callable[[NDArray[np.uint8], Rng], Gray], float] = {
    pen: 0.36,
    fine_liner: 0.12,
    marker: 0.14,
    outlines: 0.06,
    searching: 0.14,
    shaded: 0.07,
    hatched: 0.07,
    engraved: 0.04,
}


def draw_by_any_hand(photo: NDArray[np.uint8], rng: Rng) -> Gray:
    """Draw a photo [S, S, 3] RGB as a sketch [S, S], by a random hand."""
    hands = list(HANDS)
    return hands[rng.choice(len(hands), p=list(HANDS.values()))](photo, rng)


def vary(drawing: Gray, rng: Rng) -> Gray:
    """Move a drawing [h, w], change its strength, erase part of it and scan it: no two sheets are alike."""
    height, width = drawing.shape
    turn = np.asarray(
        cv2.getRotationMatrix2D((width / 2, height / 2), rng.normal(0, 2), 1 + rng.normal(0, 0.025)), float
    )
    turn[:, 2] += rng.normal(0, 0.015 * width, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(drawing), turn, (width, height), borderValue=255)
    ink = 255 - moved.astype(np.float32)
    if rng.random() < 0.3:  # broader, softer lines
        ink = cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.3, 0.8) * width / UNIT_SIZE) * rng.uniform(1.0, 1.6)
    ink *= rng.uniform(0.6, 1.2)
    if rng.random() < 0.15:
        tall, wide = rng.integers(height // 16, height // 4), rng.integers(width // 16, width // 4)
        top, left = rng.integers(height - tall), rng.integers(width - wide)
        ink[top : top + tall, left : left + wide] = 0
    if rng.random() < 0.1:  # a drawing that fades out toward its edges
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        ink *= np.clip((1.3 - np.hypot(x, y)) / 0.35, 0, 1).astype(np.float32)
    varied: Gray = (255.5 - np.clip(ink, 0, 255)).astype(np.uint8)
    return scanned(varied, rng) if rng.random() < 0.25 else varied


def scanned(drawing: Gray, rng: Rng) -> Gray:
    """Put a drawing on tinted paper in uneven light, save it as a JPEG, and clean it as the runtime does."""
    height, width = drawing.shape
    color = rng.uniform(150, 255, 3) * rng.uniform(0.9, 1.0)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    light = 1 - rng.uniform(0, 0.25) * (1 + x * math.cos(angle) + y * math.sin(angle)) / 2
    sheet = drawing[:, :, None] / 255 * color * light[:, :, None]
    sheet += rng.normal(0, rng.uniform(0.5, PHOTO_NOISE), (height, width, 1))
    pixels = np.clip(sheet, 0, 255).astype(np.uint8)
    quality = int(rng.integers(40, 95))
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
    return paper.even(decoded)


def broadened(lines: Gray, radius: float) -> Gray:
    """Return lines that are broader by a radius in pixels, with smooth edges."""
    grown = cv2.GaussianBlur(255 - lines, (0, 0), radius).astype(np.float32)
    threshold = 0.18 * max(float(grown.max()), 1.0)
    broad: Gray = (255.5 - 242 * np.clip((grown - threshold) / 30 + 0.5, 0, 1)).astype(np.uint8)
    return broad


def darkness(photo: NDArray[np.uint8], rng: Rng) -> Field:
    """Return how dark each place is, smoothed, 0 to 1, and fading away from the head."""
    size = len(photo)
    gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(gray, (0, 0), rng.uniform(0.6, 1.5) * size / UNIT_SIZE).astype(np.float32) / 255
    low, high = np.percentile(smooth[size // 8 :: 4, ::4], [5, 95])
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    inside = np.clip(4 * (1.1 - np.hypot((x - 0.5) / 0.45, (y - 0.52) / 0.55)), 0, 1)
    dark: Field = (np.clip((high - smooth) / max(high - low, 0.1), 0, 1) * inside).astype(np.float32)
    return dark


def stripes(size: int, angle: float, spacing: float, rng: Rng) -> Field:
    """Return parallel waves, 0 to 1, [size, size]; `spacing` is in pixels at 128, and a little uneven."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    coarse = rng.uniform(-1, 1, (7, 7)).astype(np.float32)
    stray = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) * rng.uniform(0, 2.5)
    across = x * math.cos(angle) + y * math.sin(angle) + stray * size / UNIT_SIZE
    wave: Field = (0.5 + 0.5 * np.sin(across * 2 * math.pi * UNIT_SIZE / size / spacing)).astype(np.float32)
    return wave


def with_tone(lines: Gray, tone: Field) -> Gray:
    """Return lines on a sheet that already has tones, 0 (white) to 1 (black)."""
    under = 255.5 - 255 * np.clip(tone, 0, 1)
    sheet: Gray = np.minimum(lines, under.astype(np.uint8))
    return sheet
