"""The report and the page of claims, mostly in a real browser: each test opens one page and checks a lot on it."""

import contextlib
import json
import math
import os
import shutil
import struct
import zlib

import pytest
from helpers import ENDS, GELU, HOSTILE, add_probes, plan, shifted, write_run, write_study
from playwright.sync_api import expect, sync_playwright

from study.judge.effects import best_first, compare_arms
from study.judge.results import RunResult, Study, load_study
from study.report.claims_page import report_claims
from study.report.drawing import styles
from study.report.page import write_page
from study.report.sentences import headline, scope
from study.report.study_page import sections


def report_on(study, path, title="study", command=""):
    rows = best_first(compare_arms(study, "gelu"))
    parts, legend = sections(study, rows, command), styles([row.arm for row in rows])
    return write_page(path, title, headline(rows), scope(rows), parts, legend)


@pytest.fixture(scope="module")
def browser():
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if name and (path := shutil.which(name))), None)
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


def column(page, index, section="results"):
    return page.locator(f"#{section} tbody tr > :nth-child({index})").all_inner_texts()


def lines(page, figure):
    return page.locator(f"#plot-{figure} .scatterlayer .trace").count()


def wait_for_lines(page, n):
    page.wait_for_function(f"document.querySelectorAll('#plot-loss .scatterlayer .trace').length === {n}")


def hover(page, figure, place, first=False):
    """Move the mouse over the last or first point of a figure and return what pops up."""
    points = page.locator(f"#plot-{figure} .scatterlayer .trace:has({place}) .points path")
    point = points.first if first else points.last
    page.locator(f"#plot-{figure}").evaluate("e => e.scrollIntoView({block: 'center'})")  # from under the toolbar
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.wait_for_selector(f"#plot-{figure} .hoverlayer text")
    return page.locator(f"#plot-{figure} .hoverlayer").text_content()


def saved(page, figure, button):
    """Press a button of a figure's toolbar and return the file that the browser saves."""
    page.locator(f"#plot-{figure}").evaluate("e => e.scrollIntoView({block: 'center'})")
    with page.expect_download() as download:
        page.locator(f"#plot-{figure} .modebar-btn[data-title='{button}']").click(force=True)
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_the_page_shows_and_sorts_every_run_and_a_hostile_name_stays_text(browser, report):
    with visit(browser, report) as page:
        assert page.locator("h1").inner_text() == HOSTILE == page.title()
        assert page.locator("#results tbody th").all_inner_texts()[-2].strip() == HOSTILE
        assert page.locator("#reproduce pre").inner_text() == "python train.py && echo '<b>'"
        assert page.locator("img").count() == 0
        assert page.locator(".sample mark").first.inner_text() == "O Romeo"
        assert page.locator(".sample pre").first.inner_text() == "O Romeo, thou swiglu."
        assert page.locator("#results .status").all_inner_texts() == ["unfinished"]
        assert page.locator(".note").all_inner_texts() == [
            "mish: unfinished at 500 of 1,000 tokens, last validation loss 5.100."
        ]
        assert "2.13.0" in page.locator("#environment").inner_text()
        finding = "One seed cannot tell: sigmoid ends 0.25 nats above gelu; a verdict needs 5 seeds."
        assert page.locator(".finding").inner_text() == finding
        # A validation curve with points and a training curve without for each arm, named at their ends.
        assert page.locator("#plot-loss .scatterlayer .trace:has(.points path)").count() == 7
        assert lines(page, "loss") == 14
        names = {*ENDS, "mish", HOSTILE[:23] + "…"}
        assert set(page.locator("#plot-loss .annotation").all_text_contents()) == names
        # The key of an arm shows the marker of its curve: arms can be told without colour.
        curves = "document.getElementById('plot-loss').data.filter(t => t.meta.kind === 'validation')"
        keys = "[...document.querySelectorAll('.legend path:not(.line)')]"
        assert page.evaluate(f"{keys}.map(p => p.getAttribute('class'))") == page.evaluate(
            f"{curves}.map(t => t.marker.symbol)"
        )
        assert page.evaluate(f"new Set({keys}.map(p => p.getAttribute('d'))).size") == 7

        upward = ["3.875", "4.000", "4.062", "4.125", "4.250", "4.500", "–"]
        assert column(page, 3) == upward  # the lowest first, and missing figures last
        head = page.locator("#results").get_by_role("columnheader", name="val loss")
        head.get_by_role("button").click()
        assert (column(page, 3), head.get_attribute("aria-sort")) == (upward, "ascending")
        head.get_by_role("button").press("Enter")
        assert (column(page, 3), head.get_attribute("aria-sort")) == ([*upward[-2::-1], "–"], "descending")
        page.locator("#results").get_by_role("columnheader", name="activation").get_by_role("button").click()
        assert (column(page, 3), head.get_attribute("aria-sort")) == (upward, "none")
    assert "<script>alert" not in report.read_text(encoding="utf-8")


