"""The Embedding Projector shows what write_projector wrote: TensorBoard serves it, and a real browser finds an airport.

Each test skips, with the reason, where TensorBoard or a browser is not installed.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Pair
from PIL import Image  # matplotlib brings it

README = (ROOT / "README.md").read_text(encoding="utf-8")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --window-size=1400,900"
)
FIND_DEEP = """
    const found = [], visit = root => {
        for (const element of root.querySelectorAll('*')) {
            if (element.matches(arguments[0])) found.push(element);
            if (element.shadowRoot) visit(element.shadowRoot);
        }
    };
    visit(document);
    return found;
"""  # elements by CSS selector, inside the shadow roots of the page's components too


def wait_for(question, seconds, what):
    """Return the first answer of question() that is true; fail the test if there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = question()
        if answer:
            return answer
        time.sleep(0.3)
    pytest.fail(f"waited {seconds} s in vain for {what}")


@pytest.fixture(scope="module")
def airports():
    """Return a vocabulary of airports and vectors for them: their coordinates, and six columns of noise."""
    places = pd.read_csv(ROOT / "data/airports.csv", keep_default_na=False)
    vocabulary = pd.DataFrame({"category": ["<unknown>", *places["faa"]], "count": range(len(places) + 1)})
    weights = np.zeros((len(vocabulary), 8), "float32")
    weights[1:, :2] = places[["lon", "lat"]]
    weights[:, 2:] = np.random.default_rng(0).normal(size=(len(vocabulary), 6))
    return weights, vocabulary


@pytest.fixture(scope="module")
def server(airports, tmp_path_factory):
    """Start TensorBoard, as the README starts it, on a folder that write_projector wrote; return its address."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (tests/requirements.txt)")
    folder = tmp_path_factory.mktemp("projector")
    odd = pd.DataFrame({"category": ["<unknown>", "a\tb\nc", "", '"quoted"', "São Paulo 🛫"], "count": [0, 4, 3, 2, 1]})
    weights, vocabulary = airports
    vocabularies, stems = {"dest": vocabulary, "odd/name": odd}, {"dest": "dest", "odd/name": "odd%2Fname"}
    write_projector = Pair(folder).base.write_projector
    (folder / "embeddings").mkdir()
    write_projector(folder / "embeddings", [weights, np.eye(5, dtype="float32")], vocabularies, stems)
    command = shlex.split(re.search(r"^\.venv/bin/tensorboard (.*)$", README, re.MULTILINE)[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(folder / "log", "w")
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=folder, stdout=log, stderr=log,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(address, timeout=5).status == 200

    try:
        wait_for(answers, 120, "TensorBoard")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def fetch(server, route):
    with urllib.request.urlopen(f"{server}/data/plugin/projector/{route}", timeout=30) as answer:
        return answer.read()


def test_tensorboard_serves_vectors_and_labels(server, airports):
    weights, vocabulary = airports
    (run,) = json.loads(fetch(server, "runs"))
    tensors = json.loads(fetch(server, f"info?run={run}"))["embeddings"]
    assert {tensor["tensorName"]: tensor["tensorShape"] for tensor in tensors} == {"dest": [104, 8], "odd/name": [5, 5]}
    served = np.frombuffer(fetch(server, f"tensor?run={run}&name=dest"), "float32").reshape(weights.shape)
    np.testing.assert_allclose(served, weights, rtol=1e-4)
    labels = fetch(server, f"metadata?run={run}&name=dest").decode().splitlines()
    assert labels == ["category\tcount", *(f"{category}\t{count}" for category, count in vocabulary.to_numpy())]
    odd = fetch(server, f"metadata?run={run}&name=odd%2Fname").decode().splitlines()
    assert odd == ["category\tcount", "<unknown>\t0", "a b c\t4", "(empty)\t3", '"quoted"\t2', "São Paulo 🛫\t1"]


@pytest.fixture
def browser(tmp_path):
    """Return a headless Chromium with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (tests/requirements.txt)")
    if not (BROWSER and DRIVER):
        pytest.skip("no Chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in [*SWITCHES.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(switch)
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield chromium
    chromium.quit()


def test_browser_shows_the_points_and_finds_an_airport(server, airports, browser, tmp_path):
    browser.get(f"{server}/#projector")

    def find(selector):
        return browser.execute_script(FIND_DEEP, selector)

    def text(selector):
        return "|".join(" ".join((element.get_property("innerText") or "").split()) for element in find(selector))

    for _ in range(2):  # the page holds the plug-in's page, which holds the projector's
        browser.switch_to.frame(wait_for(lambda: find("iframe"), 60, "the projector")[0])
    wait_for(lambda: (text(".numDataPoints"), text(".dim")) == ("104", "8"), 60, "104 points of 8 numbers")
    wait_for(lambda: bluish_pixels(browser) > 1000, 60, "points on the screen")

    (field,) = [box for box in find("input") if inside(browser, box, "search-box")]
    field.send_keys("ATL")
    card = wait_for(lambda: text(".metadata-value"), 30, "what the search finds")
    row = int(np.flatnonzero(airports[1]["category"] == "ATL")[0])
    assert card == f"ATL|{row}"  # the category and its count
    directions = airports[0] / np.linalg.norm(airports[0], axis=1, keepdims=True)
    nearest = airports[1]["category"][np.argsort(-(directions @ directions[row]))[1]]
    assert text(".nn-list .label").split("|")[0] == nearest
    browser.save_screenshot(str(tmp_path / "projector.png"))


def bluish_pixels(browser):
    """Return how many pixels of the window have the blue of the projector's points."""
    red, green, blue = np.array(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"), "int").transpose(2, 0, 1)
    return int(((blue > 180) & (red < 150) & (green < 150)).sum())


def inside(browser, element, host):
    """Tell whether an element is in the shadow root of the component with the id host."""
    return browser.execute_script(
        "let e = arguments[0]; while (e && e.id !== arguments[1]) e = e.parentNode || e.host; return !!e;", element, host
    )
