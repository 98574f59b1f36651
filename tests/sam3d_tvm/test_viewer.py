"""The page that shows Gaussians: what is in it, and what headless Chromium, talked to through a pipe, shows of it."""

import base64
import fcntl
import hashlib
import io
import json
import os
import re
import select
import shutil
import signal
import time
import zlib
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm.frames import CAMERA
from sam3d_tvm.splat.cameras import Camera, orbit_box
from sam3d_tvm.splat.files import load_splat, save_splat
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians
from sam3d_tvm.splat.picture import splat_picture
from sam3d_tvm.splat.viewer import DISTANCE, ELEVATION, VIEWS, write_viewer

FOLDER = resources.files("sam3d_tvm") / "data" / "viewer"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SIZE, CAPTION = 400, 40  # pixels: of the window, and at its foot
PATIENCE = 120  # seconds
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
SIGHT = np.array([0, np.cos(np.deg2rad(ELEVATION)), -np.sin(np.deg2rad(ELEVATION))])  # of the first view
POINTS = (-0.4, 0.0, 0.4), (0.4, 0.0, -0.1), -0.4 * SIGHT, 0.4 * SIGHT
COLOURS = RED, BLUE, GREEN, RED  # left above, right below, and green in front of red


class Browser:
    """One window of headless Chromium; what it wants to fetch and complains of is in `events`."""

    def __init__(self, program, profile):
        # The browser reads commands from file 3 and writes answers to file 4, each JSON with a zero behind.
        pipes = [*os.pipe(), *os.pipe()]
        command_end, self._commands, self._answers, answer_end = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipes)
        options = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        options += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking", "about:blank"]
        files = [(os.POSIX_SPAWN_DUP2, command_end, 3), (os.POSIX_SPAWN_DUP2, answer_end, 4)]
        files += [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        self._process = os.posix_spawn(program, [program, *options], os.environ, file_actions=files)
        for end in (*pipes, command_end, answer_end):
            os.close(end)
        self._read, self._number, self._session, self.events = b"", 0, {}, []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(SIZE)

    def close(self):
        try:
            self._session = {}
            self.call("Browser.close")
        finally:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            os.close(self._commands)
            os.close(self._answers)

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], PATIENCE)[0], "the browser does not answer"
            data = os.read(self._answers, 1 << 20)
            assert data, "the browser has ended"
            self._read += data
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)

    def resize(self, size):
        self._size = size
        self.call("Emulation.setDeviceMetricsOverride", width=size, height=size, deviceScaleFactor=1, mobile=False)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + PATIENCE
        while self.evaluate("document.body?.dataset.drawn") != "true":
            assert time.monotonic() < deadline, [self.evaluate("document.body?.innerText"), self.complaints()]
            time.sleep(0.05)

    def screenshot(self):
        """RGB int [size - CAPTION, size, 3] when two frames, in which nothing changed, have passed."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)[: self._size - CAPTION]

    def drag(self, right):
        """Drags to the right by a number of pixels, in parts that the window holds, and waits until the view is at rest."""
        parts = -(-right // (SIZE // 2))
        for part in range(parts):
            way = right * (part + 1) // parts - right * part // parts
            for kind, x in (("mousePressed", 0), ("mouseMoved", way), ("mouseReleased", way)):
                self.call("Input.dispatchMouseEvent", type=kind, x=20 + x, y=100, button="left", buttons=1, clickCount=1)
        self.rest()

    def rest(self):
        """Waits until the view has come to rest."""
        self.evaluate(
            "new Promise((done) => { let n = 80; (function next() { n-- ? requestAnimationFrame(next) : done(1) })() })"
        )

    def complaints(self):
        found = [e for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return found + [e for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]

    def fetched(self):
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is on the PATH")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def blobs(points=POINTS, colours=COLOURS, deviation=0.06):
    count = len(points)
    return Gaussians(
        xyz=np.reshape(points, (count, 3)),
        features_dc=(np.reshape(colours, (count, 3)) - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=np.full(count, 4.0),
        log_scaling=np.log(deviation * np.tile([1, 1, 0.5], (count, 1))),
        quaternion=np.tile([2, 0, 0, 0], (count, 1)),
    )


def first_camera(gaussians) -> Camera:
    return orbit_box(*gaussians.bounds, VIEWS, ELEVATION)[0]


def mean_colour(picture, camera, point):
    right, down = camera.project(np.reshape(point, (1, 3)), SIZE)[0][0].astype(int)
    return picture[down - 2 : down + 3, right - 2 : right + 3].mean((0, 1))


def test_the_browser_shows_the_picture(browser, tmp_path):
    """Colours where they belong, what is nearer in front, as the same view drawn here; nothing is fetched or complained of."""
    gaussians, camera = blobs(), first_camera(blobs())
    write_viewer(tmp_path / "blobs.html", gaussians)
    browser.open(tmp_path / "blobs.html")
    shown = browser.screenshot()
    for point, colour in list(zip(POINTS, COLOURS, strict=True))[:3]:
        assert np.abs(mean_colour(shown, camera, point) - 255 * np.array(colour)).max() < 40
    drawn = np.asarray(splat_picture(gaussians, camera, SIZE), int)[: SIZE - CAPTION]
    assert (drawn != 255).any(2).mean() > 0.05
    # The filters of a pixel differ, and so does where a Gaussian ends.
    assert np.abs(shown - drawn).mean() < 1 and np.abs(shown - drawn).max() < 30
    fetched = [url for url in browser.fetched() if not url.startswith("blob:")]  # workers, whose code is in the page
    assert fetched == [(tmp_path / "blobs.html").as_uri()]
    assert browser.complaints() == []


def test_the_browser_shows_a_scene_upright(browser, tmp_path):
    """In the photo's camera, y up and x to the left: a lamp above a table, and a cup that is left of both."""
    places = {RED: (0, 1, 3), GREEN: (0, -1, 3), BLUE: (0.8, 0, 3)}
    scene = replace(blobs(list(places.values()), list(places), deviation=0.15), frame=CAMERA)
    save_splat(tmp_path / "scene_splat.ply", scene)
    write_viewer(tmp_path / "scene.html", load_splat(tmp_path / "scene_splat.ply"))
    browser.open(tmp_path / "scene.html")
    shown = browser.screenshot()
    (lamp, table, cup) = (np.argwhere(np.abs(shown - 255 * np.array(colour)).max(2) < 60).mean(0) for colour in places)
    assert lamp[0] < cup[0] - 20 and cup[0] < table[0] - 20 and cup[1] < min(lamp[1], table[1]) - 20  # (down, right)


