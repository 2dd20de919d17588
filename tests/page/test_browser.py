"""The page in a real browser: Debian's Chromium, without a window.

Skipped where there is no browser; `apt-get install chromium chromium-driver` brings one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.runs import random_vectors, write_run

pytest.importorskip("sklearn")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from memvec.page.render import render_page
from memvec.page.run import run_page
from memvec.page.sweep import sweep_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,900"),
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser: apt-get install chromium chromium-driver"
)

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload='window.hacked = 1'></svg><b>bold</b>",
    "javascript:window.hacked=1",
    "\u202eright to left override",
    "line\u2028separator & \"quotes\" 'single' `back` ${window.hacked = 1}",
    "<!-- <script>",
    "喝茶 😺 שלום",
]
ROWS = 400


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    emulate(driver, "light")
    yield driver
    driver.quit()


def topics(rows: int) -> tuple[Any, list[str]]:
    """Returns vectors around eight topics, and texts that say which."""
    centres = random_vectors(8, 16) * 2
    topic = np.arange(rows) % 8
    texts = [f"Topic {'ABCDEFGH'[topic[row]]}, entry {row}" for row in range(rows)]
    return centres[topic] + random_vectors(rows, 16, seed=1) * np.float32(0.3), texts


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose first texts, ids and prompt are hostile."""
    vectors, texts = topics(ROWS)
    texts[: len(HOSTILE)] = HOSTILE
    ids = [f"{'ab'[row % 2]}/{row}" for row in range(ROWS)]
    ids[2] = "a/<img src=x onerror='window.hacked = 1'>"
    folder = write_run(
        tmp_path_factory.mktemp("page") / "<b>run",
        vectors,
        texts=texts,
        ids=ids,
        overrides=["prompt=raw", "prompt.template='</script><i>{text}'"],
        rejected=[json.dumps({"file": "<i>f", "row": 1, "id": HOSTILE[1], "reason": HOSTILE[0]})],
    )
    path = folder.root.parent / "report.html"
    path.write_text(render_page(run_page(folder)), encoding="utf-8")
    return path


def emulate(driver: webdriver.Chrome, scheme: str) -> None:
    """Sets what the user prefers; a page that scrolls smoothly would still move when something is clicked."""
    preferred = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in preferred.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def open_page(browser: webdriver.Chrome, path: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())


def errors(browser: webdriver.Chrome) -> list[Any]:
    """Returns what the console has said; the page itself says nothing."""
    return [entry["message"] for entry in browser.get_log("browser")]


