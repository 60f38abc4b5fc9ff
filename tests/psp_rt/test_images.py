"""Pictures: every kind becomes what the model takes, and what cannot says what to do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psp_rt import InputError, InputSpec
from psp_rt.images import MAX_PIXELS, load, readable_suffixes, resize, to_input
from tests.messages import assert_says

RGB = InputSpec(kind="rgb", height=4, width=6)
GRAY = InputSpec(kind="gray", height=4, width=6)
LABELS = InputSpec(kind="labels", height=4, width=6, labels=5, resize="nearest")
SIZE = (4, 6)


@pytest.fixture
def colors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, SIZE, dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


# Resizing.


def test_shrinking_averages_as_pil_does():
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    assert np.abs(resize(stripes, 8, 8)[:, 1:-1].astype(int) - 128).max() <= 1
    assert set(np.unique(resize(stripes, 8, 8, method="nearest"))) <= {0, 255}


def test_resizing_is_pils_bilinear_with_antialiasing(colors):
    expected = np.asarray(Image.fromarray(colors).resize((3, 9), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize(colors, 9, 3), expected)


def test_one_channel_keeps_its_axis(colors):
    assert resize(colors[:, :, :1], 8, 12).shape == (8, 12, 1)
    assert resize(colors[:, :, 0], 8, 12).shape == (8, 12)


def test_an_unknown_method_is_refused(colors):
    with pytest.raises(InputError, match="method is 'cubic'; expected one of bilinear, nearest"):
        resize(colors, 8, 8, method="cubic")


# PIL images.


def test_rgb_goes_in_as_it_is(colors):
    np.testing.assert_array_equal(to_input(Image.fromarray(colors), RGB), colors)


def test_gray_is_repeated_for_an_rgb_model(ids):
    np.testing.assert_array_equal(to_input(Image.fromarray(ids), RGB), np.stack([ids] * 3, axis=2))


def test_color_becomes_gray_with_pils_weights(colors):
    expected = np.round(colors @ np.array([0.299, 0.587, 0.114]))
    found = to_input(Image.fromarray(colors), GRAY)
    assert found.shape == (*SIZE, 1)
    assert np.abs(found[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_what_is_transparent_becomes_white(mode):
    image = Image.new("RGBA", SIZE[::-1], (10, 20, 30, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    found = to_input(image.convert(mode), RGB)
    np.testing.assert_array_equal(found[0, 0], [0, 0, 0])
    assert (found[1:] == 255).all()


def test_a_transparent_color_of_a_palette_becomes_white(ids):
    image = Image.fromarray(ids)
    image.putpalette([10, 20, 30] * 5)
    image.info["transparency"] = 1
    found = to_input(image, RGB)
    assert (found[ids == 1] == 255).all()
    assert (found[ids != 1] == [10, 20, 30]).all()


def test_a_palette_gives_its_colors_to_an_rgb_model_and_its_indices_to_a_labels_model(ids):
    image = Image.fromarray(ids)
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 9, 9, 9, 1, 2, 3])
    np.testing.assert_array_equal(to_input(image, LABELS)[:, :, 0], ids)
    np.testing.assert_array_equal(to_input(image, RGB)[ids == 1][0], [10, 200, 10])


def test_16_bit_gray_keeps_its_upper_bits(ids):
    image = Image.fromarray(ids.astype(np.uint16) * 256 + 255)
    assert image.mode.startswith("I;16")
    np.testing.assert_array_equal(to_input(image, GRAY)[:, :, 0], ids)


def test_16_bit_labels_keep_their_values(ids):
    np.testing.assert_array_equal(to_input(Image.fromarray(ids.astype(np.uint16)), LABELS)[:, :, 0], ids)
    with pytest.raises(InputError, match="holds the id 300; expected at most 255"):
        to_input(Image.fromarray(np.full(SIZE, 300, np.uint16)), LABELS)
    big_endian = Image.frombytes("I;16B", SIZE[::-1], np.full(SIZE, 257, ">u2").tobytes())  # as TIFFs have it
    with pytest.raises(InputError, match="holds the id 257; expected at most 255"):
        to_input(big_endian, LABELS)


def test_a_picture_that_was_closed_is_an_input_error(ids, tmp_path):
    Image.fromarray(ids).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    image.close()
    with pytest.raises(InputError, match="the picture cannot be decoded: Operation on closed image"):
        to_input(image, GRAY)


def test_black_and_white_and_cmyk_are_converted(colors):
    black = to_input(Image.new("1", SIZE[::-1], 1), RGB)
    assert (black == 255).all()
    assert (to_input(Image.new("CMYK", SIZE[::-1], (0, 255, 255, 0)), RGB) == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(mode):
    with pytest.raises(InputError, match=f"mode {mode}.*0-255"):
        to_input(Image.new(mode, (6, 4)), RGB)


# Paths.


def test_a_path_gives_the_same_as_its_picture(tmp_path, colors):
    path = saved(tmp_path / "a.png", Image.fromarray(colors))
    np.testing.assert_array_equal(to_input(path, RGB), colors)
    np.testing.assert_array_equal(to_input(str(path), RGB), colors)


def test_a_picture_is_turned_as_its_exif_says(tmp_path, colors):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    path = saved(tmp_path / "turned.png", Image.fromarray(np.rot90(colors).copy()), exif=exif)
    np.testing.assert_array_equal(np.asarray(load(path)), colors)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_a_corrupt_file_is_an_input_error_that_names_it(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path / f"whole.{suffix}", Image.fromarray(noise))
    data = path.read_bytes()
    for size in range(0, len(data) * 9 // 10, max(1, len(data) // 23)):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=rf"whole\.{suffix} (is not|cannot be|is corrupt)"):
            load(path)


def test_a_flipped_byte_in_a_picture_never_escapes_as_another_error(tmp_path, colors):
    path = saved(tmp_path / "a.png", Image.fromarray(colors))
    data = bytearray(path.read_bytes())
    for at in range(len(data)):
        changed = data.copy()
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        try:
            assert load(path).size == (6, 4)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no\.png cannot be read: No such file or directory"):
        to_input(tmp_path / "no.png", RGB)


def test_a_text_file_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(InputError, match=r"is not a picture.*PNG, JPEG"):
        to_input(tmp_path / "a.png", RGB)


# Size.


def test_a_picture_20000_pixels_wide_works():
    wide = np.zeros((3, 20_000, 3), np.uint8)
    wide[:, :, 0] = 77
    assert (to_input(wide, RGB, color="rgb") == [77, 0, 0]).all()


def test_an_array_beyond_the_limit_is_refused_before_it_is_copied():
    huge = np.broadcast_to(np.zeros(1, np.uint8), (20_000, 20_000))
    with pytest.raises(InputError, match=f"is 20000 x 20000 pixels; expected at most {MAX_PIXELS} in all"):
        to_input(huge, GRAY)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_400, 60_000])
def test_a_file_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(InputError, match=rf"bomb\.png is .*expected at most {MAX_PIXELS}"):
        load(tmp_path / "bomb.png")


@pytest.mark.parametrize("shape", [(0, 6, 3), (4, 0, 3), (0, 0)])
def test_a_picture_without_pixels_is_refused(shape):
    with pytest.raises(InputError, match="pixels; expected at least 1 x 1"):
        to_input(np.zeros(shape, np.uint8), RGB)


# Arrays.


def test_arrays_are_bgr_unless_told_otherwise(colors):
    np.testing.assert_array_equal(to_input(colors, RGB), colors[:, :, ::-1])
    np.testing.assert_array_equal(to_input(colors, RGB, color="rgb"), colors)


def test_the_channel_order_counts_when_color_becomes_gray(colors):
    expected = to_input(Image.fromarray(colors), GRAY)
    np.testing.assert_array_equal(to_input(colors[:, :, ::-1], GRAY), expected)
    np.testing.assert_array_equal(to_input(colors, GRAY, color="rgb"), expected)


def test_one_channel_may_have_an_axis_or_not(ids):
    for spec in (RGB, GRAY, LABELS):
        np.testing.assert_array_equal(to_input(ids, spec), to_input(ids[:, :, None], spec))


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        ("float32", r"\(image \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        ("int64", r"image\.astype\(np\.uint8\)$"),
        (
            "uint16",
            r"astype\(np\.uint8\), or \(image >> 8\)\.astype\(np\.uint8\) if it lies in 0-65535",
        ),
    ],
)
def test_another_dtype_is_refused_with_the_conversion_to_type(dtype, hint):
    with pytest.raises(InputError, match=f"dtype {dtype}; expected uint8: convert it with .*{hint}"):
        to_input(np.zeros((4, 6, 3), dtype), RGB)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((4, 6, 2), r"\[H, W, 3\].*got \[4, 6, 2\]"),
        ((6,), r"got \[6\]"),
        ((1, 1, 4, 6, 3), r"got \[1, 1, 4, 6, 3\]"),
    ],
)
def test_a_wrong_channel_count_names_the_shape(shape, reason):
    with pytest.raises(InputError, match=reason):
        to_input(np.zeros(shape, np.uint8), RGB)


@pytest.mark.parametrize("value", [None, 3, {"a": 1}, [[1, 2]]])
def test_what_is_no_picture_names_its_type(value):
    with pytest.raises(InputError, match=f"a path, .*NumPy array, got {type(value).__name__}"):
        to_input(value, RGB)


# Label maps.


def test_an_id_out_of_range_names_the_id_and_the_range(ids):
    ids[0, 0] = 5
    with pytest.raises(InputError, match="holds the id 5; this model knows 0 to 4"):
        to_input(ids, LABELS)


def test_color_is_no_label_map(colors):
    with pytest.raises(InputError, match=r"one channel, got \[4, 6, 3\]; pass the ids as \[H, W\]"):
        to_input(colors, LABELS)
    with pytest.raises(InputError, match="this picture has mode RGB; save the ids as a gray or palette PNG"):
        to_input(Image.fromarray(colors), LABELS)


def test_label_maps_are_resized_to_the_nearest_id():
    ids = np.kron(np.array([[0, 4], [4, 0]], np.uint8), np.ones((5, 7), np.uint8))
    assert set(np.unique(to_input(ids, LABELS))) == {0, 4}


def test_official_segmentation_models_resize_ids_bilinearly():
    ids = np.tile(np.array([0, 4], np.uint8), (8, 6))
    spec = InputSpec(kind="labels", height=4, width=6, labels=5, resize="bilinear")
    expected = np.asarray(Image.fromarray(ids).resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(to_input(ids, spec)[:, :, 0], expected)
    assert 2 in expected  # an id that the map did not hold


# What people really pass.


def turned_jpeg(colors: np.ndarray) -> bytes:
    """Return a JPEG whose EXIF orientation says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(np.rot90(colors).copy()).save(data, "JPEG", exif=exif, quality=95)
    return data.getvalue()


