"""Door: train one run, or every run of a study."""

import sys
from pathlib import Path

from errors import door

QUICK = Path(__file__).parent / "configs" / "quick.toml"


def main() -> int:
    """Read the command line and train; returns the exit code."""
    from study.config import axes, expand, merge, parse_command  # late, since a study's processes import this file too

    command = parse_command(sys.argv[1:], QUICK)
    if command.plugin:
        from model.activations import load_plugin

        load_plugin(command.plugin)
    tree = merge(command.config, command.flags)
    runs = expand(tree, str(command.config))

    from data.corpus import check_corpus
    from training.loop import train

    for config in runs.values():
        check_corpus(config.data)
    if not axes(tree):
        summary = train(runs[""], command.out)
        print(
            f"finished: {command.out}  val loss {summary['val/loss']:.4f} nats/token  "
            f"perplexity {summary['val/perplexity']:.2f}  {summary['val/bits_per_byte']:.4f} bits/byte"
        )
        return 0

    from study.compare import compare
    from study.executor import run_study

    failed = run_study(runs, tree, command.out, command.plugin)
    compare([command.out])
    if failed:
        print(f"failed: {', '.join(failed)}; log.txt of each says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(door(main))
