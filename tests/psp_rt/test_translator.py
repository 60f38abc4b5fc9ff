"""The Translator: what goes in, what comes out, and who may call it when; the same on every backend."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import psp_rt
from psp_rt import BackendError, InputError, PspError, StyleMix, Translator
from tests.messages import assert_says
from tests.models import tiny_engine
from tests.models.tiny_engine import HEIGHT, OUT_HEIGHT, OUT_WIDTH, WIDTH, D, L

OUT = (OUT_HEIGHT, OUT_WIDTH, 3)


def expected(pictures: np.ndarray) -> np.ndarray:
    """Return what the tiny engine makes of RGB pictures [N, HEIGHT, WIDTH, C]."""
    return tiny_engine.generate(tiny_engine.encode(pictures))


def batch_of(count: int, *shape: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(count).integers(0, most, (count, HEIGHT, WIDTH, *shape), dtype=np.uint8)


class Calls:
    """Counts what a translator asks of its backend, with the batch of each call."""

    def __init__(self, translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, int]] = []
        for name in ("encode", "map", "generate"):
            monkeypatch.setattr(
                translator._turns._backend,
                name,
                self._counted(name, getattr(translator._turns._backend, name)),
            )

    def _counted(self, name: str, call):
        def counted(first, *rest):
            self.made.append((name, len(first)))
            return call(first, *rest)

        return counted


# Forms of input and result.


@pytest.mark.parametrize(
    ("kind", "shape", "most"), [("rgb", (3,), 256), ("gray", (), 256), ("labels", (), 5)]
)
def test_every_kind_of_model_gives_what_its_arithmetic_says(open_translator, kind, shape, most):
    pictures = batch_of(2, *shape, most=most)
    found = open_translator(kind, color="rgb").run(pictures)
    np.testing.assert_array_equal(found, expected(pictures.reshape(2, HEIGHT, WIDTH, -1)))


def test_a_batch_is_an_array_with_one_more_dimension(translator):
    pictures = batch_of(3, 3)
    found = translator.run(pictures)
    assert found.shape == (3, *OUT)
    for picture, result in zip(pictures, found, strict=True):
        np.testing.assert_array_equal(translator.run(picture), result)


def test_a_bgr_array_gives_a_bgr_array(open_translator, picture):
    rgb = open_translator("rgb", color="rgb").run(picture)
    bgr = open_translator("rgb").run(picture[:, :, ::-1])
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])
    assert bgr.flags.c_contiguous  # as OpenCV wants it


def test_a_pil_image_and_a_path_give_a_pil_image(open_translator, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    translator = open_translator("rgb")  # the channel order of arrays does not matter here
    for given in (Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        found = translator.run(given)
        assert isinstance(found, Image.Image)
        np.testing.assert_array_equal(np.asarray(found), expected(picture[None])[0])


def test_a_list_gives_a_list_each_result_in_the_form_of_its_picture(translator, picture):
    large = np.kron(picture, np.ones((2, 2, 1), np.uint8))
    found = translator.run([picture, Image.fromarray(picture), large])
    assert [type(result) for result in found] == [np.ndarray, Image.Image, np.ndarray]
    np.testing.assert_array_equal(found[0], np.asarray(found[1]))


def test_other_sizes_are_resized_as_pil_does(translator):
    large = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(large).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(translator.run(large), expected(small[None])[0])


def test_views_and_read_only_arrays_are_fine(translator, picture):
    view = picture[:, ::-1]
    view.flags.writeable = False
    np.testing.assert_array_equal(translator.run(view), expected(view[None])[0])


def test_one_channel_pictures_may_come_without_a_channel_axis(open_translator):
    translator = open_translator("gray", color="rgb")
    pictures = batch_of(2)
    assert translator.run(pictures).shape == (2, *OUT)
    np.testing.assert_array_equal(translator.run(pictures), translator.run(pictures[..., None]))
    np.testing.assert_array_equal(translator.run(pictures)[0], translator.run(pictures[0]))


def test_gray_pictures_for_an_rgb_model_must_come_as_a_list(translator):
    with pytest.raises(InputError, match="pass gray pictures for an RGB model as a list"):
        translator.run(batch_of(2))
    assert len(translator.run(list(batch_of(2)))) == 2


def test_an_empty_batch_is_refused(translator):
    for empty in ([], (), np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)):
        with pytest.raises(InputError, match="the batch is empty; pass at least one picture"):
            translator.run(empty)


def test_a_bad_picture_in_a_batch_is_named_by_its_place(translator, picture):
    with pytest.raises(InputError, match="picture 1 of the batch: the picture has dtype float64"):
        translator.run([picture, picture / 255])


def test_a_label_out_of_range_names_the_id_and_the_range(open_translator):
    with pytest.raises(InputError, match="holds the id 5; this model knows 0 to 4"):
        open_translator("labels").run(np.full((9, 9), 5, np.uint8))


# Results.


def test_results_are_the_callers_to_keep(translator, picture):
    first = translator.run(picture)
    kept = first.copy()
    translator.run(255 - picture)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # and to change
    np.testing.assert_array_equal(translator.run(picture), kept)


@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_out_takes_the_results(open_translator, picture, color):
    translator = open_translator("rgb", color=color)
    out = np.zeros(OUT, np.uint8)
    assert translator.run(picture, out=out) is out
    np.testing.assert_array_equal(out, translator.run(picture))
    assert translator.generate(translator.encode(picture), out=out) is out


def test_an_out_that_does_not_fit_is_refused(translator, picture):
    with pytest.raises(InputError, match=r"out must be a uint8 array \[10, 14, 3\], got uint8 \[9, 14, 3\]"):
        translator.run(picture, out=np.zeros((9, 14, 3), np.uint8))
    with pytest.raises(InputError, match=r"a uint8 array \[10, 14, 3\], got float32 \[10, 14, 3\]"):
        translator.run(picture, out=np.zeros(OUT, np.float32))
    fixed = np.zeros(OUT, np.uint8)
    fixed.flags.writeable = False
    with pytest.raises(InputError, match="out is read-only"):
        translator.run(picture, out=fixed)
    with pytest.raises(InputError, match="out= takes the results of NumPy arrays only"):
        translator.run(Image.fromarray(picture), out=np.zeros(OUT, np.uint8))


# Codes.


def test_encode_and_generate_together_are_run(translator):
    pictures = batch_of(3, 3)
    codes = translator.encode(pictures)
    assert (codes.shape, codes.dtype) == ((3, L, D), np.float32)
    np.testing.assert_array_equal(translator.encode(pictures[0]), codes[0])
    np.testing.assert_array_equal(translator.generate(codes), translator.run(pictures))
    np.testing.assert_array_equal(translator.generate(codes[0]), translator.run(pictures[0]))


def test_a_sample_is_the_mapped_noise_of_its_seed(translator):
    z = np.random.default_rng(7).standard_normal(D, dtype=np.float32)
    np.testing.assert_array_equal(translator.sample(7), np.tile(tiny_engine.map_z(z), (L, 1)))


@pytest.mark.parametrize("shape", [(L, D + 1), (L - 1, D), (D,), (2, 2, L, D), (0, L, D)])
def test_codes_of_the_wrong_shape_name_the_right_one(translator, shape):
    with pytest.raises(InputError, match=r"\[6, 8\] or \[N, 6, 8\]|\[L, D\] or \[N, L, D\]"):
        translator.generate(np.zeros(shape, np.float32))


def test_codes_with_nan_or_of_whole_numbers_are_refused(translator):
    with pytest.raises(InputError, match="the code holds NaN"):
        translator.generate(np.full((L, D), np.nan, np.float32))
    with pytest.raises(InputError, match="the code holds NaN, infinity"):
        translator.generate(np.full((L, D), 1e39))  # which float32 cannot hold
    with pytest.raises(InputError, match="the code has dtype int64; expected float32"):
        translator.generate(np.zeros((L, D), np.int64))


def test_codes_of_other_float_types_are_converted(translator):
    codes = translator.sample(1)
    np.testing.assert_array_equal(translator.generate(codes.astype(np.float64)), translator.generate(codes))


def test_an_engine_without_an_encoder_still_samples_and_generates(open_translator, picture):
    translator = open_translator(None)
    assert translator.generate(translator.sample(1)).shape == OUT
    for call in (translator.run, translator.encode, translator.stream):
        name = call.__name__
        with pytest.raises(
            InputError, match=rf"{name}\(\) needs an encoder.*sample\(\) and generate\(\) still work"
        ):
            call(picture)


# Styles.


def test_several_styles_cost_one_encode_one_mapping_and_one_batch(translator, picture, monkeypatch):
    calls = Calls(translator, monkeypatch)
    found = translator.run(picture, style=StyleMix.random([1, 2, 3, 4], layers="4-"))
    assert calls.made == [("map", 4), ("encode", 1), ("generate", 4)]
    assert found.shape == (4, *OUT)
    alone = translator.run(picture, style=StyleMix.random(3, layers="4-"))
    np.testing.assert_array_equal(found[2], alone)


def test_several_pictures_and_styles_give_each_pair(translator):
    pictures, style = batch_of(2, 3), StyleMix.random([1, 2, 3], layers="2-4", alpha=0.5)
    found = translator.run(pictures, style=style)
    assert found.shape == (2, 3, *OUT)
    for picture, results in zip(pictures, found, strict=True):
        np.testing.assert_array_equal(translator.run(picture, style=style), results)


def test_several_styles_of_a_list_give_lists(translator, picture):
    image, style = Image.fromarray(picture), StyleMix.random([1, 2], layers="4-")
    one = translator.run(image, style=style)
    assert [type(result) for result in one] == [Image.Image, Image.Image]
    several = translator.run([image, image, picture], style=style)
    np.testing.assert_array_equal(np.asarray(several[1][1]), np.asarray(one[1]))
    assert several[2].shape == (2, *OUT)


def test_one_reference_serves_a_whole_batch(translator):
    found = translator.run(batch_of(3, 3), style=StyleMix(translator.sample(1)))
    np.testing.assert_array_equal(found, np.stack([translator.generate(translator.sample(1))] * 3))


def test_a_large_batch_goes_through_in_parts(engine_paths, backend, monkeypatch):
    pictures = batch_of(5, 3)
    with Translator(
        engine_paths["rgb"], device="cpu", backend=backend, color="rgb", max_batch=2
    ) as translator:
        calls = Calls(translator, monkeypatch)
        np.testing.assert_array_equal(translator.run(pictures), expected(pictures))
        assert calls.made == [(name, count) for count in (2, 2, 1) for name in ("encode", "generate")]


@pytest.mark.parametrize(
    ("pictures", "styles", "generated"), [(3, 2, [4, 2]), (2, 3, [3, 3]), (1, 6, [4, 2]), (2, 5, [4, 4, 2])]
)
def test_the_generators_batch_is_bounded_also_with_several_styles(
    engine_paths, backend, monkeypatch, pictures, styles, generated
):
    given, style = batch_of(pictures, 3), StyleMix.random(list(range(styles)), layers="2-")
    with Translator(
        engine_paths["rgb"], device="cpu", backend=backend, color="rgb", max_batch=4
    ) as translator:
        calls = Calls(translator, monkeypatch)
        found = translator.run(given, style=style)
        assert [count for name, count in calls.made if name == "generate"] == generated
        assert sum(count for name, count in calls.made if name == "encode") == pictures  # each one once
        for picture, results in zip(given, found, strict=True):
            for seed, result in enumerate(results):
                alone = translator.run(picture, style=StyleMix.random(seed, layers="2-"))
                np.testing.assert_array_equal(result, alone)


def test_a_style_that_does_not_fit_is_refused_before_the_encoder_runs(translator, picture, monkeypatch):
    calls = Calls(translator, monkeypatch)
    with pytest.raises(InputError, match="go beyond this model's 6 layers"):
        translator.run(picture, style=StyleMix.random([1]))
    assert calls.made == []


# Streams.


def test_a_stream_gives_the_results_in_order(translator):
    pictures = batch_of(7, 3)
    for in_flight in (1, 2, 5, 100):
        found = list(translator.stream(iter(pictures), in_flight=in_flight))
        np.testing.assert_array_equal(np.stack(found), expected(pictures))


def test_a_stream_takes_no_more_frames_than_it_may(translator, picture):
    taken = []

    def frames():
        for index in range(100):
            taken.append(index)
            yield picture

    stream = translator.stream(frames(), in_flight=3)
    assert taken == []
    for results in range(1, 5):
        next(stream)
        assert len(taken) == results + 2
    stream.close()


def test_a_stream_of_1_adds_no_delay(translator, picture):
    stream = translator.stream((picture for _ in iter(int, 1)), in_flight=1)
    assert next(stream).shape == OUT
    stream.close()


def test_the_error_of_a_frame_is_raised_in_its_place(translator, picture):
    stream = translator.stream([picture, picture, "no.png", picture], in_flight=4)
    assert next(stream).shape == next(stream).shape == OUT
    with pytest.raises(InputError, match=r"no\.png cannot be read"):
        next(stream)


def test_an_error_of_the_source_comes_after_the_frames_before_it(translator, picture):
    def camera():
        yield picture
        yield picture
        raise OSError("unplugged")

    stream = translator.stream(camera(), in_flight=8)
    assert next(stream).shape == next(stream).shape == OUT
    with pytest.raises(OSError, match="unplugged"):
        next(stream)


def test_a_stream_can_skip_frames_that_fail(translator, picture, caplog):
    frames = [picture, "no.png", picture, np.zeros((2, 2), np.float64), 255 - picture]
    found = list(translator.stream(frames, on_error="skip"))
    assert len(found) == 3
    np.testing.assert_array_equal(found[2], translator.run(255 - picture))
    assert_says(caplog.text, "no.png", "left out")


def test_a_stream_that_skips_still_raises_errors_of_its_source_and_bugs(translator, picture):
    def camera():
        yield picture
        raise InputError("the camera is gone")

    stream = translator.stream(camera(), on_error="skip")
    next(stream)
    with pytest.raises(InputError, match="the camera is gone"):
        next(stream)
    with pytest.raises(InputError, match="on_error"):
        translator.stream([picture], on_error="ignore")
    other = translator.clone()
    other.close()
    with pytest.raises(PspError, match="closed"):
        list(other.stream([picture], on_error="skip"))


def test_a_stream_starts_what_is_on_a_gpu_in_the_callers_thread(translator, picture, monkeypatch):
    """There, the streams that PyTorch and CuPy call current are those of the caller."""
    on_gpu, real, ran_in = picture[::-1].copy(), translator.run, []

    def run(frame, **options):
        ran_in.append(threading.current_thread() is threading.main_thread())
        return real(frame if isinstance(frame, str) else frame.copy(), **options)

    monkeypatch.setattr("psp_rt.translator.is_device_array", lambda frame: frame is on_gpu)
    monkeypatch.setattr(translator, "run", run)
    for in_flight in (1, 2):
        ran_in.clear()
        frames = [on_gpu, picture, on_gpu]
        found = list(translator.stream(iter(frames), in_flight=in_flight))
        np.testing.assert_array_equal(np.stack(found), expected(np.stack(frames)))
        assert sorted(ran_in) == [False, True, True]
    with pytest.raises(InputError):
        list(translator.stream(iter([on_gpu, "no.png", on_gpu])))


def test_a_stream_left_early_leaves_no_thread_behind(translator, picture):
    for _ in translator.stream([picture] * 50, in_flight=4):
        break
    assert not [thread for thread in threading.enumerate() if "psp_rt" in thread.name]
    assert translator.run(picture).shape == OUT


def test_a_stream_maps_its_seeds_once(translator, monkeypatch):
    calls = Calls(translator, monkeypatch)
    style = StyleMix.random([1, 2], layers="4-")
    found = list(translator.stream(batch_of(3, 3), style=style))
    assert [name for name, _ in calls.made] == ["map"] + ["encode", "generate"] * 3
    np.testing.assert_array_equal(found, translator.run(batch_of(3, 3), style=style))


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, "2"])
def test_in_flight_must_be_a_count(translator, in_flight):
    with pytest.raises(InputError, match="expected 1 or more"):
        translator.stream([], in_flight=in_flight)


# Threads and lifetime.


def test_bare_sessions_run_the_same_graphs(translator, picture):
    assert translator.bare("encoder") is translator.bare("encoder")
    if translator.backend == "onnxruntime":
        (codes,) = translator.bare("encoder").run(None, {"image": picture[None]})
    else:
        codes = translator.bare("encoder").infer({"image": picture[None]}, share_inputs=True)[0]
    np.testing.assert_array_equal(codes, tiny_engine.encode(picture[None]))


def test_an_array_that_changes_in_a_style_is_noticed(translator, picture):
    reference = np.zeros((translator.manifest.num_styles, translator.manifest.style_dim), np.float32)
    style = StyleMix(reference)
    for value in (0, 1, 1, 2):
        reference[:] = value
        np.testing.assert_array_equal(translator.run(picture, style=style), translator.generate(reference))


def test_threads_take_turns(translator, monkeypatch):
    inside, most, encode = [], [], translator._turns._backend.encode

    def slow(images):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)
        inside.pop()
        return encode(images)

    monkeypatch.setattr(translator._turns._backend, "encode", slow)
    pictures, found = batch_of(8, 3), {}
    threads = [
        threading.Thread(target=lambda at=at: found.update({at: translator.run(pictures[at])}))
        for at in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[at] for at in range(8)], expected(pictures))
    assert max(most) == 1


def test_a_clone_runs_beside_the_first(engine_paths, backend, picture, monkeypatch):
    first = Translator(engine_paths["rgb"], device="cpu", backend=backend, color="rgb")
    with first, first.clone() as second:
        meeting = threading.Barrier(2, timeout=5)
        for translator in (first, second):
            run_graph = translator._turns._backend.encode
            monkeypatch.setattr(
                translator._turns._backend,
                "encode",
                lambda images, run=run_graph: (meeting.wait(), run(images))[1],
            )
        found = []
        thread = threading.Thread(target=lambda: found.append(first.run(picture)))
        thread.start()
        found.append(second.run(picture))  # would break the barrier if the two took turns
        thread.join()
        np.testing.assert_array_equal(found[0], found[1])


def test_closing_one_clone_leaves_the_other(engine_paths, backend, picture):
    first = Translator(engine_paths["rgb"], device="cpu", backend=backend)
    second = first.clone()
    first.close()
    assert second.run(picture).shape == OUT
    second.close()


def test_closing_twice_is_allowed_and_using_a_closed_one_is_an_error(engine_paths, backend, picture):
    with Translator(engine_paths["rgb"], device="cpu", backend=backend) as translator:
        pass
    translator.close()
    for call in (lambda: translator.run(picture), lambda: translator.sample(1), translator.clone):
        with pytest.raises(PspError, match="this translator is closed; open the engine again"):
            call()


def test_a_failing_graph_is_a_backend_error(translator, picture, monkeypatch):
    class Broken:
        def run(self, names, feeds):
            raise RuntimeError("out of memory")

        def infer(self, feeds, **settings):
            raise RuntimeError("out of memory")

    runners = "_sessions" if translator.backend == "onnxruntime" else "_requests"
    monkeypatch.setitem(getattr(translator._turns._backend, runners), "encoder", Broken())
    with pytest.raises(BackendError, match=r"(ONNX Runtime|OpenVINO) failed in the encoder on cpu: out of"):
        translator.run(picture)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"color": "hsv"}, r"color is 'hsv'; expected 'bgr' \(OpenCV\) or 'rgb'"),
        ({"threads": 0}, "threads is 0; expected 1 to 1024, or None"),
        ({"threads": 10**6}, "threads is 1000000; expected 1 to 1024"),
        ({"max_batch": 0}, "max_batch is 0; expected 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(engine_paths, settings, reason):
    with pytest.raises(InputError, match=reason):
        Translator(engine_paths["rgb"], **settings)


# What it says of itself.


def test_the_manifest_is_at_hand(translator):
    assert translator.manifest.task == "test"
    assert translator.manifest.output == psp_rt.ImageSize(height=OUT_HEIGHT, width=OUT_WIDTH)
    assert isinstance(translator.manifest.members["encoder.onnx"].sha256, str)


def test_an_engine_may_be_given_as_text(engine_paths):
    with Translator(str(engine_paths["rgb"]), device="cpu") as translator:
        assert translator.sample(1).shape == (L, D)
    assert isinstance(engine_paths["rgb"], Path)


@pytest.mark.parametrize("style", ["8-18", 3])
def test_a_style_of_another_type_is_a_message(translator, style):
    with pytest.raises(InputError, match=rf"style is {style!r}; expected a StyleMix, such as"):
        translator.run(np.zeros((8, 8, 3), np.uint8), style=style)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64)])
def test_channels_first_is_refused_and_never_taken_for_a_batch(translator, shape):
    with pytest.raises(InputError, match=r"channels first, or a batch of gray ones; pass image\.transpose"):
        translator.run(np.zeros(shape, np.uint8))


def test_a_translator_says_what_it_runs_on_and_why(engine_paths, backend):
    with Translator(engine_paths["rgb"], device="cpu", backend=backend) as translator:
        assert translator.runs_on.startswith("cpu, ")
        assert "asked for" in translator.runs_on
        assert translator.runs_on in repr(translator)


@pytest.mark.parametrize("one", ["drawing.png", np.zeros((9, 9, 3), np.uint8), Image.new("RGB", (9, 9))])
def test_a_stream_of_one_picture_is_refused_before_any_work(translator, one):
    with pytest.raises(InputError, match=r"stream\(\) takes many pictures, .* use run\(\) for one"):
        translator.stream(one)
