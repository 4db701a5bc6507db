import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ENDS, HOSTILE, write_run
from playwright.sync_api import sync_playwright

from study.judge.effects import compare_arms
from study.judge.results import Run, Study, load_study
from study.report.claims_page import report_claims
from study.report.page import sections, write_report


def report_on(study, path, title="study", command=""):
    rows = compare_arms(study, "gelu")
    return write_report(sections(study, rows, command), rows, path, title)


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
    return report_on(load_study([study]), study / "report.html", HOSTILE, "python train.py && echo '<b>'")


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


def column(page, index, section="results"):
    return page.locator(f"#{section} tbody tr > :nth-child({index})").all_inner_texts()


def lines(page, figure):
    return page.locator(f"#plot-{figure} .scatterlayer .trace").count()


def test_each_activation_has_a_validation_and_a_training_line(page):
    assert page.locator("#plot-loss .scatterlayer .trace:has(.points path)").count() == 7
    assert page.locator("#plot-loss .scatterlayer .trace").count() == 14
    page.get_by_label("training loss").uncheck(force=True)
    page.wait_for_function("document.querySelectorAll('#plot-loss .scatterlayer .trace').length === 7")
    names = {*ENDS, "mish", HOSTILE[:23] + "…"}
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
    hover = look.locator("#plot-loss .hoverlayer", has_text="1,000 tokens")  # on its way the mouse passes other points
    text = hover.text_content()
    assert all(part in text for part in ("sigmoid", "1,000 tokens", "validation loss 4.250", "perplexity 70.1")), text


