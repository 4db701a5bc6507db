import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import plotly.graph_objects
import pytest
from playwright.sync_api import sync_playwright
from test_claims import GELU, plan, shifted, write_study
from test_results import write_plan, write_run

from study.claims_report import report_claims
from study.drawing import spread, styles, thin
from study.effects import compare_arms
from study.figures import by_block, depth_figure, difference_figure, final_figure, heat_maps, loss_figure, rate_figure
from study.report import sections, write_report
from study.results import Run, Study, load_study

HOSTILE = "<script>alert(1)</script>%{x}</script><img src=x onerror=alert(2)>"
ENDS = {"sigmoid": 4.25, "relu": 4.125, "gelu": 4.0, "silu": 4.0625, "swiglu": 3.875}


def report_on(study, path, title="study", command=""):
    rows = compare_arms(study, "gelu")
    return write_report(sections(study, rows, command), rows, path, title)


def arms_of(study):
    return [row.arm for row in compare_arms(study, "gelu")]


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


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study of three arms with five seeds each, tuned at three learning rates, one of them with a hostile name."""
    study = tmp_path_factory.mktemp("tuned")
    gaps = {"gelu": 0, "sigmoid": 0.25, HOSTILE: -0.125}
    for i, (activation, gap) in enumerate(gaps.items()):
        for seed, noise in enumerate((0, 0.01, -0.01, 0.02, -0.02)):
            loss = 4 + gap + noise + 0.003 * ((seed * i) % 3)
            write_run(study / f"{i}-{seed}", activation, loss, seed=seed, lr=0.01)
        for lr, worse in ((0.005, 0.2), (0.01, 0), (0.02, 0.3)):
            write_run(study / "tune" / f"{i}-{lr}", activation, 4.5 + gap + worse, tokens=500, seed=1000, lr=lr)
    write_run(study / "tune" / "too-high", loss=None, tokens=500, seed=1000, lr=0.04)
    write_plan(
        study, model={"activation": list(gaps)}, train={"seed": [0, 1, 2, 3, 4]}, study={"lr": [0.005, 0.01, 0.02]}
    )
    return study


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


def test_the_figures_are_valid_and_the_differences_right(tmp_path, tuned):
    for activation, loss in ENDS.items():
        write_run(tmp_path / activation, activation, loss)
    rows = compare_arms(load_study([tmp_path]), "gelu")
    for shown in (rows, compare_arms(load_study([tuned]), "gelu")):
        for draw in (loss_figure, difference_figure, final_figure, rate_figure):
            if found := draw(shown):
                plotly.graph_objects.Figure(found["data"], found["layout"])  # raises for what plotly does not know
                json.dumps(found, allow_nan=False)
    ends = {trace["name"]: trace["y"][-1] for trace in difference_figure(rows)["data"]}
    assert ends == {"sigmoid": 0.25, "relu": 0.125, "gelu": 0, "silu": 0.0625, "swiglu": -0.125}
    dots = {trace["name"]: trace["x"] for trace in final_figure(rows)["data"]}
    assert dots == {"sigmoid": [0.25], "relu": [0.125], "silu": [0.0625], "swiglu": [-0.125]}
    assert rate_figure(rows) == {}


def test_a_line_is_a_mean_as_far_as_all_seeds_have_come():
    curves = [[(1, 4.0), (2, 3.0), (3, 2.0)], [(1, 6.0), (2, 5.0)], [(0, 9.0), (1, 5.0), (2, 1.0)]]
    assert spread(curves) == [(1, 5.0, 4.0, 6.0, 3), (2, 3.0, 1.0, 5.0, 3)]
    assert spread([]) == []


def test_the_five_keep_their_colours_and_no_two_arms_look_alike(tmp_path):
    names = [*(f"a{i}" for i in range(30)), *ENDS]
    for name in names:
        write_run(tmp_path / "all" / name, name)
    look = styles(arms_of(load_study([tmp_path / "all"])))
    assert [look[name].color for name in ENDS] == [0, 1, 2, 3, 4]
    assert len(set(look.values())) == 35
    some = [tmp_path / "all" / name for name in ("gelu", *(f"a{i}" for i in range(7)))]
    assert {style.color for style in styles(arms_of(load_study(some))).values()} == set(range(8))
    for name in ("relu", "gelu"):
        for momentum in (0.5, 0.9):
            write_run(tmp_path / "two" / f"{name}-{momentum}", name, momentum=momentum)
    look = styles(arms_of(load_study([tmp_path / "two"])))
    assert [(style.color, style.dash) for style in look.values()] == [
        (1, "solid"),
        (1, "dash"),
        (2, "solid"),
        (2, "dash"),
    ]
    look = styles(arms_of(load_study([tmp_path / "two" / "gelu-0.5", tmp_path / "two" / "gelu-0.9"])))
    assert [style.color for style in look.values()] == [0, 1]  # of one activation the rest has the colours


def test_long_curves_are_thinned_from_end_to_end():
    points = [(i, float(i)) for i in range(12_345)]
    thinned = thin(points)
    assert len(thinned) == 1000
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert thin(points[:3]) == points[:3]


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
    code = f"import sys, study.compare; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def add_probes(study, at):
    """Add measurements of three blocks to every run of a study: `at(seed, step, block)`."""
    for path in study.glob("*/metrics.jsonl"):
        seed, records = int(path.parent.name[-1]), [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["step"] in (2, 10):
                record |= {f"grad/blocks.{i}/rms": at(seed, record["step"], i) for i in range(3)}
                record |= {f"act/blocks.{i}/mean_share": 0.5 for i in range(3)}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def probed(tmp_path):
    tree = plan({"predicts": "above"}, figure="depth")
    study = write_study(tmp_path / "c0", tree, {"gelu": GELU[:5], "sigmoid": shifted(0.1)[:5]})
    add_probes(study, lambda seed, step, block: (1 + seed) * step * 2.0**block)
    return study


def test_measurements_by_block_and_step_are_means_over_seeds(probed):
    rows = compare_arms(load_study([probed]), "gelu")
    assert by_block(rows[0].arm.runs[0].records)["grad/blocks.*/rms"] == {
        2: {0: 2, 1: 4, 2: 8},
        10: {0: 10, 1: 20, 2: 40},
    }
    maps = heat_maps(rows)["maps"]
    assert list(maps) == ["grad/blocks.*/rms", "act/blocks.*/mean_share"]
    assert maps["grad/blocks.*/rms"]["gelu"] == {
        "x": [2, 10],
        "z": [[6, 30], [12, 60], [24, 120]],
    }  # 1 + seed is 3 on average


def test_a_measurement_of_which_the_seeds_share_no_step_has_no_map(probed):
    for seed, path in enumerate(sorted(probed.glob("gelu*/metrics.jsonl"))):
        kept = [line for line in path.read_text().splitlines(True) if f'"step": {2 if seed else 10},' in line]
        path.write_text("".join(kept))
    assert "gelu" not in heat_maps(compare_arms(load_study([probed]), "gelu"))["maps"].get("grad/blocks.*/rms", {})


def test_the_gradient_against_depth_is_relative_to_the_last_block(probed):
    rows = compare_arms(load_study([probed]), "gelu")
    traces = [trace for trace in depth_figure(rows)["data"] if trace["meta"]["kind"] == "depth"]
    assert [trace["meta"]["arm"] for trace in traces] == ["sigmoid", "gelu"]
    assert (traces[0]["x"], traces[0]["y"]) == ((0, 0.5, 1), [0.25, 0.5, 1])
    (probed / "gelu-seed0" / "summary.json").unlink()  # killed on its way
    dead = probed / "gelu-seed1" / "metrics.jsonl"
    dead.write_text(re.sub(r'"grad/blocks.0/rms": [\d.]+', '"grad/blocks.0/rms": 0.0', dead.read_text()))
    traces = depth_figure(compare_arms(load_study([probed]), "gelu"))["data"]
    (gelu,) = [trace for trace in traces if trace["meta"]["kind"] == "depth" and trace["meta"]["arm"] == "gelu"]
    assert "mean of 3 seeds" in gelu["hovertemplate"]
    for path in probed.glob("*/metrics.jsonl"):
        path.write_text("")
    assert depth_figure(compare_arms(load_study([probed]), "gelu")) == {}


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
