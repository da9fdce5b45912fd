"""look.html shows what look.js holds: a real browser opens it from disk, and a person's steps are taken.

Each test skips, with the reason, where selenium or a browser is not installed.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

PAGE = Path(__file__).resolve().parents[1] / "embeddings/look.html"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --window-size=1200,900"
)
NASTY = ["<img src=x onerror=alert(1)>", "", "two\nlines", "\"quoted\" & 'single'", "</script><b>bold</b>", "مرحبا",
         "x" * 200]  # fmt: skip
MOVES = """
    const done = arguments[0], placeDots = place, placeLabels = labels;
    let placed = 0, labelled = 0;
    place = () => { placed += 1; placeDots(); };
    labels = main => { labelled += 1; return placeLabels(main); };
    zoomIn(3);
    requestAnimationFrame(() => {
        const { scrollLeft, scrollTop } = map;
        for (let i = 0; i < 100; i += 1) map.scrollBy(-3, 2);
        requestAnimationFrame(() => done([placed, labelled, map.scrollLeft - scrollLeft, map.scrollTop - scrollTop]));
    });
"""  # how often dots and labels are placed while the map is zoomed once and moved a hundred times, and how far it moved
PLACES = "dots.map(({ x, y }) => [x - map.scrollLeft, y - map.scrollTop])"  # where in the map each dot lies
CIRCLES = """
    const { left, top } = map.getBoundingClientRect();
    const boxes = [...document.querySelectorAll(".dots circle")].map(circle => circle.getBoundingClientRect());
    return boxes.map(box => [box.x + box.width / 2 - left, box.y + box.height / 2 - top]);
"""  # where in the map the browser has drawn each dot
COLOURS_WANTED = """
    const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    return [...document.querySelectorAll(".dots circle")].map(circle => {
        pen.fillStyle = getComputedStyle(circle).fill;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    });
"""


def column(name, categories, means=True, **settings):
    """Return what look.js says of a column with random places; the nearest are those next in the list."""
    random, count = np.random.default_rng(len(categories)), len(categories)
    return {
        "name": name, "dimensions": 8, "cardinality": count, "layout": "principal components", "share": 0.8,
        "line": 0.5, "categories": categories, "counts": list(range(count + 10, 10, -1)),
        "means": random.normal(100, 20, count).tolist() if means else None,
        "x": random.normal(size=count).tolist(), "y": random.normal(size=count).tolist(),
        "near": [[(i + step) % count for step in (1, 2, 3, 4, 5)] for i in range(count)], **settings,
    }  # fmt: skip


AIRPORTS = ["ORD", "XATL", "ATLX", "ATL", *(f"A{i:02}" for i in range(40))]
FIRST = {
    "task": "regression", "target": "air_time", "rows": [800, 100, 100], "colour": "mean air_time",
    "columns": [column("dest", AIRPORTS), column("street", NASTY),
                column("plane", [f"N{i}" for i in range(1000)], cardinality=3996, layout="t-SNE"),
                column("job", [f"job {i}" for i in range(30)], line=0.97) | {"means": [float(7 * i % 30) for i in range(30)]}],
    "training": [{"script": "build_embeddings.py", "figure": "RMSE", "errors": [10.3, 9.7, 9.4], "kept": [2, 3], "least": 9.3}],
}  # fmt: skip
MODELS = ["mean of the training rows", "gradient boosting (scikit-learn)", "embeddings + numerical columns"]
BOTH = FIRST | {
    "report": {
        "figures": {model: {"RMSE": rmse, "R²": 0.5} for model, rmse in zip(MODELS, (112660.4, 7206.2, 6643.9))},
        "intervals": {model: [rmse * 0.97, rmse * 1.03] for model, rmse in zip(MODELS, (112660.4, 7206.2, 6643.9))},
        "verdict": "The error is 8 % lower than that of gradient boosting.",
    },
    "worth": [{"column": f"column {-rise}", "figure": 6643.9 + rise, "rise": rise} for rise in range(500, -20, -20)],
    "answers": {"predicted": [40.0, 100.0, 300.0], "actual": [50.0, 90.0, 310.0]},
}  # fmt: skip
CLASSES = BOTH | {
    "task": "multiclass", "target": "kind", "colour": None, "columns": [column("soil", AIRPORTS, means=False, near=[])],
    "answers": {"calibration": [[0.1, 0.12, 50], [0.5, 0.4, 20], [0.9, 0.93, 30]], "roc": [[0, 0], [0.1, 0.8], [1, 1]]},
}  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a headless Chromium with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (tests/requirements.txt)")
    if not (BROWSER and DRIVER):
        pytest.skip("no Chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in [*SWITCHES.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(switch)
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield chromium
    chromium.quit()


def settle(browser):
    """Wait for two frames: the browser hands out pointer moves with a frame, and the page draws with the next."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


