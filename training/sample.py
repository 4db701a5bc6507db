"""Text from a model: the tokens of a prompt in, text out."""

from pathlib import Path
from typing import Any

import torch

from data.tokenizer import Tokenizer
from errors import UserError
from files import own_file
from model.generate import generate
from model.gpt import GPT
from model.plugin import load_plugin
from training import checkpoint
from training.contents import read_config, read_state
from training.device import keep_memory, pick_device
from training.limits import check_memory


def load_model(folder: Path, device: torch.device) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Return the model, the tokenizer and the state of a run's newest intact checkpoint.

    Raises:
        UserError: it is not a run folder, or has no checkpoint yet.
    """
    if (folder / "study.toml").exists():
        runs = ", ".join(sorted(str(config.parent) for config in folder.glob("*/config.toml")))
        raise UserError(f"{folder} is a study. Name one of its runs: {runs or 'none has begun yet'}.")
    config = read_config(folder)
    check_memory(config, training=False)

    def load(path: Path) -> tuple[GPT, Tokenizer, dict[str, Any]]:
        tokenizer, state = Tokenizer.load(path / "tokenizer.json"), read_state(path, config)
        with own_file(path / "tokenizer.json"):
            if tokenizer.spec != config.data.tokenizer:
                raise ValueError(f"it is {tokenizer.spec}, and the run has {config.data.tokenizer}")
        # As in training: no checkpoint holds the random numbers that an activation of a plugin draws when it is made.
        torch.manual_seed(config.train.seed)
        model = GPT(config.model, tokenizer.n_vocab, config.train.seed)
        checkpoint.load_weights(path, model)
        return model.to(device).eval(), tokenizer, state

    loaded = checkpoint.load_newest(folder / "checkpoints", load)
    if loaded is None:
        if (folder / "summary.json").exists():
            raise UserError(
                f"{folder} has finished, but its checkpoints are gone. Restore {folder / 'checkpoints'}, or train it "
                f"again: python train.py {folder / 'config.toml'} --out=ANOTHER"
            )
        raise UserError(f"{folder} has no checkpoint yet; train it first.")
    return loaded


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    count: int = 1,
) -> list[str]:
    """Return `count` continuations of `prompt`, without it, in fp32. An empty prompt begins a document."""
    # Not in bf16: one new token at a time is too little work to pay for the casts. On two CPU cores with AMX, fp32 has
    # 3.0 times the speed of bf16 for one text, and 1.6 times for 16 (docs/log.md).
    device = model.embedding.weight.device
    # In training every document begins with the separator.
    ids = tokenizer.encode(prompt) or [tokenizer.eot]
    prompt_BT = torch.tensor([ids], device=device).expand(count, -1)
    generator = torch.Generator(device).manual_seed(seed)
    new_BN = generate(model, prompt_BT, n_tokens, temperature, top_k, top_p, generator)
    return [tokenizer.decode(row) for row in new_BN.tolist()]


def sample_run(
    run: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    samples: int,
    device: str,
    plugin: Path | None,
) -> list[str]:
    """Return continuations of `prompt` by the newest checkpoint of a run.

    Raises:
        UserError: as `load_model`; or there is no such device, or the weights are not finite.
    """
    if plugin:
        load_plugin(plugin)
    place = pick_device(device)
    keep_memory()
    model, tokenizer, _ = load_model(run, place)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise UserError(f"{run} diverged: its weights are not finite. Train another run with a lower train.lr.")
    return sample(model, tokenizer, prompt, tokens, temperature, top_k, top_p, seed, samples)
