"""This working tree against an earlier commit of it: the same work in turn, in several pairs of processes.

What a change to the code gains or costs is measured so before it is kept, and again when somebody doubts it. A process
keeps for its life what luck it had with its memory, a few hundredths of the speed: hence the pairs.

python benchmarks/trial.py COMMIT --work sampling [--pairs 6] [--rounds 4] [--json figures.json]
"""

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import torch
import tyro
from rounds import ROOT, Output, in_turn, machine, process, ratio, save, say, spread


@dataclass(frozen=True)
class Command(Output):
    """Time this tree against an earlier commit."""

    commit: Annotated[str, tyro.conf.Positional]
    """any name that git knows, as HEAD~1"""
    work: Literal["sampling", "sampling-16", "6x256", "char", "6x768", "quick", "score"] = "6x256"
    """255 tokens for 1 or 16 rows, as in sampling.py; training steps at a size of steps.py, or of the quick study, or
    a score of its validation split"""
    pairs: int = 6
    """of processes, one with the code of each"""
    rounds: int = 4
    """of one turn each, in every pair"""


def work(name: str, tree: str) -> Callable[[], object]:
    """Return one turn of the work, by the code that this process imports, which has to be that of the tree."""
    import sampling
    import steps

    import model
    from training.device import keep_memory

    if Path(model.__file__).parent.parent != Path(tree):
        sys.exit(f"{model.__file__} is not of {tree}")
    if name.startswith("sampling"):
        return sampling.work("ours", "16" if name.endswith("16") else "1")
    if name not in ("quick", "score"):
        return steps.work("ours", name)
    from ours import Training, run_named

    from training.evaluate import score

    keep_memory()
    torch.set_num_threads(1)  # as a run of a study
    training = Training(run_named("quick", "gelu"))
    if name == "score":
        return lambda: score(training.model, training.data.val, training.config, training.precision)
    return lambda: [training.step(number) for number in range(10)]


def unpack(commit: str, folder: Path) -> None:
    """Write the files of a commit into a folder."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True)
    if done.returncode:
        print(f"error: {commit!r} is no commit here: {done.stderr.decode().strip()}", file=sys.stderr)
        sys.exit(2)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")


def main() -> None:
    """Run both in turn."""
    command = tyro.cli(Command, prog="python benchmarks/trial.py")
    with TemporaryDirectory() as folder:
        trees = {"before": Path(folder).resolve(), "now": ROOT}
        unpack(command.commit, trees["before"])
        limits, pairs = machine(), []
        for number in range(command.pairs):
            order = list(trees)[:: (-1) ** number]  # each begins in half of the pairs
            with ExitStack() as held:
                works = {
                    side: held.enter_context(process("trial", command.work, str(trees[side]), tree=trees[side]))
                    for side in order
                }
                times = in_turn(works, command.rounds)
            pairs.append(ratio(times["before"], times["now"])["median"])
            print(f"pair {number + 1}: {pairs[-1]:.3f}", flush=True)
    figures = spread(pairs)
    say(f"{command.work}, speed against {command.commit}", figures)
    save(command.json, {"machine": limits, command.work: figures})


if __name__ == "__main__":
    main()