@pytest.fixture
def page(browser, tmp_path):
    """Return a function that opens the page beside a look.js; afterwards, nothing may have gone wrong in it."""

    def open_page(run):
        shutil.copy(PAGE, tmp_path)
        (tmp_path / "look.js").write_text(f"window.run = {json.dumps(run, allow_nan=False)};", encoding="utf-8")
        browser.get((tmp_path / "look.html").as_uri())
        settle(browser)
        return browser

    yield open_page
    assert browser.get_log("browser") == []


def text(browser, selector):
    """Return the visible texts of the elements that a selector finds."""
    found = "[...document.querySelectorAll(arguments[0])]"
    return browser.execute_script(f"return {found}.filter(e => e.checkVisibility()).map(e => e.innerText)", selector)


def press(browser, selector, *keys):
    browser.find_element("css selector", selector).send_keys(*keys)


def test_every_category_is_a_dot_in_view(page):
    browser = page(BOTH)
    assert text(browser, "[aria-pressed=true] bdi") == ["dest"]  # the first of 11 to 300 categories, by its means
    width, height, dots = browser.execute_script(f"return [map.clientWidth, map.clientHeight, {PLACES}]")
    assert len(dots) == len(AIRPORTS)
    assert all(0 < x < width and 0 < y < height for x, y in dots)
    x, y = np.array([FIRST["columns"][0][axis] for axis in "xy"])
    units = np.ptp(np.array(dots), axis=0) / [np.ptp(x), np.ptp(y)]
    assert units[0] == pytest.approx(units[1])  # one scale for both axes
    wanted = np.array(browser.execute_script(COLOURS_WANTED))
    assert len(np.unique(wanted, axis=0)) > 20
    browser.execute_script("map.scrollIntoView({block: 'center'})")
    picture = imread(io.BytesIO(browser.find_element("css selector", ".map").screenshot_as_png))
    seen = np.array([picture[round(y), round(x), :3] * 255 for x, y in dots])
    same = abs(wanted - seen).max(axis=1) <= 2
    assert np.mean(same) > 0.7, "the others may be covered by a larger dot or a label"


def test_search_finds_the_best_and_lists_its_neighbours(page):
    browser = page(BOTH)
    press(browser, "input", "atl\n")
    assert text(browser, ".name") == ["ATL"]  # not XATL or ATLX, which are more frequent
    dest = FIRST["columns"][0]
    nearest = [AIRPORTS[i] for i in dest["near"][3]]
    assert text(browser, ".list bdi") == nearest
    assert text(browser, ".facts") == [f"{dest['counts'][3]} training rows, mean air_time {dest['means'][3]:.0f}"]
    assert text(browser, ".list small") == [f"{dest['means'][i]:.0f}" for i in dest["near"][3]]
    browser.find_element("css selector", ".list button").click()
    assert text(browser, ".name") == nearest[:1]
    press(browser, "input", "\ue009a\ue000", "lx\n")  # Ctrl + A, then over it
    assert text(browser, ".name") == ["ATLX"]
    press(browser, "input", "\ue009a\ue000", "nowhere\n")
    assert text(browser, ".name") == ["ATLX"] and text(browser, ".facts") == ["No category here has “nowhere” in its name."]


def test_any_text_stays_text(page):
    browser = page(FIRST | {"columns": [column("<i>street</i>", NASTY)], "target": "<b>target</b>"})
    for i, category in enumerate(NASTY):
        browser.execute_script("goTo(dots[arguments[0]])", i)
        assert text(browser, ".name") == [" ".join(category.split()) or "(empty)"]
    assert text(browser, "h1 ~ main img, main b, main script, .columns bdi i") == []
    assert text(browser, ".columns bdi") == ["<i>street</i>"]
    labels = browser.execute_script("return [...document.querySelectorAll('.marks text')].map(e => e.textContent)")
    assert "x" * 10 + "…" + "x" * 10 in labels


