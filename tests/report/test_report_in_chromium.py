"""The page in a browser: no errors, nothing from outside, nothing wider than the window, at a desk and on a phone."""

import pytest
import study_on_disk
from chromium import PROGRAM, Chromium

from kd_megatron.report.study.page import write_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium or Chrome here")
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    recipe = study_on_disk.study_recipe(notes=["w" * 200])  # a word that no line has room for
    return write_report(study_on_disk.write_study(tmp_path_factory.mktemp("s") / "planted", recipe))


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page(browser, page, width):
    browser.open(page, width)
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") == 5
    assert browser.evaluate(WIDTH) <= width
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("document.querySelectorAll('details[open]').length") > 12  # each run's, and more
    assert browser.evaluate(WIDTH) <= width
    narrowest = browser.evaluate("Math.min(...[...document.images].map(one => one.clientWidth / one.naturalWidth))")
    assert narrowest > 0.36  # at 200 dots per inch: letters of 9 points keep 9 pixels


def test_what_is_wrong_is_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><p style="width: 3000px">wide<script>undefined.x</script>')
    browser.open(bad, 360)
    assert any(url.startswith("http://127.0.0.1:9/") for url in browser.requests())
    assert browser.errors()
    assert browser.evaluate(WIDTH) >= 3000
