"""Door: text from a checkpoint."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from errors import UserError, door


@dataclass(frozen=True)
class Command:
    """Continue a prompt with the newest checkpoint of a run."""

    run: Annotated[Positional[Path], arg(help="run folder")]
    prompt: Annotated[str, arg(help='text to continue, none to begin a document; with a dash: --prompt="-x y"')] = ""
    tokens: Annotated[int, arg(help="tokens of each text")] = 200
    temperature: Annotated[float, arg(help="0 picks the likeliest token; 1 samples as the model predicts")] = 0.8
    top_k: Annotated[int, arg(help="sample from the k likeliest tokens; 0 from all")] = 50
    top_p: Annotated[float, arg(help="sample from the likeliest tokens up to this probability; 1 from all")] = 1.0
    seed: Annotated[int, arg(help="the same seed gives the same text")] = 0
    samples: Annotated[int, arg(help="number of texts, written in one batch")] = 1
    device: Annotated[str, arg(help="auto, cuda, mps or cpu")] = "auto"
    plugin: Annotated[Path | None, arg(help="Python file that adds activations; it is executed")] = None

    def check(self) -> None:
        """Raise `UserError` for a value that is out of range."""
        for name, allowed, rule in (
            ("tokens", 1 <= self.tokens < 2**63, "from 1 to 2**63 - 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            ("samples", 1 <= self.samples < 2**63, "from 1 to 2**63 - 1"),
        ):
            if not allowed:
                raise UserError(f"--{name}={getattr(self, name)}: must be {rule}.")


def main() -> None:
    """Print the samples, each after its prompt."""
    command = tyro.cli(Command, prog="python sample.py", use_underscores=True)
    command.check()

    from training.sample import sample_run  # late: torch takes over a second to import, and --help needs none

    texts = sample_run(**vars(command))
    print("\n\n----\n\n".join(command.prompt + text for text in texts))


if __name__ == "__main__":
    sys.exit(door(main))