def test_every_door_gives_the_same_upright_picture(tmp_path, colors):
    data = turned_jpeg(np.kron(colors, np.ones((8, 8, 1), np.uint8)))
    (tmp_path / "a.jpg").write_bytes(data)
    expected = to_input(tmp_path / "a.jpg", RGB)
    with open(tmp_path / "a.jpg", "rb") as file:
        for source in (data, bytearray(data), io.BytesIO(data), Image.open(io.BytesIO(data)), file):
            np.testing.assert_array_equal(to_input(source, RGB), expected)
    assert load(data).size == (48, 32)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_an_array_with_alpha_is_laid_over_white_like_a_file(colors, color):
    alpha = np.full((*SIZE, 1), 128, np.uint8)
    order = colors if color == "rgb" else colors[:, :, ::-1]
    found = to_input(np.concatenate([order, alpha], axis=2), RGB, color=color)
    expected = to_input(Image.fromarray(np.concatenate([colors, alpha], axis=2)), RGB)
    np.testing.assert_array_equal(found, expected)


def test_the_advice_about_a_dtype_keeps_the_picture():
    mask = np.zeros(SIZE, bool)
    mask[1:3] = True
    with pytest.raises(InputError) as caught:
        to_input(mask, GRAY)
    assert_says(caught, "bool", "uint8", "image.astype(np.uint8) * 255")
    for ids in (mask, mask.astype(np.float32), mask.astype(np.int64)):
        with pytest.raises(InputError) as caught:
            to_input(ids, LABELS)
        assert_says(caught, ids.dtype, "ids.astype(np.uint8)")


