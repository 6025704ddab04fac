"""app/: the page in a real browser, by clicks and uploads; and what is answered to requests that no page sends."""

import contextlib
import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("gradio", reason="the web page needs gradio: pip install '.[demo]'")

from broken_pictures import picture_bomb
from pix2seq_hf.app import server
from pix2seq_hf.app.limits import Limits
from tiny_model import noise_picture
from tiny_multitask import multitask_model, multitask_processor

LIMITS = Limits(max_megabytes=1, max_megapixels=2, max_files=3, max_waiting=4)


@pytest.fixture(scope="module")
def model():
    model = multitask_model()
    with torch.no_grad():  # scores above the page's threshold
        for label in (1, 18):
            model.lm_head.bias[model.config.base_vocab_shift + label] = 14.0
    return model


@pytest.fixture(scope="module")
def site(model):
    """The address of a page that is served while the tests of this file run."""
    with server.serve(model, multitask_processor(model.config), LIMITS, title="tiny <b>model") as address:
        yield address.rstrip("/")


@pytest.fixture
def slow(model):
    """Makes every token take some time."""
    hook = model.model.decoder.register_forward_pre_hook(lambda *_: time.sleep(0.03))
    yield
    hook.remove()


@pytest.fixture
def held(model):
    """Lets the model wait before its next token until this is set."""
    event = threading.Event()
    hook = model.model.decoder.register_forward_pre_hook(lambda *_: event.wait(60) and None)
    yield event
    event.set()
    hook.remove()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A good picture, a broken one, a bomb, and a file that is too long."""
    folder = tmp_path_factory.mktemp("pictures")
    noise_picture(60, 100).save(folder / "good.png")
    noise_picture(80, 60, seed=1).save(folder / "other.png")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:2000])
    (folder / "bomb.png").write_bytes(picture_bomb())
    (folder / "long.png").write_bytes((folder / "good.png").read_bytes() + bytes(1_500_000))
    return folder


def request(url, content=None):
    """Status and body of what the server answers."""
    data = None if content is None else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"content-type": "application/json"})) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def temporary_files(site):
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_no_file_outside_of_the_folder_is_served(site, tmp_path):
    (tmp_path / "private.txt").write_text("secret")
    folder = os.environ["GRADIO_TEMP_DIR"]
    example = f"{folder}/examples/scene-3.png"
    assert request(f"{site}/gradio_api/file={example}")[0] == 200
    outside = ("/etc/passwd", tmp_path / "private.txt", Path("README.md").resolve(), f"{folder}/../../etc/passwd")
    for path in (*outside, f"{folder}/examples/..%2f..%2f..%2f..%2fetc/passwd", "README.md", folder):
        status, body = request(f"{site}/gradio_api/file={path}")
        assert status in (403, 404) and b"secret" not in body and b"root:" not in body, path


def join_queue(site, path, visitor):
    """Ask for the objects in a file of the server as the page does; return the status."""
    dependencies = json.loads(request(f"{site}/config")[1])["dependencies"]
    [index] = [entry["id"] for entry in dependencies if entry["api_name"] == "look_once"]
    file = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    content = {"data": [file, ["object_detection"], 0.3, [], 2], "fn_index": index, "session_hash": visitor}
    return request(f"{site}/gradio_api/queue/join", content)[0]


def test_no_file_outside_of_the_folder_is_looked_at(site, pictures):
    assert join_queue(site, "http://127.0.0.1:1/a.png", "somebody") == 400
    assert join_queue(site, str(pictures / "good.png"), "somebody") == 200  # it waits, and then it fails
    with urllib.request.urlopen(f"{site}/gradio_api/queue/data?session_hash=somebody") as stream:
        events = [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]
    [end] = [event for event in events if event["msg"] == "process_completed"]
    assert not end["success"] and not any("good" in name for name in temporary_files(site))


def test_a_port_that_is_taken(site, model):
    port = int(site.rpartition(":")[2])
    before = os.environ["GRADIO_TEMP_DIR"]
    with (
        pytest.raises(OSError, match=rf"127.0.0.1: port {port} is taken, .*; choose another --port or --host"),
        server.serve(model, multitask_processor(model.config), LIMITS, port=port),
    ):
        pass
    assert os.environ["GRADIO_TEMP_DIR"] == before and Path(before).is_dir()


def test_nothing_is_said_to_others(site):
    config = json.loads(request(f"{site}/config")[1])
    assert config["analytics_enabled"] is False and config["footer_links"] == []
    assert request(f"{site}/gradio_api/info")[1] == b'{"named_endpoints":{},"unnamed_endpoints":{}}'


# From here on with a browser.


@contextlib.contextmanager
def open_browser(width=1200, height=1000, downloads=None, scheme="light"):
    """A headless Chromium; skips where there is none."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="the browser tests need selenium: pip install '.[test]'"
    )
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)} if downloads else {})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def window(downloads):
    with open_browser(downloads=downloads) as browser:
        yield browser


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser, site):
        self.browser = browser
        browser.get(site)
        self.wait(lambda: self.find("look"))
        self.wait(lambda: self.find("status").get_attribute("role") == "status")

    def find(self, name):
        return self.browser.find_element("id", name)

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):
                if value := condition():
                    return value
            assert time.monotonic() < end, f"waited in vain; the page says {self.status()!r}"
            time.sleep(0.05)

    def status(self, name="status"):
        return self.find(name).text

    def wait_for(self, text, name="status", seconds=60):
        self.wait(lambda: text in self.status(name), seconds)

    def wait_for_text(self, text):
        self.wait(lambda: text in self.find_body().text)

    def find_body(self):
        return self.browser.find_element("tag name", "body")

    def upload(self, path, name="upload"):
        self.browser.execute_script(f"document.querySelector('#{name} button[aria-label=Clear]')?.click()")
        self.wait(lambda: self.browser.find_element("css selector", f"#{name} input[type=file]")).send_keys(str(path))

    def upload_one(self, path):
        self.upload(path)
        self.wait(lambda: self.browser.find_elements("css selector", "#upload img"))
        time.sleep(0.3)

    def is_enabled(self, name):
        element = self.find(name)
        return element.is_enabled() and "disabled" not in (element.get_attribute("class") or "").split()


