"""Door: text from a checkpoint."""

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
    prompt: Annotated[
        str, arg(help='text to continue; empty: begin a document; one that begins with a dash: --prompt="-x y"')
    ] = ""
    tokens: Annotated[int, arg(help="tokens to write, each")] = 200
    temperature: Annotated[float, arg(help="0 takes the likeliest token; 1 samples as the model believes")] = 0.8
    top_k: Annotated[int, arg(help="keep the k likeliest tokens; 0 keeps all")] = 50
    top_p: Annotated[float, arg(help="keep the likeliest tokens up to this probability; 1 keeps all")] = 1.0
    seed: Annotated[int, arg(help="the same seed gives the same text")] = 0
    samples: Annotated[int, arg(help="texts to write, in one batch")] = 1
    device: Annotated[str, arg(help="auto, cuda, mps or cpu")] = "auto"
    plugin: Annotated[Path | None, arg(help="Python file that adds activations; it is executed")] = None

    def check(self) -> None:
        """Raise `UserError` for a value that is out of range."""
        rules = {
            "--tokens": (self.tokens, 1 <= self.tokens < 2**63, "1 to 2**63 - 1"),
            "--temperature": (self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            "--top-k": (self.top_k, self.top_k >= 0, "0 or more"),
            "--top-p": (self.top_p, 0 < self.top_p <= 1, "above 0, up to 1"),
            "--seed": (self.seed, 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
            "--samples": (self.samples, 1 <= self.samples < 2**63, "1 to 2**63 - 1"),
        }
        if wrong := [f"{flag} {value}: allowed is {allowed}" for flag, (value, ok, allowed) in rules.items() if not ok]:
            raise UserError("; ".join(wrong) + ".")


def main() -> None:
    """Print the samples, each after its prompt."""
    command = tyro.cli(Command, prog="python sample.py")
    command.check()
    from model.plugin import load_plugin  # late: torch takes over a second to import, --help must not
    from training.device import autocast, keep_memory, pick_device, pick_precision
    from training.folder import read_run_config
    from training.sample import load_run, sample

    if command.plugin:
        load_plugin(command.plugin)
    c, device = command, pick_device(command.device)
    keep_memory()
    model, tokenizer, _ = load_run(c.run, device)
    with autocast(pick_precision(read_run_config(c.run).train.precision, device), device):  # as the run samples itself
        texts = sample(model, tokenizer, c.prompt, c.tokens, c.temperature, c.top_k, c.top_p, c.seed, c.samples)
    print("\n\n----\n\n".join(c.prompt + text for text in texts))


if __name__ == "__main__":
    sys.exit(door(main))
