"""How fast the report of 100 runs of 2,000 points opens in headless Chromium, and how large it is, median of five.

python benchmarks/report.py   (needs Chromium and the extra `test`)
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from study.effects import compare_arms
from study.report import sections, write_report
from study.results import Run, Study

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


def main() -> None:
    """Print the seconds until everything is drawn."""
    path = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for arms, seeds in ((20, 5), (100, 1)):
            study = synthetic(arms, seeds, Path(folder))
            rows = compare_arms(study, "act0")
            report = write_report(sections(study, rows, ""), rows, Path(folder) / "report.html")
            times = []
            for _ in range(5):
                page = browser.new_page()
                began = time.perf_counter()
                page.goto(report.as_uri())
                page.evaluate("ready")
                times.append(time.perf_counter() - began)
                page.close()
            size = report.stat().st_size / 1e6
            print(
                f"{arms} arms of {seeds} seeds: {statistics.median(times):.2f} s to open "
                f"({min(times):.2f} to {max(times):.2f}), {size:.1f} MB"
            )
        browser.close()


if __name__ == "__main__":
    main()