@pytest.fixture
def page(window, site):
    return Page(window, site)


def wait_for_file(page, folder, suffix):
    return page.wait(lambda: next(path for path in folder.iterdir() if path.suffix == suffix))


def test_a_good_picture(page, pictures, downloads):
    page.upload_one(pictures / "good.png")
    assert not page.is_enabled("get-json")
    page.find("look").click()
    page.wait_for("Found")
    assert "caption." in page.status()
    assert page.browser.find_elements("css selector", "#drawing img") and "person" in page.find("found").text
    page.wait(lambda: page.is_enabled("get-json"))
    page.find("get-json").click()
    found = json.loads(wait_for_file(page, downloads, ".json").read_text())
    assert (found["width"], found["height"]) == (100, 60) and found["objects"][0]["rle"] and found["captions"]
    page.find("get-picture").click()
    assert wait_for_file(page, downloads, ".png").name == "good-found.png"
    assert page.status().startswith(f"Found {len(found['objects'])} object")


def test_results_go_when_the_visitor_goes(page, site, pictures):
    page.upload_one(pictures / "good.png")
    page.find("look").click()
    page.wait_for("Found")
    assert any(name.startswith("results/") for name in temporary_files(site))
    page.browser.get("about:blank")
    page.wait(lambda: not any(name.startswith("results/") for name in temporary_files(site)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.png", "broken.png: is truncated or damaged"),
        ("bomb.png", "bomb.png: has more than 2,000,000 pixels, the limit"),
    ],
)
def test_bad_pictures_are_said_to_be_so(page, pictures, name, message):
    page.upload_one(pictures / name)
    page.find("look").click()
    page.wait_for(message)
    page.upload_one(pictures / "good.png")  # and it goes on
    page.find("look").click()
    page.wait_for("Found")


def test_a_file_that_is_too_long(page, pictures):
    page.upload(pictures / "long.png")

    page.wait_for_text('File(s) exceed the maximum allowed size of 1.0 Mb: "long.png"')


def test_no_picture(page):
    page.find("look").click()
    page.wait_for("Choose a picture first")


def test_objects_appear_and_stop_stops(page, pictures, slow):
    page.upload_one(pictures / "good.png")
    page.find("look").click()
    page.wait_for("so far")
    assert page.status().startswith("Looking for objects")
    page.find("stop").click()
    page.wait_for("Stopped.")
    assert "until then." in page.status()


