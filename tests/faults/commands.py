"""Real processes of `train.py` at a size that takes seconds, and what the faults do with them."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--model.n_layer=2", "--model.n_head=2", "--model.d_model=24", "--model.context=16", "--train.batch_size=4"]
OFTEN = ["--train.log_every=5", "--train.eval_every=50", "--train.checkpoint_every=10", "--train.tokens=16000"]


def run_flags(corpus):
    """The flags of a run of 250 steps."""
    return [f"--data.corpus={corpus}", "--data.tokenizer=bytes", *SMALL, *OFTEN, "--train.threads=1"]


def begin(corpus, out, *more, config="configs/single.toml", **env):
    """Start train.py on a run of a few seconds."""
    command = [sys.executable, "train.py", config, *run_flags(corpus), *more, f"--out={out}"]
    environment = {name: value for name, value in (os.environ | env).items() if value is not None}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def until(process, condition):
    """Wait for a condition while a process runs."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def trains(out):
    """Whether a run has written its first record, and so is in its loop."""
    metrics = out / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def descendants(pid):
    """The process ids below a process, the nearest first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for above in found:
        found += [below for below, parent in parents.items() if parent == above]
    return found[1:]


def remount(folder, options):
    """Change the size of a mounted file system, or make it read-only (`ro`)."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