def requests(browser: webdriver.Chrome) -> set[str]:
    """Returns the addresses that were asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def point_at(browser: webdriver.Chrome, row: int) -> ActionChains:
    """Returns actions that move the mouse onto an entry of the map."""
    canvas = browser.find_element(By.TAG_NAME, "canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    x, y = browser.execute_script("return window.memvec.plot.screen(arguments[0])", row)
    size = canvas.size
    return ActionChains(browser).move_to_element_with_offset(
        canvas, round(x - size["width"] / 2), round(y - size["height"] / 2)
    )


def text_of(browser: webdriver.Chrome, selector: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, selector).get_property("textContent"))


def wait(browser: webdriver.Chrome) -> WebDriverWait[webdriver.Chrome]:
    return WebDriverWait(browser, 10)


def entries(browser: webdriver.Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, "#content > section:nth-of-type(3) tbody tr")


def test_the_page_opens_from_disk_without_an_error_or_a_request(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    assert errors(browser) == []
    assert {url for url in requests(browser) if not url.startswith("data:")} == {page.as_uri()}
    headings = [heading.text for heading in browser.find_elements(By.TAG_NAME, "h2")]
    assert headings[:4] == ["The run", "Map", "Entries", "Lengths and speed"]
    assert {"Near-duplicates", "Outliers", "Rejected rows"} <= set(headings)
    assert browser.title == "<b>run - memvec report"


def test_hostile_texts_are_shown_and_do_nothing(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    for row in range(len(HOSTILE)):
        browser.execute_script("window.memvec.plot.show(arguments[0])", row)
        assert text_of(browser, ".chosen .self .memory") == HOSTILE[row]
    shown = text_of(browser, "#content > section:nth-of-type(3)")
    assert all(text in shown for text in HOSTILE)
    assert browser.execute_script("return window.hacked === undefined")
    assert browser.find_elements(By.CSS_SELECTOR, "img, b, i, main svg[onload]") == []
    assert errors(browser) == []


def test_even_an_element_that_got_in_could_not_run(browser: webdriver.Chrome, page: Path) -> None:
    """The content policy holds where escaping would have failed."""
    open_page(browser, page)
    browser.execute_script("""
        const script = document.createElement("script");
        try { script.textContent = "window.hacked = 1"; document.body.append(script); } catch { }
        try { document.body.innerHTML += "<img src=x onerror='window.hacked = 1'>"; } catch { }
        try { fetch("http://127.0.0.1:9/").catch(() => {}); } catch { }
    """)
    assert browser.execute_script("return window.hacked === undefined")
    assert "Content Security Policy" in " ".join(errors(browser))
    assert not [url for url in requests(browser) if url.startswith("http")]


def test_pointing_shows_text_and_id_and_a_click_the_ten_nearest(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    row = 100
    point_at(browser, row).perform()
    wait(browser).until(lambda b: b.find_element(By.CSS_SELECTOR, ".tip").is_displayed())
    assert text_of(browser, ".tip .memory").startswith("Topic ")
    ActionChains(browser).click().perform()
    chosen = text_of(browser, ".chosen .self .memory")
    assert chosen == text_of(browser, ".tip .memory")
    nearest = browser.find_elements(By.CSS_SELECTOR, ".chosen li")
    assert len(nearest) == 10
    topic = chosen.split(",")[0]
    assert all(item.find_element(By.CLASS_NAME, "memory").text.startswith(topic) for item in nearest[:5])
    second = nearest[0].find_element(By.CLASS_NAME, "memory").text
    nearest[0].find_element(By.TAG_NAME, "button").click()
    assert text_of(browser, ".chosen .self .memory") == second


def test_search_narrows_map_and_table(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    browser.find_element(By.ID, "search").send_keys("topic c, ")
    wanted = len([row for row in range(len(HOSTILE), ROWS) if row % 8 == 2])
    wait(browser).until(lambda b: text_of(b, "output") == f"{wanted} of {ROWS}")
    assert all("Topic C" in line.text for line in entries(browser))
    point_at(browser, 101).perform()  # of another topic: what is not found cannot be pointed at
    assert "Topic C" in (text_of(browser, ".tip") or "Topic C")
    browser.find_element(By.ID, "search").send_keys(Keys.BACKSPACE * 9)
    wait(browser).until(lambda b: text_of(b, "output") == "")
    assert len(entries(browser)) == 10


def test_colours_and_groups_can_be_chosen(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    choice = Select(browser.find_element(By.ID, "colouring"))
    assert [option.text for option in choice.options] == ["id prefix", "cluster", "length"]
    names = [item.text for item in browser.find_elements(By.CSS_SELECTOR, ".legend .name")]
    assert names == ["a", "b"]
    button = browser.find_element(By.CSS_SELECTOR, ".legend button")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    choice.select_by_visible_text("length")
    names = [item.text for item in browser.find_elements(By.CSS_SELECTOR, ".legend .name")]
    assert all(name.endswith(" tokens") for name in names)


def test_the_keyboard_reaches_everything(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    canvas = browser.find_element(By.TAG_NAME, "canvas")
    browser.execute_script("arguments[0].focus()", canvas)
    spoken = ".plane [aria-live]"
    heard = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT):
        ActionChains(browser).send_keys(key).perform()
        heard.append(text_of(browser, spoken))
    assert all(heard)
    assert len(set(heard)) > 1
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert text_of(browser, ".chosen .self .memory") in heard[-1]
    ActionChains(browser).send_keys(Keys.TAB * 20).perform()
    assert browser.execute_script("return document.activeElement !== document.body")
    unnamed = browser.execute_script("""
        const names = (e) => e.textContent.trim() || e.ariaLabel || e.labels?.length;
        const reached = document.querySelectorAll("button, input, select, canvas, svg[role], [tabindex='0']");
        return [...reached].filter((e) => !names(e)).length;
    """)
    assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_light_and_dark(browser: webdriver.Chrome, page: Path, scheme: str) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    emulate(browser, scheme)
    try:
        open_page(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        contrasts = browser.execute_script("""
            const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            const light = (style) => { const [r, g, b] = style.match(/[\\d.]+/g).map(Number).map(channel);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const card = light(getComputedStyle(document.querySelector("section")).backgroundColor);
            return [".memory", ".note", "th", "h2", ".id"].map((selector) => {
                const ink = light(getComputedStyle(document.querySelector(selector)).color);
                return (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05); });
        """)
        assert min(contrasts) > 4.5  # what WCAG asks of text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        emulate(browser, "light")


def test_twenty_thousand_points_are_drawn_at_any_zoom(browser: webdriver.Chrome, page: Path, tmp_path: Path) -> None:
    contents = json.loads(page.read_text(encoding="utf-8").partition('id="contents">')[2].partition("</script>")[0])
    large = tmp_path / "large.html"
    large.write_text(render_page({**contents, "map": _enlarged(contents["map"], 20_000 // ROWS)}), encoding="utf-8")
    assert large.stat().st_size < 10_000_000
    open_page(browser, large)
    assert errors(browser) == []
    painted = browser.execute_script("""
        const plot = window.memvec.plot;
        const canvas = document.querySelector("canvas");
        return [1.1, 1.5, 1 / 3].map((factor) => {
            plot.zoom(factor);
            plot.drawNow();
            return canvas.toDataURL();
        });
    """)
    assert len(set(painted)) == 3
    assert errors(browser) == []


def _enlarged(parts: dict[str, Any], times: int) -> dict[str, Any]:
    """Repeats the entries of a map, each time somewhere else."""
    from base64 import b64decode

    from memvec.page.contents import packed

    places = np.tile(np.frombuffer(b64decode(parts["positions"]), dtype="<u2"), times)
    moved = (places + np.random.default_rng(0).integers(0, 9_000, len(places))) % 65_536
    rows = np.frombuffer(b64decode(parts["nearest"]), dtype="<u4")
    codes = [np.tile(np.frombuffer(b64decode(one["codes"]), dtype=np.uint8), times) for one in parts["colourings"]]
    return {
        **parts,
        **{name: parts[name] * times for name in ("ids", "texts", "lengths")},
        "positions": packed(moved, np.uint16),
        "nearest": packed(np.tile(rows, times), np.uint32),
        "similarities": packed(np.zeros(len(rows) * times), np.int16),
        "colourings": [
            {**one, "codes": packed(code, np.uint8)} for one, code in zip(parts["colourings"], codes, strict=True)
        ],
    }


def test_the_page_of_a_sweep_opens_without_an_error(browser: webdriver.Chrome, tmp_path: Path) -> None:
    for job, batch_size in enumerate((1, 8)):
        write_run(tmp_path / "sweep" / str(job), random_vectors(5), overrides=[f"data.batch_size={batch_size}"])
    (tmp_path / "report.html").write_text(render_page(sweep_page(tmp_path / "sweep")), encoding="utf-8")
    open_page(browser, tmp_path / "report.html")
    assert errors(browser) == []
    assert [heading.text for heading in browser.find_elements(By.TAG_NAME, "h2")] == ["The sweep", "Jobs", "Compared"]
    assert "batch size 8" in browser.find_element(By.TAG_NAME, "main").text