@pytest.mark.parametrize(("suffix", "container"), [("jpg", "JPEG"), ("webp", "lossy WebP"), ("avif", "AVIF")])
def test_a_label_map_from_a_lossy_file_is_refused(tmp_path, ids, suffix, container):
    if suffix == "avif":
        pytest.importorskip("PIL._avif")
    path = saved(tmp_path / f"map.{suffix}", Image.fromarray(np.kron(ids, np.ones((9, 9), np.uint8))))
    data = path.read_bytes()
    for source in (path, data, Image.open(path), Image.open(io.BytesIO(data))):
        with pytest.raises(InputError) as caught:
            to_input(source, LABELS)
        assert_says(caught, container, "PNG")


def test_a_label_map_that_fills_a_void_with_255_is_explained(ids):
    ids[0, 0] = 255
    with pytest.raises(InputError) as caught:
        to_input(ids, LABELS)
    assert_says(caught, "255", "0 to 4", "ignore", "ids[ids == 255] = 0")


def test_16_bit_pgm_and_png_keep_their_upper_bits(tmp_path, ids):
    deep = ids.astype(np.uint16) * 256 + 255
    (tmp_path / "a.pgm").write_bytes(b"P5 6 4 65535\n" + deep.astype(">u2").tobytes())
    saved(tmp_path / "a.png", Image.fromarray(deep))
    for name in ("a.pgm", "a.png"):
        np.testing.assert_array_equal(to_input(tmp_path / name, GRAY)[:, :, 0], ids)