def test_the_queue_is_full(page, site, pictures, held):
    page.upload_one(pictures / "good.png")
    example = f"{os.environ['GRADIO_TEMP_DIR']}/examples/scene-3.png"
    answers = [join_queue(site, example, f"visitor {number}") for number in range(8)]
    assert answers.count(200) in (4, 5) and set(answers) == {200, 503}
    page.find("look").click()
    page.wait_for("too many are waiting")
    held.set()
    for _ in range(5):  # until those before have had their turn
        page.find("look").click()
        with contextlib.suppress(AssertionError):
            page.wait_for("Found", seconds=8)
            break
    assert page.status().startswith("Found")


def test_looking_again_begins_anew(page, pictures, slow):
    page.upload_one(pictures / "good.png")
    page.find("look").click()
    page.wait_for("so far")
    page.upload_one(pictures / "other.png")
    page.find("look").click()
    page.wait_for("so far")
    page.find("stop").click()
    page.wait_for("Stopped.")


def test_by_keyboard_alone(page, pictures):
    from selenium.webdriver import ActionChains, Keys

    def press(key):
        ActionChains(page.browser).send_keys(key).perform()

    def tab_to(condition):
        for _ in range(40):
            press(Keys.TAB)
            time.sleep(0.02)
            if condition(page.browser.switch_to.active_element):
                return
        raise AssertionError("cannot be reached with the tabulator key")

    tab_to(lambda element: element.get_attribute("class").startswith("gallery-item"))
    press(Keys.ENTER)
    page.wait(lambda: page.browser.find_elements("css selector", "#upload img"))
    tab_to(lambda element: element.get_attribute("id") == "look")
    press(Keys.ENTER)
    page.wait_for("Found")


def test_many_pictures(page, pictures, downloads):
    next(tab for tab in page.browser.find_elements("css selector", "[role=tab]") if tab.text == "Many pictures").click()
    page.wait(lambda: page.find("look-all").is_displayed())
    page.upload("\n".join(str(pictures / name) for name in ("good.png", "broken.png", "other.png")), "uploads")
    page.wait(lambda: "other" in page.find("uploads").text)
    time.sleep(0.3)
    page.find("look-all").click()
    page.wait_for("2 of 3 pictures done.", "batch-status")
    assert "broken.png: is truncated or damaged" in page.status("batch-status")
    page.wait(lambda: page.is_enabled("get-archive"))
    page.find("get-archive").click()
    with zipfile.ZipFile(wait_for_file(page, downloads, ".zip")) as archive:
        assert {"good.png", "other.png", "results.jsonl", "results.json", "images.json"} <= set(archive.namelist())
        images = json.loads(archive.read("images.json"))["images"]
    assert [image["file_name"] for image in images] == ["good.png", "other.png"]  # and no path of the server


def test_two_at_once(page, site, pictures, slow):
    with open_browser(width=390, height=800) as other:
        second = Page(other, site)
        for visitor, name in ((page, "good.png"), (second, "other.png")):
            visitor.upload_one(pictures / name)
        page.find("look").click()
        page.wait_for("so far")
        second.find("look").click()
        second.wait_for("Waiting for a turn")
        assert page.status().startswith("Looking for objects")
        page.find("stop").click()
        page.wait_for("Stopped.")
        second.wait_for("Looking for")  # it is not the one that was stopped
        second.find("stop").click()
        second.wait_for("Stopped.")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark")])
def test_layout(site, pictures, width, scheme):
    with open_browser(width=width, height=900, scheme=scheme) as browser:
        page = Page(browser, site)
        page.upload_one(pictures / "good.png")
        page.find("look").click()
        page.wait_for("Found")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        tops = [page.find(name).location["y"] for name in ("look", "status", "threshold")]
        assert (tops == sorted(tops)) is (width < 600)
        color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, color.strip("rgba()").split(",")[:3])) < 200) is (scheme == "dark")


def test_nothing_comes_from_elsewhere(site):
    with open_browser() as browser:
        Page(browser, site)
        time.sleep(1)
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    assert len(urls) > 5
    assert {url for url in urls if not url.startswith((site, "data:", "blob:", "chrome:", "about:"))} == set()
