"""A headless Chromium that draws as a hand does: for measurements and tests of the page.

It needs selenium, and Debian's packages chromium and chromium-driver.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Point = tuple[float, float]

SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars"),
)
# Events as the page gets them from a pen: pressed, moved through the points, lifted.
STROKE = """
const [canvas, points] = arguments;
canvas.setPointerCapture = () => {};
const box = canvas.getBoundingClientRect();
const send = (type, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
  pointerId: 1, bubbles: true, pressure: 0.5, button: 0,
  clientX: box.left + x * box.width / canvas.width, clientY: box.top + y * box.height / canvas.height,
}));
send("pointerdown", points[0]);
for (const point of points) send("pointermove", point);
send("pointerup", points[points.length - 1]);
"""


def missing() -> str:
    """Return what a browser lacks on this machine; nothing if it can be started."""
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        return "selenium is not installed"
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not found (Debian: chromium, chromium-driver)" if lacking else ""


@contextmanager
def opened(*, width: int = 1200, height: int = 1000) -> Iterator[Any]:
    """Open a browser with a profile of its own, and close it in the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="psp_rt-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for switch in (*SWITCHES, f"--window-size={width},{height}", f"--user-data-dir={Path(profile)}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(120)
            yield driver
        finally:
            driver.quit()


def stroke(driver: Any, points: Sequence[Point]) -> None:
    """Draw a line on the page's canvas, in its pixels."""
    driver.execute_script(STROKE, driver.find_element("id", "canvas"), [list(point) for point in points])
