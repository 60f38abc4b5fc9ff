"""What is done to a picture before the model sees it: faces cut, drawings cleaned, photos drawn.

`Translator.run` takes pictures as they are. The commands, the server and films prepare them as the engine's
manifest asks, unless a user says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from . import drawings
from .engine.manifest import Manifest
from .errors import InputError
from .faces import Face, Finder, Selection, align_faces, is_aligned, upright_rgb

FacesOption = Literal["largest", "all", "off"]


def faces_of(manifest: Manifest, faces: FacesOption | None) -> FacesOption:
    """Return which faces of frames to translate: by default all, for engines that expect aligned faces.

    Raises:
        InputError: The engine has no encoder, or takes no photos.
    """
    if manifest.input is None:
        raise InputError("this engine has no encoder, so it takes no films")
    chosen = faces or ("all" if manifest.expects_faces else "off")
    if chosen != "off" and manifest.input.kind != "rgb":
        raise InputError(
            f"faces are for models of photos, and this one takes {manifest.input.kind}; use faces off"
        )
    return chosen


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a picture.

    Args:
        select: Which faces are found and aligned; None takes the picture as it is.
        clean: Drawings are laid on even white paper, and cropped.
        from_photo: Photos are drawn first.
    """

    select: Selection | None = None
    clean: bool = False
    from_photo: bool = False

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        faces: FacesOption | None = None,
        clean: bool | None = None,
        from_photo: bool = False,
    ) -> Preparation:
        """Return what an engine asks for, and what a user says instead.

        Args:
            manifest: Of the engine.
            faces: By default "largest" for engines that expect aligned faces, else "off".
            clean: By default whether the engine takes sketches.
            from_photo: Only for engines that take sketches.

        Raises:
            InputError: The engine takes no sketches, and `clean` or `from_photo` is set.
        """
        if manifest.task == "sketch":
            return cls(clean=clean is not False and not from_photo, from_photo=from_photo)
        if clean or from_photo:
            raise InputError(f"only engines for sketches clean or draw pictures; this is {manifest.task}")
        chosen = faces or ("largest" if manifest.expects_faces else "off")
        return cls(select=None if chosen == "off" else "all" if chosen == "all" else "largest")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture, ready for the encoder.

    Args:
        pictures: One crop for each face, or one picture.
        faces: In pixels of the photo; empty if none were looked for.
        photo: The upright photo, RGB, where faces were looked for.
        report: What was done.
    """

    pictures: list[Image.Image]
    faces: list[Face]
    photo: Image.Image | None
    report: str

    @property
    def cut_sides(self) -> list[float]:
        """The sides, in the photo's pixels, of the squares that were cut; none of aligned pictures."""
        return [
            face.side
            for picture, face in zip(self.pictures, self.faces, strict=False)
            if not is_aligned(face, *picture.size)
        ]


def prepare(
    picture: Any, preparation: Preparation, manifest: Manifest, *, finder: Finder | None = None
) -> Prepared:
    """Prepare one picture.

    Args:
        picture: A path, bytes, an open file, a PIL image, or RGB uint8 [H, W, 3].
        preparation: What to do.
        manifest: Of the engine, for the size of crops.
        finder: Another face detector.

    Raises:
        InputError: It cannot be read, shows no face, or is no drawing.
    """
    if preparation.select is not None:
        spec = manifest.input
        size = max(spec.height, spec.width) if spec else 0
        photo = upright_rgb(picture)
        aligned, report = align_faces(photo, size=size, select=preparation.select, finder=finder)
        pictures, found = [face.picture for face in aligned], [face.face for face in aligned]
        return Prepared(pictures=pictures, faces=found, photo=photo, report=report)
    if preparation.from_photo or preparation.clean:
        make = drawings.from_photo if preparation.from_photo else drawings.clean
        drawn = make(picture, finder=finder)
        return Prepared(pictures=[drawn.picture], faces=[], photo=None, report=drawn.report)
    return Prepared(pictures=[picture], faces=[], photo=None, report="")