def test_a_figure_can_be_saved_and_not_uploaded(look):
    titles = look.locator("#plot-loss .modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert titles == ["Download plot", "Zoom", "Pan", "Reset axes"]
    look.locator("#plot-loss").evaluate("e => e.scrollIntoView({block: 'center'})")  # from under the toolbar
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
    head = page.locator("#results").get_by_role("columnheader", name="val loss")
    head.get_by_role("button").click()
    assert column(page, 2) == ["3.875", "4.000", "4.062", "4.125", "4.250", "4.500", "–"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert column(page, 2) == ["4.500", "4.250", "4.125", "4.062", "4.000", "3.875", "–"]
    assert head.get_attribute("aria-sort") == "descending"
    page.locator("#results").get_by_role("columnheader", name="activation").get_by_role("button").click()
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
    assert look.locator("#results tbody th").all_inner_texts()[-2].strip() == HOSTILE
    assert look.locator("#reproduce pre").inner_text() == "python train.py && echo '<b>'"
    assert look.locator("img").count() == 0
    assert "<script>alert" not in report.read_text(encoding="utf-8")


def test_the_page_shows_samples_status_and_environment(look):
    assert look.locator(".sample mark").first.inner_text() == "O Romeo"
    assert look.locator(".sample pre").first.inner_text() == "O Romeo, thou sigmoid."
    assert look.locator("#results .status").all_inner_texts() == ["unfinished"]
    assert look.locator(".note").all_inner_texts() == [
        "mish: unfinished at 500 of 1,000 tokens, last validation loss 5.100."
    ]
    assert "2.13.0" in look.locator("#environment").inner_text()
    assert look.locator(".finding").inner_text().startswith("Lowest validation loss: swiglu 3.875")


def test_a_study_with_seeds_and_tuning_is_told_from_verdict_to_protocol(browser, tuned):
    path = report_on(load_study([tuned]), tuned / "report.html")
    with visit(browser, path) as page:
        assert page.locator(".finding").inner_text().startswith("Worse than gelu: sigmoid (+0.25")
        assert f"better than gelu: {HOSTILE} (−0.12" in page.locator(".finding").inner_text()
        scope = page.locator(".scope").inner_text()
        assert all(part in scope for part in ("54,321 parameters", "1,000 training tokens", "shakespeare", "5 seeds"))
        # An arm is a mean with a marker in front of its seeds; the reference has no dot. Bands lie behind lines.
        assert lines(page, "final") == 4
        assert page.locator("#plot-final .errorbar").count() == 2
        assert page.locator("#plot-final .shapelayer path").count() == 1
        assert (lines(page, "loss"), lines(page, "difference")) == (9, 6)
        assert page.locator("#plot-difference .fills path").count() == 3
        assert lines(page, "rates") == 6  # a curve and a ring each
        names = page.locator("#results thead button").all_inner_texts()
        assert [column(page, names.index(name) + 1)[0] for name in ("seeds", "verdict")] == ["5", "worse"]
        assert column(page, names.index("95 % interval") + 1)[1] == "–"
        page.locator("#course").get_by_role("columnheader", name="to 100 %").get_by_role("button").click()
        assert column(page, page.locator("#course thead th").count(), "course") == ["×0.88", "×1.00", "never"]
        assert "have no loss: too-high." in page.locator("#rates .intro").inner_text()
        protocol = page.locator("#protocol").inner_text()
        assert "tuning learning rates\n0.005 · 0.01 · 0.02 · 0.04" in protocol
        assert "tuning tokens\n500" in protocol
        assert page.locator(".sample").count() == 3  # one seed each
        assert "[study]" in page.locator("#config").inner_text()


def test_hovering_a_mean_tells_its_interval_and_its_seeds(browser, tuned):
    path = report_on(load_study([tuned]), tuned / "report.html")
    with visit(browser, path) as page:
        for figure, parts in (
            ("final", ("+0.25", "[+0.2", "sigmoid")),
            ("difference", ("mean of 5 seeds", "against gelu")),
            ("rates", ("learning rate 0.0", "validation loss 4.")),
        ):
            selector = f"#plot-{figure} .scatterlayer .trace:has(.errorbar, .js-line) .points path"
            point = page.locator(selector).first
            page.locator(f"#plot-{figure}").evaluate("e => e.scrollIntoView({block: 'center'})")
            box = point.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
            page.wait_for_selector(f"#plot-{figure} .hoverlayer text")
            text = page.locator(f"#plot-{figure} .hoverlayer").text_content()
            assert all(part in text for part in parts), text


def test_smoothing_calms_the_training_loss_alone(page):
    lines = """kind => document.getElementById("plot-loss").data.filter(t => t.meta.kind === kind).map(t => t.y)"""
    before = page.evaluate(lines, "training"), page.evaluate(lines, "validation")
    page.get_by_label("smoothing").fill("0.9")
    page.wait_for_function(
        f"JSON.stringify(({lines})('training')) !== {json.dumps(json.dumps(before[0], separators=(',', ':')))}"
    )
    after = page.evaluate(lines, "training"), page.evaluate(lines, "validation")
    assert after[1] == before[1]
    first, second = before[0][0][:2]
    smoothed = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    assert after[0][0][:2] == pytest.approx([first, smoothed])


def test_a_hundred_runs_of_two_thousand_points_stay_small_and_draw(browser, tmp_path):
    def run(arm, seed):
        config = {
            "model": {"activation": f"act{arm}"},
            "train": {"tokens": 2_000_000, "seed": seed, "lr": 0.1},
            "data": {},
        }
        points = [(1000 * i, 3 + 4 / i + 0.01 * arm + 0.001 * seed) for i in range(1, 2001)]
        records = [{"tokens": x, "train/loss": y, "val/loss": y} for x, y in points]
        return Run(f"{arm}-{seed}", tmp_path / f"{arm}-{seed}", config, records, {"val/loss": points[-1][1]})

    for arms, seeds in ((20, 5), (100, 1)):
        study = Study([run(arm, seed) for arm in range(arms) for seed in range(seeds)], [], {})
        path = report_on(study, tmp_path / "report.html")
        assert path.stat().st_size < 12_000_000
        with visit(browser, path) as page:
            assert page.locator("#plot-loss .scatterlayer .trace").count() == arms * (2 if seeds > 1 else 1)


def test_the_report_of_runs_that_have_just_begun(browser, tmp_path):
    folder = write_run(tmp_path / "runs" / "gelu", loss=None)
    folder.joinpath("metrics.jsonl").unlink()
    path = report_on(load_study([tmp_path / "runs"]), tmp_path / "new" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    with visit(browser, path) as page:
        assert page.locator(".finding").inner_text() == "No run has finished."
        assert page.locator(".note").inner_text() == "gelu: unfinished at 0 of 1,000 tokens."
        assert page.locator(".plot").count() == 0


def test_the_modules_start_fast():
    heavy = "{'torch', 'wandb', 'plotly', 'matplotlib', 'jinja2', 'rich'} & set(sys.modules)"
    code = f"import sys, study.report.compare; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_of_claims_shows_verdicts_and_heat_maps(browser, probed, capsys):
    with visit(browser, report_claims(probed.parent)) as page:
        assert page.locator("#c0 .verdict").inner_text().lower().startswith("supported")
        assert page.locator("#c0 tbody tr").count() == 1
        assert page.locator("#plot-c0-0 .scatterlayer .trace").count() == 4  # two arms, each with its band
        heat = page.locator("#plot-c0-probes .heatmaplayer image")
        before = heat.get_attribute("href")
        page.locator(".measure").select_option("act/blocks.*/mean_share")
        page.wait_for_function("document.querySelector('#plot-c0-probes').data[0].z[0][0] === 0.5")
        page.locator(".arm").select_option("sigmoid")
        assert heat.get_attribute("href") != before
        page.get_by_role("button", name="Dark theme").click()