def test_the_picture_fills_a_window_that_changes(browser, tmp_path):
    gaussians = blobs()
    write_viewer(tmp_path / "blobs.html", gaussians)
    browser.open(tmp_path / "blobs.html")
    browser.resize(2 * SIZE)
    try:
        browser.rest()
        shown = browser.screenshot()
    finally:
        browser.resize(SIZE)
    drawn = np.asarray(splat_picture(gaussians, first_camera(gaussians), 2 * SIZE), int)[: 2 * SIZE - CAPTION]
    assert np.abs(shown - drawn).mean() < 1


def test_dragging_turns_the_view(browser, tmp_path):
    """From the other side right is left, and the red that green hid is seen."""
    write_viewer(tmp_path / "blobs.html", blobs())
    browser.open(tmp_path / "blobs.html")
    front = browser.screenshot()
    browser.drag(round(np.pi / 0.003))  # radians a pixel: half a turn
    back, camera = browser.screenshot(), first_camera(blobs())
    turned = Camera(camera.rotation @ np.diag([-1, -1, 1]), camera.position * [-1, -1, 1], camera.focal)
    for point, colour in ((POINTS[0], RED), (POINTS[1], BLUE), (POINTS[3], RED)):
        assert np.abs(mean_colour(back, turned, point) - 255 * np.array(colour)).max() < 40
    assert np.abs(front - back).max() > 200


def test_a_name_is_text(browser, tmp_path):
    name = '<script>alert("1")</script> & {{splat}} \N{SNOWMAN}'
    write_viewer(tmp_path / "a.html", blobs(), name)
    browser.open(tmp_path / "a.html")
    assert browser.evaluate("document.title") == browser.evaluate("document.querySelector('b').textContent") == name
    assert browser.evaluate("document.scripts.length") == 3
    assert "4 Gaussians" in browser.evaluate("document.body.innerText")


def test_no_gaussians_are_a_page_too(browser, tmp_path):
    write_viewer(tmp_path / "none.html", Gaussians.merged([]))
    browser.open(tmp_path / "none.html")
    assert (browser.screenshot() == 255).all() and browser.complaints() == []
    assert "none.html · 0 Gaussians" in browser.evaluate("document.body.innerText")


def test_the_page_needs_nothing_else(tmp_path):
    write_viewer(tmp_path / "a.html", blobs())
    page = (tmp_path / "a.html").read_text("utf-8")
    assert not re.search(r"(src|href|url|action)\s*[=(]\s*[\"']?\s*(https?:)?//", page, re.IGNORECASE)
    assert "default-src 'none'" in page and "connect-src" not in page
    assert page.count("</script>") == 3 and not re.search(r"{{\w+}}", page)
    write_viewer(tmp_path / "a.html", blobs())
    assert (tmp_path / "a.html").read_text("utf-8") == page


def test_the_page_holds_the_gaussians(tmp_path):
    gaussians = blobs()
    write_viewer(tmp_path / "a.html", gaussians)
    packed = re.search(r'<script id="splat" type="text/plain">(.*?)</script>', (tmp_path / "a.html").read_text("utf-8"))[1]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    rows = np.ascontiguousarray(planes.reshape(32, len(gaussians)).T)
    floats = rows[:, :24].copy().view("<f4")
    scale = DISTANCE / np.linalg.norm(first_camera(gaussians).position - np.mean(gaussians.bounds, 0))
    xyz = (gaussians.xyz - np.mean(gaussians.bounds, 0)) * scale
    assert np.allclose(floats[:, :3], xyz[:, [0, 2, 1]] * [1, -1, 1], rtol=2**-15, atol=1e-6)  # the page has y down
    assert np.allclose(floats[:, 3:], gaussians.scaling * scale, rtol=2**-15)
    colours = np.concatenate([gaussians.colors, gaussians.opacity[:, None]], 1)
    assert np.abs(rows[:, 24:28] - 255 * colours).max() <= 0.501
    turned = (rows[:, 28:].astype(float) - 128) / 128
    assert np.abs(turned - [np.sqrt(0.5), np.sqrt(0.5), 0, 0]).max() <= 1 / 128  # as columns: y becomes z


def test_the_library_is_the_one_that_the_notice_says():
    data = (FOLDER / "gsplat.min.js").read_bytes()
    notice, licence = (FOLDER / "NOTICE.md").read_text("utf-8"), (FOLDER / "LICENSE-gsplat").read_text("utf-8")
    assert hashlib.sha256(data).hexdigest() in notice and len(data) < 1_500_000
    assert data.decode().startswith("/*! gsplat 1.2.9") and licence in data.decode() and "gsplat@1.2.9" in notice


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="path: expected a file, given the folder"):
        write_viewer(tmp_path, blobs())
