"""How fast the report of 100 runs of 2,000 points opens in headless Chromium, and how large it is, medians of five.

python benchmarks/report.py [--json figures.json]   (needs Chromium and the extra `test`)
"""

import shutil
import tempfile
from pathlib import Path

import tyro
from playwright.sync_api import Browser, sync_playwright
from rounds import Output, in_turn, save, say, spread

from study.judge.effects import compare_arms
from study.judge.results import Run, Study
from study.report.page import sections, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def synthetic(arms: int, seeds: int, folder: Path) -> Study:
    """Return a study whose runs have 2,000 scores each."""
    runs = []
    for arm in range(arms):
        for seed in range(seeds):
            config = {"model": {"activation": f"act{arm}"}, "train": {"tokens": 2_000_000, "seed": seed}, "data": {}}
            points = [(1000 * i, 3 + 4 / i + 0.01 * arm + 0.001 * seed) for i in range(1, 2001)]
            records = [{"tokens": x, "train/loss": y, "val/loss": y} for x, y in points]
            runs.append(Run(f"{arm}-{seed}", folder / f"{arm}-{seed}", config, records, {"val/loss": points[-1][1]}))
    return Study(runs, [], {})


def draw(browser: Browser, report: Path) -> None:
    """Open a report, and wait until everything is drawn."""
    page = browser.new_page()
    page.goto(report.as_uri())
    page.evaluate("ready")
    page.close()


def main() -> None:
    """Print the seconds until everything is drawn."""
    command, figures = tyro.cli(Output, prog="python benchmarks/report.py", description=__doc__), {}
    path = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for arms, seeds in ((20, 5), (100, 1)):
            study = synthetic(arms, seeds, Path(folder))
            rows = compare_arms(study, "act0")
            report = write_report(sections(study, rows, ""), rows, Path(folder) / "report.html")
            times = in_turn({"open": lambda report=report: draw(browser, report)})["open"]
            what, size = f"{arms} arms of {seeds} seeds", report.stat().st_size
            figures[what] = {"seconds": spread(times), "bytes": size}
            say(f"{what}, {size / 1e6:.1f} MB, seconds to open", figures[what]["seconds"])
        browser.close()
    save(command.json, figures)


if __name__ == "__main__":
    main()
