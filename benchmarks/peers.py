"""nanoGPT (from a checkout, by path) and transformers' GPT-2 at a size of ours, with one training step of each."""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batches import train_batch
from model.config import ModelConfig
from model.gpt import GPT
from training.config import RunConfig
from training.device import autocast, pick_device, pick_precision
from training.optim import build_optimizers
from training.step import micro_batches, train_step

Step = Callable[[], object]


def peers(checkout: Path | None) -> list[str]:
    """Return the peers that are at hand: nanoGPT where its checkout is given, transformers where it is installed."""
    return ["nanoGPT"] * bool(checkout) + ["transformers"] * bool(importlib.util.find_spec("transformers"))


def nanogpt_module(checkout: Path) -> ModuleType:
    """Import nanoGPT's model.py under a name of its own."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def nanogpt(checkout: Path, config: ModelConfig, n_vocab: int) -> Any:
    """Return nanoGPT's network of that size, without biases and dropout."""
    module = nanogpt_module(checkout)
    with redirect_stdout(StringIO()):
        return module.GPT(
            module.GPTConfig(
                block_size=config.context,
                vocab_size=n_vocab,
                n_layer=config.n_layer,
                n_head=config.n_head,
                n_embd=config.d_model,
                dropout=0.0,
                bias=False,
            )
        )


def nanogpt_step(model: Any, tokens_N: np.ndarray, run: RunConfig) -> Step:
    """Return nanoGPT's training step as its train.py takes it: on a CPU in fp32, on a GPU in bf16, clipping at 1."""
    device = next(model.parameters()).device
    precision = "bf16" if device.type == "cuda" else "fp32"
    with redirect_stdout(StringIO()):
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device.type)
    model = torch.compile(model) if run.train.compile else model

    def step() -> None:
        for x_BT, y_BT in micro_batches(tokens_N, run, 0, device):
            with autocast(precision, device):
                _, loss = model(x_BT, y_BT)
            (loss / run.train.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gpt2(config: ModelConfig, n_vocab: int) -> Any:
    """Return transformers' GPT-2 of that size, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
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
    )


def gpt2_step(model: Any, tokens_N: np.ndarray, run: RunConfig) -> Step:
    """Return a training step of transformers' GPT-2 with torch's AdamW, fp32."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def step() -> None:
        x_BT, _ = train_batch(tokens_N, 0, 0, run.train.batch_size, run.model.context)
        model(input_ids=x_BT, labels=x_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(tokens_N: np.ndarray, run: RunConfig, n_vocab: int) -> Step:
    """Return our training step at that config."""
    device = pick_device(run.train.device)
    model = GPT(run.model, n_vocab).to(device)
    if run.train.compile:
        from training.step import compile_loss  # which earlier commits lack, whose steps trial.py takes too

        compile_loss(model)
    optimizers, precision = build_optimizers(model, run.train), pick_precision(run.train.precision, device)
    return lambda: train_step(model, optimizers, tokens_N, run, 0, 1e-3, precision)


def random_tokens(n_vocab: int) -> np.ndarray:
    """Return a text of random tokens, N, long enough for any batch here."""
    return np.random.default_rng(0).integers(0, n_vocab, 1_000_000).astype(np.uint16)


def prompt(n_vocab: int, batch: int) -> Tensor:
    """Return one random token for each row to begin with, B1."""
    return torch.randint(n_vocab, (batch, 1), generator=torch.Generator().manual_seed(0))
