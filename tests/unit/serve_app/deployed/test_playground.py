"""The playground in a headless Chromium that reaches this machine alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from serve_app.client import Client

pytestmark = pytest.mark.browser

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """The playground, open in a browser."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(url)
        self.wait(lambda: self["key-state"].text or self["problem"].text)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [one.text for one in self.all(selector)]

    def wait(self, done: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: done())

    def pick(self, index: int, task: str, version: str = "") -> None:
        Select(self[f"pick-{index}-task"]).select_by_value(task)
        Select(self[f"pick-{index}-version"]).select_by_value(version)

    def type(self, name: str, text: str) -> None:
        self[name].clear()
        self[name].send_keys(text)

    def run(self) -> list[WebElement]:
        self["run"].click()
        return self.answers()

    def answers(self) -> list[WebElement]:
        """Return the cards, once they are there."""
        self.wait(lambda: re.match(r"\d+ answers? in", self["ask-status"].text))
        return self.all("#cards .card")

    def key(self, text: str) -> None:
        self["key"].send_keys(text, Keys.ENTER)

    def console(self) -> list[str]:
        """Return what the console has got since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def size(self, width: int, height: int = 900) -> None:
        facts = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", facts)

    def scheme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        pytest.skip("Chromium is not installed here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = str(found[0])
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(str(found[1])))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(driver: Chrome, deployment: Any) -> Page:
    """The playground of the deployment without keys, fresh."""
    page = Page(driver)
    page.size(1400)
    page.scheme("light")
    for url in (deployment.guarded_url, deployment.url):
        driver.get(url)
        driver.execute_script("sessionStorage.clear()")
    page.open(deployment.url)
    page.console()
    return page


def shares(card: WebElement, kind: str) -> dict[str, float]:
    return {
        row.find_element(By.TAG_NAME, "th").text: float(row.find_element(By.CLASS_NAME, "number").text)
        for row in card.find_elements(By.CSS_SELECTOR, f".{kind} tbody tr")
    }


def test_the_page_loads_without_errors_and_from_here_alone(page: Page, deployment: Any) -> None:
    page.open(deployment.url)
    page.run()
    page["to-heatmap"].click()
    page["run-heatmap"].click()
    page.wait(lambda: page.all("table.heat"))
    assert page.console() == []
    names = page.driver.execute_script("return performance.getEntries().map((entry) => entry.name)")
    loaded = {name for name in names if "://" in name}
    assert f"{deployment.url}/static/app.js" in loaded
    assert all(name.startswith(deployment.url) for name in loaded)


def test_scripts_and_styles_that_are_not_files_do_nothing(page: Page) -> None:
    page.driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'document.title = 1';"
        "document.head.append(script); document.body.setAttribute('style', 'color: rgb(1, 2, 3)');"
    )
    assert page.driver.title == "attempt-ray playground"
    assert page.driver.find_element(By.TAG_NAME, "body").value_of_css_property("color") != "rgba(1, 2, 3, 1)"
    assert sum("Content Security Policy" in line for line in page.console()) == 2


def test_an_answer_has_its_prompt_probabilities_and_mixing_weights(page: Page, deployment: Any) -> None:
    page.pick(0, "rte")
    page.type("input-0-0", "ana saw a red dog .")
    page.type("input-0-1", "ana saw a dog .")
    page["add-pick"].click()
    page.pick(1, "squad")
    rte, squad = page.run()
    with Client(deployment.url) as client:
        example = client.task("squad").example
        fields = {"sentence1": "ana saw a red dog .", "sentence2": "ana saw a dog ."}
        wanted = client.predict([{"task": "rte", "fields": fields}, example], attention=True).rows
    assert rte.find_element(By.CLASS_NAME, "answer").text == (wanted[0].label or wanted[0].answer)
    assert [badge.text for badge in rte.find_elements(By.CLASS_NAME, "badge")] == [
        "target/rte@v2",
        "champion",
    ]
    assert shares(rte, "probability") == pytest.approx(wanted[0].probabilities, abs=0.0051)
    assert shares(rte, "weight") == pytest.approx(wanted[0].attention, abs=0.0051)
    assert squad.find_element(By.CLASS_NAME, "answer").text == wanted[1].answer.strip() or "(nothing)"
    assert shares(squad, "probability") == {}
    assert re.fullmatch(r"2 answers in .* \(queue .*, engine .*\)", page["ask-status"].text)
    widths = page.driver.execute_script(
        "return [...document.querySelectorAll('.card:first-child .weight .bar')].map((bar) =>"
        "parseFloat(getComputedStyle(bar, '::before').width) / bar.getBoundingClientRect().width)"
    )
    assert widths == pytest.approx(list((wanted[0].attention or {}).values()), abs=0.01)


def test_two_versions_are_compared_on_the_same_input(page: Page) -> None:
    page.pick(0, "rte")
    page.all("[aria-label='Compare rte with another version']")[0].click()
    assert page.driver.switch_to.active_element.get_attribute("id") == "pick-1-version"
    assert Select(page["pick-1-version"]).first_selected_option.text == "candidate (v3)"
    assert len(page.all("#inputs fieldset")) == 1
    first, second = page.run()
    assert "target/rte@v2" in first.text
    assert "target/rte@v3" in second.text
    assert re.search(r"(The same|Another) answer (as|than) target/rte@v2", second.text)
    changes = [
        float(one.text.replace("\N{MINUS SIGN}", "-").lstrip("±"))
        for one in second.find_elements(By.CLASS_NAME, "change")
    ]
    ours, theirs = shares(first, "probability"), shares(second, "probability")
    assert changes[:2] == pytest.approx([theirs[name] - ours[name] for name in ours], abs=0.011)
    page.all("[aria-label='Compare rte with another version']")[0].click()
    assert len(page.run()) == 3
    assert page.all("[aria-label='Compare rte with another version']") == []
    page.all("[aria-label='Remove rte@candidate']")[0].click()
    assert len(page.run()) == 2


def test_ready_text_is_sent_as_it_is(page: Page, deployment: Any) -> None:
    page.pick(0, "squad", "@v1")
    page["mode-0-text"].click()
    page.type("input-0-text", "squad question: who ran ? context: bob ran .")
    (card,) = page.run()
    assert "pinned" in card.text
    sent = json.loads(page["curl"].text.split("-d '")[1].rstrip("'").replace("\n", ""))
    assert sent["rows"] == [{"task": "squad@v1", "text": "squad question: who ran ? context: bob ran ."}]


def test_the_curl_line_is_a_call_that_works(page: Page, deployment: Any) -> None:
    page.open(deployment.guarded_url)
    page.key(deployment.key)
    page.wait(lambda: page.all("#pick-0-task option"))
    page.pick(0, "rte")
    page.type("input-0-0", 'it\'s "quoted" $HOME `id` \\ <b>')
    (card,) = page.run()
    line = page.driver.execute_script("return document.getElementById('curl').textContent")
    assert deployment.key not in line
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "ATTEMPT_API_KEY": deployment.key},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["label"] or row["answer"]) == card.find_element(By.CLASS_NAME, "answer").text
    assert shares(card, "probability") == pytest.approx(row["probabilities"], abs=0.0051)
    page["copy"].click()
    assert page.wait(lambda: page["copied"].text) in ("Copied.", "Selected; copy it with Ctrl + C.")


def test_the_key_stays_in_the_tab(page: Page, deployment: Any) -> None:
    page.open(deployment.guarded_url)
    assert page["problem"].text == "This deployment asks for an API key: give it above."
    page.key("wrong")
    page.wait(lambda: "got no valid API key" in page["problem"].text)
    page.key("se cret")
    page.wait(lambda: "characters that no key has" in page["problem"].text)
    page["key"].clear()
    page.key(deployment.key)
    page.wait(lambda: page["key-state"].text == "6 tasks")
    assert not page["problem"].is_displayed()
    assert page["key"].get_attribute("value") == ""
    page["to-heatmap"].click()
    kept = page.driver.execute_script(
        "return [location.href, document.cookie, JSON.stringify(localStorage), document.documentElement.outerHTML]"
    )
    assert not any(deployment.key in text for text in kept)
    assert page.driver.execute_script("return sessionStorage.length") == 1
    page.driver.refresh()
    page.wait(lambda: page["key-state"].text == "6 tasks")
    page["forget"].click()
    page.wait(lambda: page["problem"].text.startswith("This deployment asks"))
    assert page.driver.execute_script("return sessionStorage.length") == 0


def test_what_the_deployment_refuses_is_told_in_its_words(page: Page) -> None:
    page.run()
    page["mode-0-text"].click()
    page.driver.execute_script(
        "const area = document.getElementById('input-0-text'); area.value = 'x'.repeat(20001);"
        "area.dispatchEvent(new Event('input'))"
    )
    page["run"].click()
    page.wait(page["problem"].is_displayed)
    assert "rows.0" in page["problem"].text
    assert "20,000" in page["problem"].text
    assert page["ask-status"].text == "No answer."
    assert page.all(".card") == []


def test_everything_is_done_by_keyboard(page: Page) -> None:
    def press(*keys: str) -> WebElement:
        ActionChains(page.driver).send_keys(*keys).perform()
        return page.driver.switch_to.active_element

    assert press(Keys.TAB).get_attribute("class") == "skip"
    press(Keys.ENTER)
    assert page.driver.switch_to.active_element.get_attribute("id") == "main"
    assert page["ask"].is_displayed()
    assert press(Keys.TAB).get_attribute("id") == "pick-0-task"
    assert press("rte").get_attribute("value") == "rte"
    seen: list[str] = []
    for _ in range(60):
        now = press(Keys.TAB)
        if now.tag_name == "body":
            break
        outline = now.value_of_css_property("outline-style")
        assert outline != "none", now.get_attribute("outerHTML")
        seen.append(now.get_attribute("id") or now.text)
        if seen[-1] == "input-0-1":
            ActionChains(page.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(
                Keys.CONTROL
            ).perform()
            (card,) = page.answers()
            assert "target/rte@v2" in card.text
    else:
        pytest.fail(f"the focus never left the page: {seen}")
    for name in ("pick-0-version", "Compare", "add-pick", "input-0-0", "run", "curl", "copy"):
        assert name in seen
    press(Keys.TAB)  # the skip link again, and then the views
    press(Keys.TAB)
    assert press(Keys.TAB).text == "Heatmap"
    press(Keys.ENTER)
    page.wait(page["heatmap"].is_displayed)
    for _ in range(30):
        if press(Keys.TAB).get_attribute("id") == "run-heatmap":
            break
    press(Keys.ENTER)
    page.wait(lambda: page.all("table.heat"))


def test_every_control_has_a_name_and_answers_are_announced(page: Page) -> None:
    page.run()
    page["to-heatmap"].click()
    page["run-heatmap"].click()
    page.wait(lambda: page.all("table.heat"))
    for view in ("ask", "heatmap"):
        page[f"to-{view}"].click()
        page.wait(lambda view=view: page[view].is_displayed())
        for one in page.all("a, button, input, select, textarea, table, nav, section, [role=region]"):
            if one.is_displayed():
                assert one.accessible_name, one.get_attribute("outerHTML")
    assert page["to-heatmap"].get_attribute("aria-current") == "page"
    assert page["spoken"].get_attribute("aria-live") == "polite"
    assert "target/" in page["spoken"].get_attribute("textContent")
    ids = page.driver.execute_script("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))


def test_the_heatmap_shows_means_of_examples_and_pasted_rows(page: Page, deployment: Any) -> None:
    fields = [{"sentence1": f"{name} ran .", "sentence2": "bob sat ."} for name in ("ana", "bob", "tom")]
    pasted = [{"task": "rte", "fields": one} for one in fields] + [
        {"task": "rte@candidate", "text": "x"}
    ] * 20
    page["to-heatmap"].click()
    page.driver.execute_script(
        "document.getElementById('more-rows').value = arguments[0]", "\n\n".join(map(json.dumps, pasted))
    )
    page["run-heatmap"].click()
    page.wait(lambda: page.all("table.heat"))
    lines = [[cell.text for cell in row.find_elements(By.XPATH, "./*")] for row in page.all("table.heat tr")]
    assert lines[0] == ["task", "mnli", "qqp", "squad", "target", "n"]
    assert [(line[0], line[-1]) for line in lines[1:]] == [
        ("mrpc", "1"),
        ("rte", "4"),
        ("squad", "1"),
        ("rte@candidate", "20"),
    ]
    with Client(deployment.url) as client:
        asked = [client.task("rte").example, *pasted[:3]]
        found = [row.attention or {} for row in client.predict(asked, attention=True).rows]
    means = [sum(one[name] for one in found) / 4 for name in lines[0][1:-1]]
    assert [float(text) for text in lines[2][1:-1]] == pytest.approx(means, abs=0.0051)
    steps = [
        int(cell.get_attribute("class").removeprefix("heat-"))
        for cell in page.all("table.heat td[class^=heat]")
    ]
    assert max(steps) == 8
    assert page["heatmap-status"].text == "26 rows of 4 tasks."


def test_an_alias_can_answer_in_the_heatmap(page: Page) -> None:
    page["to-heatmap"].click()
    page["no-tasks"].click()
    page["run-heatmap"].click()
    page.wait(lambda: page["problem"].text == "There is nothing to ask: choose a task, or paste rows.")
    page["all-tasks"].click()
    Select(page["heatmap-version"]).select_by_value("candidate")
    page["run-heatmap"].click()
    page.wait(lambda: page.all("table.heat"))
    names = page.texts("table.heat tbody th")
    assert "rte@candidate" in names
    assert "mrpc" in names
    assert "mixes nothing" in page["means"].text


@pytest.mark.parametrize("line", ["{", "[1]", '{"fields": {}}', "null"])
def test_a_pasted_line_that_is_no_row_is_named(page: Page, line: str) -> None:
    page["to-heatmap"].click()
    page["more-rows"].send_keys('{"task": "rte", "text": "x"}\n' + line)
    page["run-heatmap"].click()
    page.wait(lambda: page["problem"].text.startswith("Line 2 is no JSON object with a task"))


def test_hostile_text_is_shown_and_not_obeyed(page: Page) -> None:
    page.pick(0, "hostile")
    text = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
    page.type("input-0-0", text)
    (card,) = page.run()
    assert sorted(shares(card, "probability")) == [
        "<img src=x onerror=document.title='hacked'>",
        "<script>document.title='hacked'</script>",
    ]
    assert "onerror" in page["curl"].text
    page["to-heatmap"].click()
    page["no-tasks"].click()
    page["more-rows"].send_keys(json.dumps({"task": "hostile", "text": text}))
    page["run-heatmap"].click()
    page.wait(lambda: page.all("table.heat"))
    page["more-rows"].send_keys('\n{"task": "<img src=x onerror=document.title=1>", "text": "x"}')
    page["run-heatmap"].click()
    page.wait(page["problem"].is_displayed)
    assert page.driver.title == "attempt-ray playground"
    assert page.all("main img, main script") == []
    assert [line for line in page.console() if "status of 4" not in line] == []


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(page: Page, width: int, scheme: str, tmp_path: Path) -> None:
    page.size(width)
    page.scheme(scheme)
    page.pick(0, "hostile")  # long labels without spaces
    page["add-pick"].click()
    page.pick(1, "rte")
    page.all("[aria-label='Compare rte with another version']")[0].click()
    page.run()
    for view in ("ask", "heatmap"):
        page[f"to-{view}"].click()
        page.wait(lambda view=view: page[view].is_displayed())
        if view == "heatmap":
            page["run-heatmap"].click()
            page.wait(lambda: page.all("table.heat"))
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == width
        page.driver.save_screenshot(str(tmp_path / f"{view}.png"))
        contrasts = page.driver.execute_script(_CONTRASTS)
        assert len(contrasts) > 20
        assert [one for one in contrasts if one[1] < 4.5] == []
    ground = page.driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert (int(re.findall(r"\d+", ground)[0]) < 64) == (scheme == "dark")


def test_every_colour_of_the_scale_carries_its_number(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        page.driver.execute_script(
            "document.getElementById('ask').append(...Array.from({length: 9}, (_, step) => {"
            "const one = document.createElement('span'); one.className = `heat-${step}`; one.textContent = '0'; return one; }))"
        )
        contrasts = [one for one in page.driver.execute_script(_CONTRASTS) if one[0] == "0"]
        assert len(contrasts) == (9 if scheme == "light" else 18)
        assert min(ratio for _, ratio in contrasts) >= 4.5


_CONTRASTS = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const [r, g, b] = channels(colour).map((value) => value / 255).map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if ((channels(colour)[3] ?? 1) === 1) return colour;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  const [low, high] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
  found.push([walker.currentNode.data.trim(), (high + 0.05) / (low + 0.05)]);
}
return found;
"""
