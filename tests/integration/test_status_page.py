"""The status page of a real server in a real browser."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid

import pytest
import wire
from conftest import Watched, wait_until
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_monitoring import send_all

A = uuid.uuid4().bytes
CLIENT = str(uuid.UUID(bytes=A))
HOSTILE = b"<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"

# Of each text that can be seen: its size, and the contrast of its colour to what is behind it.
CONTRASTS = """
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const behind = node => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
  if (["SCRIPT", "STYLE"].includes(parent.tagName)) continue;
  const style = getComputedStyle(parent);
  const ink = parse(parent.namespaceURI.endsWith("svg") ? style.fill : style.color);
  const [a, b] = [luminance(ink), luminance(behind(parent))].sort((p, q) => q - p);
  found.push([walker.currentNode.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)]);
}
return found;
"""


@pytest.fixture(scope="module")
def chromium():
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        assert not os.environ.get("CI"), "chromium and chromium-driver are not installed"
        pytest.skip("needs chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # tests may run as root
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    yield browser
    browser.quit()


class PageInBrowser:
    def __init__(self, browser: webdriver.Chrome, server: Watched) -> None:
        self.browser = browser
        self.address = f"http://127.0.0.1:{server.http}/"
        self.resize(1280, "light")
        browser.get_log("browser")
        browser.get(self.address)
        self.until(lambda: self.text("state") != "connecting", "an event")

    def resize(self, width: int, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def text(self, name: str) -> str:
        return self.run(f"return document.getElementById('{name}').innerText")

    def run(self, script: str):
        return self.browser.execute_script(script)

    def rows(self, name: str) -> list[list[str]]:
        return self.run(
            f"return [...document.getElementById('{name}').rows].map("
            "row => [...row.cells].map(cell => cell.innerText))"
        )

    def until(self, condition, what: str) -> None:
        wait_until(condition, what)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(chromium, watched) -> PageInBrowser:
    with wire.Connection(watched.port) as connection:
        connection.log(A, 1, HOSTILE)
        connection.send(wire.message(A, 3, b"x"))
        assert connection.nack()[0] == 4
    return PageInBrowser(chromium, watched)


def test_live_under_load(page, watched) -> None:
    """Everything that moves is shown while it moves, by a page that loads nothing else."""
    going = True
    failures = []

    def send() -> None:
        client, sequence = uuid.uuid4().bytes, 0
        try:
            with wire.Connection(watched.port) as connection:
                while going:
                    sequence += 1
                    connection.log(client, sequence, b"x" * 50)
        except BaseException as e:
            failures.append(e)

    senders = [threading.Thread(target=send) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        page.until(lambda: len(page.rows("busiest")) == 2, "the busiest clients")
        page.until(lambda: page.text("rate")[0].isdigit() and page.text("rate")[0] != "0", "a rate")
        page.until(lambda: "s" in page.text("p99").split()[1], "a percentile")
        page.until(lambda: page.text("connections").startswith("2"), "two connections")
        curves = "return document.querySelectorAll('#{}-chart .curve').length"
        page.until(lambda: page.run(curves.format("rate")) == 1, "a curve of rates")
        page.until(lambda: page.run(curves.format("wait")) == 1, "a curve of waits")
        page.until(lambda: "mean" in page.text("rate-text"), "its text")
        page.until(lambda: len(page.rows("records")) == 10, "the last records")
    finally:
        going = False
        for sender in senders:
            sender.join()
    assert not failures
    assert page.text("state") == "ready"
    assert not page.run("return document.getElementById('stream').getClientRects().length")
    assert page.rows("refused") == [["NACK", "OUT_OF_ORDER", "1"]]
    facts = page.text("facts")
    for term in ("Recovery took", "Torn by a crash", "Ledger in memory"):
        assert term in facts
    urls = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(url.startswith((page.address, "data:")) for url in urls), urls
    assert page.complaints() == []


def test_no_messages_unless_asked_for(page) -> None:
    """The last records are there, and what they say is not, anywhere."""
    page.until(lambda: page.rows("records"), "the record")
    ((when, client, sequence, size),) = page.rows("records")
    assert (client, sequence, size) == (CLIENT, "1", str(len(HOSTILE)))
    assert when[:2] == "20"
    assert page.text("records-head").split("\t") == ["Time (UTC)", "Client", "Sequence", "Bytes"]
    assert "onerror" not in page.run("return JSON.stringify(told)")


def test_hostile_messages(chromium, make_watched) -> None:
    """With --http-bodies, what a sender wrote is text, whatever it looks like."""
    server = make_watched("--http-bodies").start()
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, HOSTILE)
        connection.log(A, 2, b"\xff\x00\xfe")
    page = PageInBrowser(chromium, server)
    page.until(lambda: len(page.rows("records")) == 2, "the records")
    assert page.rows("records")[1][4] == HOSTILE.decode()
    assert page.run("return document.querySelectorAll('img, tbody script').length") == 0
    assert page.browser.title == "msglog"
    assert page.complaints() == []


def test_only_its_own_script(page) -> None:
    """What somebody gets into the page besides is not run."""
    page.run(
        "const s = document.createElement('script'); s.textContent = 'document.title = 1';"
        "document.body.append(s);"
        "const d = document.createElement('div');"
        "d.innerHTML = '<img src=x onerror=\"document.title = 2\">'; document.body.append(d);"
    )
    time.sleep(0.5)
    assert page.browser.title == "msglog"
    complaints = " ".join(page.complaints())
    assert "Content Security Policy" in complaints


def test_other_names_are_refused(chromium, watched) -> None:
    """A name that somebody lets lead here (DNS rebinding) is told nothing."""
    chromium.get(f"http://evil.example:{watched.http}/readyz")
    assert "does not answer to that name" in chromium.page_source
    assert "ready\n" not in chromium.page_source


def test_the_server_goes_and_comes_back(page, watched) -> None:
    """The page says when it hears nothing, and goes on by itself."""
    watched.stop()
    page.until(lambda: page.text("state") == "the server says nothing", "noticing")
    assert "the server says nothing" in page.browser.title
    watched.start()
    page.until(lambda: page.text("state") == "ready", "coming back")


def test_not_ready(chromium, make_watched) -> None:
    """Reasons and warnings are shown in words, not in colours alone."""
    server = make_watched("--min-free-bytes", str(1 << 50)).start()
    page = PageInBrowser(chromium, server)
    page.until(lambda: "bytes are free" in page.text("remarks"), "the warning")
    assert page.text("state") == "ready"


def test_watchers_are_bounded(chromium, make_watched) -> None:
    """A page that was refused tries again, and is told when there is room."""
    server = make_watched("--max-watchers", "1").start()
    first = PageInBrowser(chromium, server)
    window = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    try:
        chromium.get(first.address)
        page = first
        page.until(lambda: page.text("state") == "the server says nothing", "being refused")
        second = chromium.current_window_handle
        chromium.switch_to.window(window)
        chromium.get("about:blank")
        chromium.switch_to.window(second)
        page.until(lambda: page.text("state") == "ready", "its turn")
    finally:
        chromium.close()
        chromium.switch_to.window(window)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_readable(page, watched, width, scheme) -> None:
    """On a desk and a phone, light and dark: contrasts of AA, and no sideways scroll."""
    send_all(watched.port, 300, 10)
    page.resize(width, scheme)
    page.until(lambda: len(page.rows("records")) == 10, "the records")
    page.until(lambda: page.run("return samples.length") > 2, "samples")
    assert page.run("return document.documentElement.scrollWidth") <= width
    contrasts = page.run(CONTRASTS)
    assert len(contrasts) > 30
    assert [found for found in contrasts if found[1] < 4.5] == []


def test_structure(page) -> None:
    """What a screen reader goes by: landmarks, headings, names, headers, texts for the charts."""
    page.until(lambda: page.rows("records"), "the record")
    count = "return document.querySelectorAll('{}').length".format
    for one in ("header", "main", "footer", "h1", 'html[lang="en"]', "title", '[role="status"]'):
        assert page.run(count(one)) == 1, one
    assert page.run(count("th:not([scope])")) == 0
    assert page.run(count("section:not([aria-label]):not([aria-labelledby])")) == 0
    named = (
        "return [...document.querySelectorAll('[aria-labelledby], [aria-describedby]')].flatMap("
        "node => [node.getAttribute('aria-labelledby'), node.getAttribute('aria-describedby')])"
        ".filter(name => name && !document.getElementById(name)?.innerText.trim())"
    )
    assert page.run(named) == []
    assert page.run(count("svg:not([role=img])")) == 0
    # Only the state and the warnings are read out when they change.
    live = page.run("return [...document.querySelectorAll('[aria-live]')].map(n => n.id)")
    assert sorted(live) == ["remarks", "state"]


def test_keyboard(page) -> None:
    """By keyboard alone: focus is seen, and the moving page can be made to stand still."""
    body = page.browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    focus = page.browser.switch_to.active_element
    assert focus.get_attribute("id") == "pause"
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    focus.send_keys(Keys.ENTER)
    assert focus.get_attribute("aria-pressed") == "true"
    assert page.text("state") == "paused"
    before = page.text("rate-text")
    count = page.run("return samples.length")
    page.until(lambda: page.run("return samples.length") > count + 1, "events")
    assert page.text("rate-text") == before
    focus.send_keys(Keys.ENTER)
    page.until(lambda: page.text("state") == "ready", "going on")


def test_stream(chromium, make_cluster, make_front_end) -> None:
    """With --store, the stream has a section: while all is well, and while NATS is away."""
    cluster = make_cluster(1)
    cluster.create_stream()
    server = make_front_end(cluster.url)
    page = PageInBrowser(chromium, server)
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"x")
        connection.log(A, 2, b"x")
    facts = "stream-facts"
    page.until(lambda: "p50" in page.text(facts), "appends")
    (node,) = cluster.nodes
    for words in (f"Connected to\n{node.server}", "NATS\nanswers", "Replicas up to date\n1 of 1"):
        assert words in page.text(facts)
    assert "Messages an append\n1 (batches: 1)" in page.text(facts)
    assert "Waiting for NATS" in page.run("return document.body.innerText")
    assert "Recovery" not in page.text("facts")
    cluster.kill()
    page.until(lambda: "NATS\nhas not answered for" in page.text(facts), "the outage")
    page.until(lambda: "no server, for" in page.text(facts), "the lost connection")
    assert min(contrast for _, contrast in page.run(CONTRASTS)) >= 4.5
    assert page.complaints() == []