def test_figures_can_be_read_changed_and_saved(browser, report):
    highest = "document.getElementById('plot-loss').layout.yaxis.range[1]"
    curves = "kind => document.getElementById('plot-loss').data.filter(t => t.meta.kind === kind).map(t => t.y)"
    with visit(browser, report) as page:
        text = hover(page, "loss", ".points path")
        # One popup tells of all curves at these tokens.
        assert all(part in text for part in ("tokens", "perplexity", *ENDS)), text

        titles = page.locator("#plot-loss .modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
        assert titles == ["Save as PNG", "Save as SVG", "Zoom", "Pan", "Reset axes"]  # and no upload
        name, svg = saved(page, "loss", "Save as SVG")
        assert name == "plot-loss.svg"
        assert b"swiglu" in svg  # the names at the ends of the curves are in it
        name, png = saved(page, "loss", "Save as PNG")
        width = page.evaluate("document.getElementById('plot-loss').clientWidth")
        assert (name, png[:8], struct.unpack(">I", png[16:20])[0]) == ("plot-loss.png", b"\x89PNG\r\n\x1a\n", 2 * width)
        start = png.index(b"IDAT")
        (size,) = struct.unpack(">I", png[start - 4 : start])
        pixel = zlib.decompressobj().decompress(png[start + 4 : start + 4 + size])[1:5]
        assert pixel == b"\xff\xff\xff\xff"  # the page's ground, not transparent

        before = page.evaluate(curves, "training"), page.evaluate(curves, "validation")
        page.get_by_label("smoothing").fill("0.9")
        page.wait_for_function(f"({curves})('training')[0][1] !== {before[0][0][1]}")
        after = page.evaluate(curves, "training"), page.evaluate(curves, "validation")
        first, second = before[0][0][:2]
        smoothed = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
        assert after[0][0][:2] == pytest.approx([first, smoothed])
        assert after[1] == before[1]

        window = page.evaluate(highest)
        page.get_by_label("from the start").check(force=True)
        page.wait_for_function(f"{highest} > {window}")
        page.get_by_label("log scale").check(force=True)
        page.wait_for_function("document.getElementById('plot-loss').layout.yaxis.type === 'log'")
        assert page.evaluate("document.getElementById('plot-difference').layout.yaxis.type") == "linear"

        # One run is unfinished, so that there is no other axis yet.
        assert page.locator("#against option:disabled").all_inner_texts() == ["FLOPs", "seconds"]
        assert "once every run has finished" in page.locator("#loss .hint").inner_text()

        page.get_by_label("training loss").uncheck(force=True)
        wait_for_lines(page, 7)
        differences = lines(page, "difference")
        relu = page.get_by_role("button", name="relu", exact=True)
        relu.focus()
        page.keyboard.press("Enter")
        wait_for_lines(page, 6)
        assert lines(page, "difference") == differences - 1
        ticks = page.locator("#plot-final .yaxislayer-above text")
        assert ticks.all_text_contents() == [HOSTILE[:47] + "…", "sigmoid", "silu", "swiglu"]  # and no gap between them
        assert relu.get_attribute("aria-pressed") == "false"
        relu.dblclick()  # shows it alone
        wait_for_lines(page, 1)


def test_the_loss_can_be_drawn_against_what_training_costs(browser, tmp_path):
    for activation, flops, speed in (("gelu", 2e6, 100), ("relu", 3e6, 50)):
        final = {"flops/token": flops, "perf/tokens_per_s": speed}
        path = write_run(tmp_path / activation, activation, ENDS[activation], summary=final) / "metrics.jsonl"
        records = [json.loads(line) | {"perf/tokens_per_s": speed} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    plot = "document.getElementById('plot-loss')"
    curves = f"{plot}.data.filter(t => t.meta.kind === 'validation').map(t => [t.name, t.x[0], t.x.at(-1)])"
    with visit(browser, report_on(load_study([tmp_path]), tmp_path / "report.html")) as page:
        for cost, gelu, relu, shown in (
            ("FLOPs", [4e8, 2e9], [6e8, 3e9], "3.000G FLOPs"),
            ("seconds", [2, 10], [4, 20], "20.00 seconds"),
            ("tokens", [200, 1000], [200, 1000], "1,000 tokens"),
        ):
            page.locator("#against").select_option(cost)
            expect(page.locator("#plot-loss .xtitle")).to_contain_text(cost)
            assert page.evaluate(curves) == [["gelu", *gelu], ["relu", *relu]]
            assert page.evaluate(f"{plot}.layout.xaxis.range") == pytest.approx([0, 1.015 * max(gelu + relu)])
            hover(page, "loss", ".points path")
            # On its way the mouse may have shown another point.
            expect(page.locator("#plot-loss .hoverlayer")).to_contain_text(shown)
        assert page.evaluate("document.getElementById('plot-difference').data[0].x") == [200, 400, 600, 800, 1000]


def test_the_theme_follows_the_system_until_switched_and_a_phone_scrolls_only_tables_sideways(browser, report):
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('#plot-difference .trace .js-line').style.stroke"
    with visit(browser, report, color_scheme="dark", viewport={"width": 390, "height": 844}) as page:
        before = page.evaluate(f"[{ground}, {line}]")
        assert before[0] != "rgb(255, 255, 255)"
        page.locator("#theme").click()
        page.wait_for_function(f"{line} !== '{before[1]}'")
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('.scroll'))")


def test_a_study_with_seeds_and_tuning_is_shown_from_verdict_to_protocol(browser, tuned):
    path = report_on(load_study([tuned]), tuned / "report.html")
    with visit(browser, path) as page:
        finding = page.locator(".finding").inner_text()
        assert finding.startswith("Sigmoid ends 0.25 nats above gelu (95 % interval 0.25 to 0.26, 5 seeds); "), finding
        assert finding.endswith(f"{HOSTILE} ends below gelu."), finding
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
        assert [column(page, names.index(name) + 1)[0] for name in ("seeds", "verdict")] == ["5", "better"]
        assert page.locator("#results .lowest .status").all_inner_texts() == ["lowest loss"]
        assert column(page, names.index("95 % interval") + 1)[1] == "–"
        late = page.locator("#course").get_by_role("columnheader", name="to 100 %")
        late.get_by_role("button").click()
        assert column(page, late.evaluate("e => e.cellIndex") + 1, "course") == ["×0.88", "×1.00", "never"]
        assert "have no loss: too-high." in page.locator("#rates .reading").text_content()
        protocol = page.locator("#protocol").inner_text()
        assert "tuning learning rates\n0.005 · 0.01 · 0.02 · 0.04" in protocol
        assert "tuning tokens\n500" in protocol
        assert page.locator(".sample").count() == 3  # one seed each
        assert "[study]" in page.locator("#config").inner_text()
        for figure, parts in (  # of the rates, the last one is so bad that it is out of view
            ("final", ("-0.122 nats per token [-0.126", "alert(1)")),
            ("difference", ("tokens", "+0.", "mean of 5 seeds")),
            ("rates", ("learning rate 0.0", "validation loss 4.")),
        ):
            text = hover(page, figure, ".errorbar, .js-line", first=figure == "rates")
            assert all(part in text for part in parts), text


def test_a_hundred_runs_of_a_thousand_points_stay_small_and_draw(browser, tmp_path):
    def run(arm, seed):
        config = {"model": {"activation": f"act{arm}"}, "train": {"tokens": 1_000_000, "seed": seed, "lr": 0.1}}
        points = [(1000 * i, 3 + 4 / i + 0.01 * arm + 0.001 * seed) for i in range(1, 1001)]
        records = [{"tokens": x, "train/loss": y, "val/loss": y} for x, y in points]
        return RunResult(f"{arm}-{seed}", tmp_path / f"{arm}-{seed}", config, records, {"val/loss": points[-1][1]})

    study = Study([run(arm, seed) for arm in range(20) for seed in range(5)], [], {})
    path = report_on(study, tmp_path / "report.html")
    assert path.stat().st_size < 12_000_000
    with visit(browser, path) as page:
        assert lines(page, "loss") == 40  # bands and lines; training is hidden until asked for


def test_the_report_of_a_run_that_has_just_begun(tmp_path):
    folder = write_run(tmp_path / "runs" / "gelu", loss=None)
    folder.joinpath("metrics.jsonl").unlink()
    path = report_on(load_study([tmp_path / "runs"]), tmp_path / "new" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    body = path.read_text(encoding="utf-8").split("<main>")[1]
    assert '<p class="finding">No run has finished.</p>' in body
    assert '<p class="note">gelu: unfinished at 0 of 1,000 tokens.</p>' in body
    assert 'class="plot"' not in body


def test_a_page_of_claims_shows_verdicts_and_heat_maps(browser, tmp_path):
    predictions = [
        {"text": "unmeasured", "predicts": "above", "metric": "x/y", "aside": True},
        {"text": "early", "predicts": "above", "plus": [{"activation": "sigmoid", "at": 0.2}]},
        {"text": "late", "predicts": "above"},
    ]
    study = write_study(tmp_path / "c0", plan(*predictions, figure="depth"), {"gelu": GELU, "sigmoid": shifted(0.1)})
    add_probes(study, lambda seed, step, block: (1 + seed) * step * 2.0**block)
    with visit(browser, report_claims(tmp_path)) as page:
        assert page.locator("#c0 .verdict").inner_text().lower().startswith("supported")
        effect = page.locator("#c0").get_by_role("columnheader", name="effect").get_by_role("button")
        for order in (["late", "early", "aside: unmeasured"], ["early", "late", "aside: unmeasured"]):
            effect.click()  # up, then down
            assert [text.split(" (")[0] for text in column(page, 1, "c0")] == order
        assert lines(page, "c0-0") == 4  # two arms, each with its band
        # A map for each arm, on one scale: of logarithms where ratios count.
        assert page.locator("#plot-c0-probes .heatmaplayer image").count() == 2
        first = (
            "document.querySelector('#plot-c0-probes').data.map(map => [map.name, map.z[0][0], map.customdata[0][0]])"
        )
        assert page.evaluate(first) == [
            ["sigmoid", pytest.approx(math.log10(6)), 6],
            ["gelu", pytest.approx(math.log10(6)), 6],
        ]
        page.locator(".measure").select_option("mean share of a hidden unit")
        assert "0: centred. 1: the unit is a constant." in page.locator(".meaning").inner_text()
        page.wait_for_function("document.querySelector('#plot-c0-probes').data[0].z[0][0] === 0.5")
        page.get_by_role("button", name="Dark theme").click()
        assert saved(page, "c0-probes", "Save as PNG")[1].startswith(b"\x89PNG")


def test_a_figure_that_one_seed_cannot_have_is_a_missing_figure(tmp_path):
    losses = {"gelu": GELU[:1], "sigmoid": shifted(0.1)[:1]}
    write_study(tmp_path / "c0", plan({"predicts": "above"}, seeds=1), losses)
    page = report_claims(tmp_path).read_text(encoding="utf-8")
    row = page.split("<tbody>")[1].split("</tr>")[0]
    assert row.count('data-value=""') == 2  # no picture and no seeds that would decide
    assert "nan" not in row
