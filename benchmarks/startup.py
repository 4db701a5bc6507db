"""How soon the doors answer `--help`, against a bare `import torch`, in turn, medians of five, files cached.

python benchmarks/startup.py [--json figures.json]
"""

import subprocess
import sys

import tyro
from rounds import ROOT, Output, in_turn, save, say, spread

COMMANDS = (["sample.py", "--help"], ["train.py", "--help"], ["-c", "import torch"])


def call(arguments: list[str]) -> None:
    """Run a Python process with these arguments."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print the seconds of each command."""
    command = tyro.cli(Output, prog="python benchmarks/startup.py", description=__doc__)
    times = in_turn({f"python {' '.join(each)}": lambda each=each: call(each) for each in COMMANDS})
    figures = {name: spread(each) for name, each in times.items()}
    for name, each in figures.items():
        say(f"{name}, s", each)
    save(command.json, figures)


if __name__ == "__main__":
    main()
