"""Pictures in, pictures out: decoding, pixels as a model takes them, and the forms that callers use."""

from .decode import MAX_PIXELS, is_picture_file, load, readable_suffixes, writable_suffixes
from .forms import Pictures, is_device_array, read_pictures, to_array, to_pil
from .pixels import COLORS, Color, Pixels, check_array, over_white, pixels_of, resize, swap_channels, to_input

__all__ = [
    "COLORS",
    "MAX_PIXELS",
    "Color",
    "Pictures",
    "Pixels",
    "check_array",
    "is_device_array",
    "is_picture_file",
    "load",
    "over_white",
    "pixels_of",
    "read_pictures",
    "readable_suffixes",
    "resize",
    "swap_channels",
    "to_array",
    "to_input",
    "to_pil",
    "writable_suffixes",
]
