"""The page in a headless Chromium: what is drawn, dropped and set changes the picture."""

import base64
import io
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks.measure import browser as browsers

pytest.importorskip("starlette", reason="needs the extra serve")
if browsers.missing():
    pytest.skip(f"needs a browser: {browsers.missing()}", allow_module_level=True)

from psp_rt import Translator
from tests.models import tiny_engine
from tests.models.running import Running

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::psp_rt.InputWarning")]  # 18 s of CPU

RESULT = """
const image = document.getElementById("result");
if (!image.src || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL();
"""


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    kinds = {"photos": "rgb", "drawings": "gray", "maps": "labels", "seeds": None}
    return {name: tiny_engine.build(folder / f"{name}.engine", kind) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def server(engines):
    running = Running(engines)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def driver():
    with browsers.opened() as found:
        yield found


class Page:
    def __init__(self, driver):
        self.driver = driver

    def element(self, name):
        return self.driver.find_element("id", name)

    def click(self, name):
        self.driver.execute_script("arguments[0].click()", self.element(name))

    def set(self, name, value):
        script = "arguments[0].value = arguments[1]; for (const kind of ['input', 'change']) "
        script += "arguments[0].dispatchEvent(new Event(kind, {bubbles: true}))"
        self.driver.execute_script(script, self.element(name), str(value))

    def result(self):
        data = self.driver.execute_script(RESULT)
        return None if data is None else pixels_of(data)

    def until(self, said, condition):
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"never {said}; the status is {self.element('status').text!r}")

    def until_result(self, wanted):
        def found():
            result = self.result()
            return result is not None and result.shape == wanted.shape and np.array_equal(result, wanted)

        self.until("the expected picture", found)

    def until_other(self, than):
        self.until("another picture", lambda: (now := self.result()) is not None and differs(now, than))
        self.until("idle", lambda: self.element("result").get_attribute("aria-busy") == "false")
        time.sleep(0.1)  # in which the browser decodes the last picture
        return self.result()

    def canvas(self):
        return pixels_of(self.driver.execute_script("return document.getElementById('canvas').toDataURL()"))


def pixels_of(url):
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(picture.convert("RGB"))


def differs(one, other):
    return other is None or one.shape != other.shape or not np.array_equal(one, other)


@pytest.fixture
def open_page(server, driver):
    def opened(engine):
        driver.get(f"{server.address}/")
        page = Page(driver)
        page.until("an engine", lambda: page.element("about").text)
        page.set("engine", engine)
        return page

    yield opened
    errors = [
        entry
        for entry in driver.get_log("browser")
        if not any(known in entry["message"] for known in ("ERR_CONNECTION_REFUSED", "status of 422"))
    ]
    assert errors == []


def wide(page, *lines):
    """Draw thick lines: the tiny encoder looks at few pixels."""
    page.set("width", 24)
    for height in lines:
        browsers.stroke(page.driver, [(20, height), (490, height)])


def test_a_stroke_changes_the_picture_and_undo_brings_it_back(open_page):
    page = open_page("drawings")
    assert page.element("hint").is_displayed()
    wide(page, *range(100, 220, 20))
    first = page.until_other(None)
    assert not page.element("hint").is_displayed()
    wide(page, *range(220, 420, 20))
    page.until_other(first)
    for _ in range(10):
        page.click("undo")
    page.until_result(first)
    page.click("mirror")
    page.click("clear")
    assert page.element("hint").is_displayed()


def test_the_picture_is_the_translators_of_what_is_drawn(open_page, engines):
    page = open_page("drawings")
    wide(page, *range(100, 400, 20))
    page.until_other(None)
    drawn = page.canvas()[:, :, 0]
    with Translator(engines["drawings"], device="cpu", backend="onnxruntime", color="rgb") as translator:
        page.until_result(translator.run(drawn))


def test_the_keyboard_draws_and_shows_its_pen(open_page):
    page = open_page("drawings")
    page.set("width", 24)
    before = page.canvas()
    page.element("canvas").send_keys(" ", *["\ue014"] * 6, *["\ue015"] * 6, " ")  # to the right, down
    assert page.element("cursor").is_displayed()
    assert differs(page.canvas(), before)
    page.until("a picture", lambda: page.result() is not None)


