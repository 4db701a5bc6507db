"""This working tree against an earlier commit of it: the same work in turn, in several pairs of processes.

What a change to the code gains or costs is measured so before it is kept, and again when somebody doubts it. A process
keeps for its life what luck it had with its memory, a few hundredths of the speed: hence the pairs.

python benchmarks/trial.py COMMIT --work sampling [--pairs 6] [--rounds 4] [--json figures.json]
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import tyro
from rounds import Output, in_turn, machine, ratio, save, say, spread

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Command(Output):
    """Time this tree against an earlier commit."""

    commit: Annotated[str, tyro.conf.Positional]
    """any name that git knows, as HEAD~1"""
    work: Literal["sampling", "sampling-16", "6x256", "char", "6x768"] = "6x256"
    """255 tokens for 1 or 16 rows, as in sampling.py; training steps at a size of steps.py"""
    pairs: int = 6
    """of processes, one with the code of each"""
    rounds: int = 4
    """of one turn each, in every pair"""


def work(name: str) -> Callable[[], object]:
    """Return one turn of the work, by the code that this process imports."""
    from peers import our_step, prompt, random_tokens
    from sampling import VOCABULARY, sampler
    from steps import SIZES, repeats, run_of

    if name.startswith("sampling"):
        return sampler(prompt(VOCABULARY, 16 if name.endswith("16") else 1))
    run, n_vocab = run_of(name), SIZES[name][4]
    step = our_step(random_tokens(n_vocab), run, n_vocab)
    return lambda: [step() for _ in range(repeats(run))]


def serve(tree: Path, name: str) -> None:
    """Do one turn for each line that comes in, by the code of that tree, and answer with a line."""
    import model
    from training.device import keep_memory

    if Path(model.__file__).parent.parent != tree:
        sys.exit(f"{model.__file__} is not of {tree}")
    keep_memory()
    turn = work(name)
    for _ in sys.stdin:
        turn()
        print(flush=True)


@contextmanager
def process(tree: Path, name: str) -> Iterator[Callable[[], str]]:
    """Yield what has a process with the code of that tree do one turn; the benchmarks are those of this one."""
    # -P: else what lies in the current folder would come before either
    code = f"import trial; trial.serve(trial.Path({str(tree)!r}), {name!r})"
    command = [sys.executable, "-P", "-c", code]
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'benchmarks'}"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        asked, told = server.stdin, server.stdout
        assert asked is not None
        assert told is not None

        def turn() -> str:
            print(file=asked, flush=True)
            return told.readline() or sys.exit(f"the process with the code of {tree} has ended")

        yield turn


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
                works = {side: held.enter_context(process(trees[side], command.work)) for side in order}
                times = in_turn(works, command.rounds)
            pairs.append(ratio(times["before"], times["now"])["median"])
            print(f"pair {number + 1}: {pairs[-1]:.3f}", flush=True)
    figures = spread(pairs)
    say(f"{command.work}, speed against {command.commit}", figures)
    save(command.json, {"machine": limits, command.work: figures})


if __name__ == "__main__":
    main()