def test_nothing_is_asked_of_the_network(page):
    browser = page(BOTH)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [address for address in loaded if not address.startswith("file:")] == []
    policy = browser.find_element("css selector", "meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    blocked = browser.execute_async_script("fetch(location.href).catch(() => arguments[0]('blocked'))")
    assert blocked == "blocked"
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', '<p onclick=\"document.title = 1\" id=p>')")
    browser.execute_script("document.getElementById('p').click()")
    assert browser.title == "What was learned about air_time"  # no handler in markup runs
    assert all("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_a_thousand_dots_stay_smooth(page):
    browser = page(BOTH)
    browser.find_element("css selector", "button[value=plane]").click()
    assert "Shown are the most frequent 1,000 of 3,996. This map (t-SNE) keeps" in " ".join(text(browser, "p"))
    assert len(browser.find_elements("css selector", ".dots circle")) == 1000
    placed, labelled, *moved = browser.execute_async_script(MOVES)
    assert moved == [-300, 200]
    assert placed == 1, "the dots, which take longest, only where the zoom changes"
    assert labelled <= 3, "once a frame, however often it moves"


def test_the_keyboard_moves_and_zooms(page):
    browser = page(BOTH)
    before = browser.execute_script("return now.x")
    press(browser, ".map", "\ue014")  # arrow right
    after = browser.execute_script("return now.x")
    assert after > before
    assert text(browser, ".name") == [AIRPORTS[browser.execute_script("return dots.indexOf(now)")]] != ["ORD"]
    press(browser, ".map", "++")
    assert browser.execute_script("return zoom") == pytest.approx(1.5**2)
    press(browser, ".map", "-0")
    assert browser.execute_script("return [zoom, map.scrollLeft, map.scrollTop]") == [1, 0, 0]


def test_the_mouse_points_drags_and_zooms(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    browser = page(BOTH)
    box, field = (browser.find_element("css selector", name) for name in (".map", "input"))
    i = max(range(len(AIRPORTS)), key=FIRST["columns"][0]["x"].__getitem__)  # the one on the right
    width, height, places = browser.execute_script(f"return [map.clientWidth, map.clientHeight, {PLACES}]")
    x, y = places[i]
    browser.execute_script("map.scrollIntoView({block: 'center'})")

    def act(prepare):
        prepare(ActionChains(browser, 0)).perform()
        settle(browser)
        return text(browser, ".name")[0]

    def to_dot(actions):
        return actions.move_to_element_with_offset(box, x - width / 2, y - height / 2)

    assert act(to_dot) == AIRPORTS[i]
    assert act(lambda actions: actions.move_to_element(field)) == "ORD"
    act(lambda actions: to_dot(actions).click())
    assert act(lambda actions: actions.move_to_element(field)) == AIRPORTS[i]
    act(lambda actions: actions.scroll_from_origin(ScrollOrigin.from_element(box), 0, -200))
    assert browser.execute_script("return zoom") > 1.2
    before = np.array(browser.execute_script(f"return {PLACES}"))
    act(lambda actions: actions.move_to_element(box).click_and_hold().move_by_offset(-30, 20).release())
    moved = np.array(browser.execute_script(f"return {PLACES}")) - before
    np.testing.assert_allclose(moved, np.tile([-30, 20], (len(AIRPORTS), 1)), atol=1e-6)


def test_two_fingers_zoom_about_where_they_are(page):
    browser = page(BOTH)
    browser.execute_script("map.scrollIntoView({block: 'center'})")
    left, top = browser.execute_script("const { x, y } = map.getBoundingClientRect(); return [x, y]")

    def touch(kind, *fingers):
        points = [{"x": left + x, "y": top + y, "id": i} for i, (x, y) in enumerate(fingers)]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        settle(browser)

    before = browser.execute_script(f"return {PLACES}")
    touch("touchStart", (200, 200))
    touch("touchStart", (200, 200), (300, 200))
    touch("touchMove", (200, 200), (400, 200))
    touch("touchEnd")
    assert browser.execute_script("return zoom") == pytest.approx(2)
    after = browser.execute_script(f"return {PLACES}")
    expected = 200 + 2 * (np.array(before) - 200)  # the first finger stayed, so what lies under it did
    np.testing.assert_allclose(after, expected, atol=1)
    np.testing.assert_allclose(browser.execute_script(CIRCLES), expected, atol=1)
    assert text(browser, ".name") == ["ORD"], "no dot was tapped"
    touch("touchStart", (200, 200), (400, 200))
    touch("touchMove", (200, 200), (400, 200))
    touch("touchEnd")
    assert browser.execute_script("return zoom") == pytest.approx(2), "fingers lifted and put down elsewhere"
    browser.execute_script("zoomBy(0)")
    dot = browser.execute_script(f"return {PLACES}[1]")
    touch("touchStart", dot)
    touch("touchEnd")
    settle(browser)
    assert text(browser, ".name") == ["XATL"], "a tap points and clicks"
    assert browser.execute_script("return kept.name") == "XATL"


def test_categories_in_one_line_are_listed_in_order(page):
    browser = page(BOTH)
    assert text(browser, ".notice") == []
    browser.find_element("css selector", "button[value=job]").click()
    job = FIRST["columns"][3]
    assert "differ in one thing, from left to right: low to high mean air_time" in text(browser, ".notice")[0]
    assert text(browser, ".list bdi") == [job["categories"][i] for i in np.argsort(job["means"])]
    browser.execute_script("goTo(dots[arguments[0]])", int(np.argsort(job["means"])[15]))
    list_box, item = (browser.find_element("css selector", name).rect for name in (".list", "[aria-current=true]"))
    assert list_box["y"] < item["y"] < list_box["y"] + list_box["height"], "scrolled to the one in focus"


def test_report_worth_and_training(page):
    browser = page(BOTH)
    assert text(browser, "h1") == [BOTH["report"]["verdict"]]
    numbers = text(browser, ".figures tr + tr td:nth-child(n + 3)")
    assert numbers == ["112,660", "0.5000", "7,206", "0.5000", "6,644", "0.5000"]
    assert text(browser, ".best th") == [MODELS[2]]
    assert "A broken bar is longer" in text(browser, ".report p")[0]
    assert len(text(browser, ".worth tr")) == 26
    assert text(browser, ".epochs small") == ["Kept: the average of epochs 2, 3 (large), RMSE 9.300"]
    circles = "return document.querySelectorAll(arguments[0] + ' circle').length"
    assert [browser.execute_script(circles, part) for part in (".answers", ".epochs")] == [3, 3]


def test_a_wide_range_of_values_is_shown_by_powers_of_ten(page):
    """A row ten times as dear lies as far from the last one, wherever it is."""
    values = [30.0, 300.0, 3000.0, 30000.0]
    browser = page(BOTH | {"answers": {"predicted": values, "actual": values}})
    said = [each.get_attribute("textContent") for each in browser.find_elements("css selector", ".answers text")]
    across = [float(each.get_attribute("cx")) for each in browser.find_elements("css selector", ".answers circle")]
    assert {"100", "1K", "10K"} <= {*said}
    assert np.diff(across) == pytest.approx([across[1] - across[0]] * 3) and across[0] < across[1]


def test_classes_have_calibration_and_roc_and_no_colour(page):
    browser = page(CLASSES)
    assert len(text(browser, ".answers figure")) == 2
    assert len(text(browser, ".legend")[0]) == 0
    assert text(browser, ".list bdi") == []


def test_what_is_missing_is_said(page, browser, tmp_path):
    page(FIRST)
    assert "build_embed_model.py" in text(browser, "h1")[0]
    assert text(browser, "h2") == ["The map of categories", "The training"]
    (tmp_path / "look.js").unlink()
    browser.refresh()
    assert "run build_embeddings.py" in text(browser, "h1")[0]
    assert text(browser, "h2") == []
    (said,) = browser.get_log("browser")
    assert "look.js" in said["message"]


@pytest.mark.parametrize("run", [BOTH, CLASSES], ids=["regression", "classes"])
def test_a_phone_need_not_scroll_sideways(page, browser, run):
    size = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page(run)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 400
        assert browser.execute_script("return drawing instanceof SVGElement")  # sharp on any screen
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
