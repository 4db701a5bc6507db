"""Door: train one run, or every run of a study."""

import sys
from pathlib import Path

from errors import door

QUICK = Path(__file__).parent / "configs" / "quick.toml"


def main() -> int:
    """Read the command line and train; returns the exit code."""
    from study.config import (  # late, since a study's processes import this file too
        expand,
        is_study,
        merge,
        parse_command,
        study_config,
    )

    command = parse_command(sys.argv[1:], QUICK)
    if command.plugin:
        from model.activations import load_plugin

        load_plugin(command.plugin)
    tree, source = merge(command.config, command.flags), f"{command.config} and the flags"
    runs = expand(tree, source)
    study_config(tree, source)

    if command.dry_run:
        from study.estimate import dry_run

        dry_run(tree, source)
        return 0
    if not is_study(tree):
        from training.loop import train

        summary = train(runs[""], command.out)
        print(
            f"finished: {command.out}  val loss {summary['val/loss']:.4f} nats/token  "
            f"perplexity {summary['val/perplexity']:.2f}  {summary['val/bits_per_byte']:.4f} bits/byte"
        )
        return 0

    from study.compare import compare
    from study.protocol import run_study

    failed = run_study(tree, command.out, command.plugin, source)
    compare([command.out])
    if failed:
        print(f"failed: {', '.join(failed)}; log.txt of each says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(door(main))
