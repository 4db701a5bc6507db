import contextlib
import json
import os
import shutil
import subprocess
import sys

import plotly.graph_objects
import pytest
from playwright.sync_api import sync_playwright
from test_results import write_run

from study.report import difference_curves, loss_curves, styles, thin, write_report
from study.results import load_runs, table

HOSTILE = "<script>alert(1)</script>%{x}</script><img src=x onerror=alert(2)>"
ENDS = {"sigmoid": 4.25, "relu": 4.125, "gelu": 4.0, "silu": 4.0625, "swiglu": 3.875}


def find_browser():
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium found: install one, or name it in the environment variable CHROMIUM")
    quiet = ("first-run", "default-browser-check")
    off = ("gpu", "background-networking", "component-update", "sync")
    arguments = ["--no-sandbox", *(f"--no-{name}" for name in quiet), *(f"--disable-{name}" for name in off)]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on five finished runs, a stopped one and one with a hostile name."""
    study = tmp_path_factory.mktemp("study")
    for activation, loss in ENDS.items():
        write_run(study / activation, activation, loss)
    write_run(study / "stopped", "mish", loss=None)
    write_run(study / "hostile", HOSTILE, 4.5)
    return write_report(load_runs([study]), study / "report.html", HOSTILE, "python train.py && echo '<b>'")


@contextlib.contextmanager
def visit(browser, report, **options):
    """Open the report; on leaving, the page must have been silent and alone."""
    page, trouble = browser.new_page(**options), []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    urls = (report.as_uri(), "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(urls) or trouble.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("ready")
    yield page
    page.close()
    assert trouble == []


@pytest.fixture(scope="module")
def look(browser, report):
    """A page for the tests that change nothing on it."""
    with visit(browser, report) as page:
        yield page


@pytest.fixture
def page(browser, report):
    with visit(browser, report) as page:
        yield page


def column(page, index):
    return page.locator(f"tbody tr > :nth-child({index})").all_inner_texts()


def test_each_activation_has_a_validation_and_a_training_line(page):
    assert page.locator("#plot-loss .scatterlayer .trace:has(.points path)").count() == 7
    assert page.locator("#plot-loss .scatterlayer .trace").count() == 14
    page.get_by_label("training loss").uncheck(force=True)
    page.wait_for_function("document.querySelectorAll('#plot-loss .scatterlayer .trace').length === 7")
    names = {*ENDS, "mish", HOSTILE[:17] + "…"}
    assert set(page.locator("#plot-loss .annotation").all_text_contents()) == names


def test_the_legend_hides_an_activation_in_every_figure(page):
    before = page.locator("#plot-difference .scatterlayer .trace").count()
    relu = page.get_by_role("button", name="relu", exact=True)
    relu.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#plot-loss .scatterlayer .trace').length === 12")
    assert page.locator("#plot-difference .scatterlayer .trace").count() == before - 1
    assert relu.get_attribute("aria-pressed") == "false"
    relu.dblclick()
    page.wait_for_function("document.querySelectorAll('#plot-loss .scatterlayer .trace').length === 2")


def test_hovering_tells_activation_tokens_loss_and_perplexity(look):
    trace = look.locator("#plot-loss .scatterlayer .trace:has(.points path)").first  # sigmoid
    point = trace.locator(".points path").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    look.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    look.wait_for_selector("#plot-loss .hoverlayer text")
    text = look.locator("#plot-loss .hoverlayer").text_content()
    assert all(part in text for part in ("sigmoid", "1,000 tokens", "validation loss 4.250", "perplexity 70.1"))


def test_a_figure_can_be_saved_and_not_uploaded(look):
    titles = look.locator("#plot-loss .modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert titles == ["Download plot", "Zoom", "Pan", "Reset axes"]
    with look.expect_download() as download:
        look.locator("#plot-loss .modebar-btn").first.click(force=True)
    assert "swiglu" in download.value.path().read_text(encoding="utf-8")


def test_the_loss_axis_shows_the_start_and_alone_turns_logarithmic(page):
    highest = "document.getElementById('plot-loss').layout.yaxis.range[1]"
    before = page.evaluate(highest)
    page.get_by_label("from the start").check(force=True)
    page.wait_for_function(f"{highest} > {before}")
    page.get_by_label("log scale").check(force=True)
    page.wait_for_function("document.getElementById('plot-loss').layout.yaxis.type === 'log'")
    assert page.evaluate("document.getElementById('plot-difference').layout.yaxis.type") == "linear"


def test_columns_sort_by_mouse_and_keyboard_with_missing_figures_last(page):
    order = column(page, 2)
    assert order == ["4.250", "4.125", "4.000", "4.062", "3.875", "4.500", "–"]
    head = page.get_by_role("columnheader", name="val loss")
    head.get_by_role("button").click()
    assert column(page, 2) == ["3.875", "4.000", "4.062", "4.125", "4.250", "4.500", "–"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert column(page, 2) == ["4.500", "4.250", "4.125", "4.062", "4.000", "3.875", "–"]
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("columnheader", name="activation").get_by_role("button").click()
    assert column(page, 2) == order
    assert head.get_attribute("aria-sort") == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_switched(browser, report, scheme):
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('#plot-difference .trace .js-line').style.stroke"
    with visit(browser, report, color_scheme=scheme) as page:
        before = page.evaluate(f"[{ground}, {line}]")
        assert (before[0] == "rgb(255, 255, 255)") == (scheme == "light")
        page.locator("#theme").click()
        page.wait_for_function(f"{line} !== '{before[1]}'")
        assert page.evaluate(ground) != before[0]


def test_a_phone_needs_no_sideways_scrolling(browser, report):
    with visit(browser, report, viewport={"width": 390, "height": 844}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('.scroll'))")


def test_hostile_names_stay_text(look, report):
    assert look.locator("h1").inner_text() == HOSTILE == look.title()
    assert look.locator("tbody th").all_inner_texts()[-2].strip() == HOSTILE
    assert look.locator("pre.command").inner_text() == "python train.py && echo '<b>'"
    assert look.locator("img").count() == 0
    assert "<script>alert" not in report.read_text(encoding="utf-8")


def test_the_page_shows_samples_status_and_environment(look):
    assert look.locator(".sample mark").first.inner_text() == "O Romeo"
    assert look.locator(".sample pre").first.inner_text() == "O Romeo, thou sigmoid."
    assert look.locator(".status").all_inner_texts() == ["unfinished"]
    assert look.locator(".note").all_inner_texts() == [
        "mish: unfinished at 500 of 1,000 tokens, last validation loss 5.100."
    ]
    assert "2.13.0" in look.locator("#environment").inner_text()
    assert look.locator(".finding").inner_text().startswith("Lowest validation loss: swiglu 3.875")


def test_the_figures_are_valid_and_the_differences_right(tmp_path):
    for activation, loss in ENDS.items():
        write_run(tmp_path / activation, activation, loss)
    rows = table(load_runs([tmp_path]))
    for figure in (loss_curves(rows), difference_curves(rows)):
        plotly.graph_objects.Figure(figure)  # raises for what plotly does not know
        json.dumps(figure, allow_nan=False)
    ends = {trace["name"]: trace["y"][-1] for trace in difference_curves(rows)["data"]}
    assert ends == {"sigmoid": 0.25, "relu": 0.125, "gelu": 0, "silu": 0.0625, "swiglu": -0.125}


def test_the_five_keep_their_colours_and_no_two_activations_look_alike(tmp_path):
    names = [f"a{i}" for i in range(30)]
    for name in names:
        write_run(tmp_path / name, name)
    look = styles(table(load_runs([tmp_path])))
    assert [look[name].color for name in ("sigmoid", "relu", "gelu", "silu", "swiglu")] == [0, 1, 2, 3, 4]
    assert len(set(look.values())) == 35


def test_long_curves_are_thinned_from_end_to_end():
    points = [(i, float(i)) for i in range(12_345)]
    thinned = thin(points)
    assert len(thinned) == 1000
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert thin(points[:3]) == points[:3]


def test_the_report_of_runs_that_have_just_begun(browser, tmp_path):
    folder = write_run(tmp_path / "runs" / "gelu", loss=None)
    folder.joinpath("metrics.jsonl").unlink()
    path = write_report(load_runs([tmp_path / "runs"]), tmp_path / "new" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    with visit(browser, path) as page:
        assert page.locator(".finding").inner_text() == "No run has finished."
        assert page.locator(".note").inner_text() == "gelu: unfinished at 0 of 1,000 tokens."
        assert page.locator(".plot").count() == 0


def test_the_modules_start_fast():
    heavy = "{'torch', 'wandb', 'plotly', 'jinja2', 'numpy'} & set(sys.modules)"
    code = f"import sys, study.report; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
