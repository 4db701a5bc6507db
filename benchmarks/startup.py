"""How soon the doors answer `--help`, against a bare `import torch`, in turn, median of five, files cached.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = (["sample.py", "--help"], ["train.py", "--help"], ["-c", "import torch"])


def seconds(arguments: list[str]) -> float:
    """Return how long a Python process with these arguments takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the time of each command; the first round only fills the cache."""
    rounds = [[seconds(arguments) for arguments in COMMANDS] for _ in range(6)][1:]
    for arguments, times in zip(COMMANDS, zip(*rounds, strict=True), strict=True):
        print(f"python {' '.join(arguments)}: {statistics.median(times):.2f} s  ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
