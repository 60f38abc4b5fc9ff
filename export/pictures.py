"""Files and folders of pictures that the export measures a model with."""

from pathlib import Path

from psp_rt.errors import InputError
from psp_rt.images import is_picture_file, readable_suffixes


def files_of(path: Path) -> list[Path]:
    """Return a file, or the pictures of a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if is_picture_file(file))
    if not found:
        raise InputError(f"the folder {path} contains no pictures ({', '.join(sorted(readable_suffixes()))})")
    return found