def test_formats_that_other_programs_would_draw_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "b.jpg").write_bytes(b"%PDF-1.4\n")
    for name in ("a.png", "b.jpg"):
        with pytest.raises(InputError, match="other programs"):
            load(tmp_path / name)
    assert not {".eps", ".pdf", ".wmf"} & readable_suffixes()
    assert {".avif", ".jp2", ".tga", ".ico", ".pbm", ".jfif", ".webp"} <= readable_suffixes()


@pytest.mark.skipif(".heic" in readable_suffixes(), reason="pillow-heif is installed")
def test_heic_names_its_decoder():
    with pytest.raises(InputError, match="pip install pillow-heif"):
        load(b"\0\0\0\x18ftypheic" + bytes(40))


def test_a_huge_jpeg_is_decoded_smaller(monkeypatch, colors):
    monkeypatch.setattr("psp_rt.images.decode.MAX_PIXELS", 64 * 48)
    data = io.BytesIO()
    Image.fromarray(np.kron(colors, np.ones((40, 40, 1), np.uint8))).save(data, "JPEG")
    image = load(data.getvalue())
    assert image.width * image.height <= 64 * 48
    assert image.size in [(60, 40), (30, 20)]


def test_the_content_decides_not_the_ending(tmp_path, colors):
    path = tmp_path / "upload.tmp"
    Image.fromarray(colors).save(path, "PNG")
    np.testing.assert_array_equal(to_input(path, RGB), Image.open(path))