def test_a_dropped_photo_is_sent_as_it_is(open_page, engines, tmp_path):
    page = open_page("photos")
    pixels = np.random.default_rng(3).integers(0, 256, (37, 53, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    page.element("file").send_keys(str(tmp_path / "photo.png"))
    with Translator(engines["photos"], device="cpu", backend="onnxruntime", color="rgb") as translator:
        page.until_result(np.asarray(translator.run(tmp_path / "photo.png")))
    assert page.canvas().std() > 10  # and it is shown


def test_a_format_that_browsers_cannot_show_is_sent_all_the_same(open_page, engines, tmp_path):
    page = open_page("photos")
    pixels = np.random.default_rng(4).integers(0, 256, (16, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.tiff")
    page.element("file").send_keys(str(tmp_path / "scan.tiff"))
    with Translator(engines["photos"], device="cpu", backend="onnxruntime", color="rgb") as translator:
        page.until_result(translator.run(pixels))
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.element("file").send_keys(str(tmp_path / "none.png"))
    page.until("an error", lambda: "error" in page.element("status").get_attribute("class"))


def test_painted_labels_are_exact_ids(open_page, engines):
    page = open_page("maps")
    buttons = page.element("palette").find_elements("css selector", "button")
    assert [button.text for button in buttons] == [str(label) for label in range(tiny_engine.LABELS)]
    page.set("width", 24)
    for number, button in enumerate(buttons[1:]):
        button.click()
        browsers.stroke(page.driver, [(30, 60 + 90 * number), (480, 100 + 90 * number)])
    canvas = page.canvas()
    assert len(np.unique(canvas.reshape(-1, 3), axis=0)) == tiny_engine.LABELS  # no blends at the edges
    order = [canvas[int(60 + 90 * n + 20), 255] for n in range(len(buttons) - 1)]
    ids = np.zeros((512, 512), np.uint8)
    for label, color in enumerate(order, start=1):
        ids[(canvas == color).all(axis=2)] = label
    with Translator(engines["maps"], device="cpu", backend="onnxruntime", color="rgb") as translator:
        page.until_result(translator.run(ids))


def test_sliders_variants_and_history_change_the_picture(open_page):
    page = open_page("drawings")
    wide(page, *range(100, 400, 20))
    plain = page.until_other(None)
    page.set("layers", "all")
    page.set("seed", 5)
    mixed = page.until_other(plain)
    page.set("alpha", 0.5)
    halved = page.until_other(mixed)
    page.set("truncation", 0.3)
    page.until_other(halved)
    page.click("variants")
    grid = page.element("grid")
    page.until("8 variants", lambda: len(grid.find_elements("css selector", "img")) == 8)
    before = page.element("seed").get_attribute("value")
    page.driver.execute_script("arguments[0].querySelector('button').click()", grid)
    assert page.element("seed").get_attribute("value") != before
    history = page.element("history").find_elements("css selector", "button")
    assert len(history) == 15
    drawn = page.canvas()
    page.click("clear")
    page.driver.execute_script("arguments[0].click()", history[0])
    assert not differs(page.canvas(), drawn)


def test_a_second_picture_is_mixed_in_and_walked_to(open_page, tmp_path):
    page = open_page("photos")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    page.element("file").send_keys(str(tmp_path / "0.png"))
    alone = page.until_other(None)
    page.set("layers", "all")
    page.element("second").send_keys(str(tmp_path / "1.png"))
    page.until_other(alone)
    page.click("between")
    grid = page.element("grid")
    page.until("7 steps", lambda: len(grid.find_elements("css selector", "img")) == 7)
    page.click("forget")
    page.until_result(alone)


def test_an_engine_without_an_encoder_follows_the_seed(open_page, engines):
    page = open_page("seeds")
    with Translator(engines["seeds"], device="cpu", backend="onnxruntime", color="rgb") as translator:
        page.until_result(translator.generate(translator.sample(0)))
        page.set("seed", 7)
        page.until_result(translator.generate(translator.sample(7)))


def test_a_server_that_went_away_is_said_and_asked_again(open_page, server):
    page = open_page("drawings")
    wide(page, *range(100, 220, 20))
    first = page.until_other(None)
    server.stop()
    try:
        wide(page, *range(220, 420, 20))
        page.until("an error", lambda: "not answer" in page.element("status").text)
    finally:
        server.start()
    page.until_other(first)
    assert "error" not in page.element("status").get_attribute("class")
