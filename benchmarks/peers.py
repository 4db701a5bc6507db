"""The peers at a size of ours: nanoGPT, from a checkout, and transformers' GPT-2; each with its training step."""

import importlib.util
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import Work

from model.config import ModelConfig
from training.config import RunConfig
from training.device import autocast
from training.step import split_batch

BETAS = (0.9, 0.99)


def peers(checkout: Path | None) -> list[str]:
    """Return the peers at hand: nanoGPT if its checkout is given, transformers if it is installed."""
    found = ["nanoGPT"] if checkout else []
    if importlib.util.find_spec("transformers"):
        found.append("transformers")
    return found


def nanogpt_model(checkout: Path, config: ModelConfig, n_vocab: int) -> Any:
    """Return nanoGPT's network of that size, without biases and dropout."""
    # Its module is called `model`, as our package: it is loaded under another name.
    spec = importlib.util.spec_from_file_location("nanogpt", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    shape = module.GPTConfig(
        block_size=config.context,
        vocab_size=n_vocab,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.d_model,
        dropout=0.0,
        bias=False,
    )
    with redirect_stdout(StringIO()):
        return module.GPT(shape)


def nanogpt_step(model: Any, tokens_N: np.ndarray, run: RunConfig) -> Work:
    """Return nanoGPT's training step as its train.py takes it: fp32 on a CPU, bf16 on a GPU, gradients clipped at 1."""
    device = next(model.parameters()).device
    precision = "bf16" if device.type == "cuda" else "fp32"
    with redirect_stdout(StringIO()):
        optimizer = model.configure_optimizers(0.1, 1e-3, BETAS, device.type)
    if run.train.compile:
        model = torch.compile(model)

    def step() -> None:
        for x_BT, y_BT in split_batch(tokens_N, run, 0, device):
            with autocast(precision, device):
                _, loss = model(x_BT, y_BT)
            (loss / run.train.accumulate).backward()
        _update(model, optimizer)

    return step


def gpt2_model(config: ModelConfig, n_vocab: int) -> Any:
    """Return transformers' GPT-2 of that size, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel  # an optional dependency

    shape = GPT2Config(
        vocab_size=n_vocab,
        n_positions=config.context,
        n_embd=config.d_model,
        n_layer=config.n_layer,
        n_head=config.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(shape)


def gpt2_step(model: Any, tokens_N: np.ndarray, run: RunConfig) -> Work:
    """Return a training step of transformers' GPT-2 with torch's AdamW, fp32."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=BETAS, weight_decay=0.1)

    def step() -> None:
        for x_BT, _ in split_batch(tokens_N, run, 0, torch.device("cpu")):
            model(input_ids=x_BT, labels=x_BT).loss.backward()
        _update(model, optimizer)

    return step


def _update(model: Any, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def random_tokens(n_vocab: int) -> np.ndarray:
    """Return a text of random tokens, N, long enough for any batch here."""
    return np.random.default_rng(0).integers(0, n_vocab, 1_000_000).astype(np.uint16)
