"""What a finished run says of itself, in `summary.json`."""

import dataclasses
from typing import Any

from data.dataset import Dataset
from model.activations import ACTIVATIONS
from model.gpt import GPT
from model.size import size
from training.config import RunConfig
from training.device import autocast, peak_memory
from training.evaluate import evaluating
from training.sample import sample


def sample_of(model: GPT, data: Dataset, precision: str) -> str:
    """Return what a trained model writes from the beginning of a document on, always by the same random numbers."""
    with evaluating(model), autocast(precision, model.embedding.weight.device):
        return sample(model, data.tokenizer, prompt="", n_tokens=300, temperature=0.8, top_k=50, seed=0)[0]


def summary_of(
    config: RunConfig,
    model: GPT,
    text: str,
    data: Dataset,
    scores: dict[str, float],
    seconds: float,
    env: dict[str, Any],
) -> dict[str, Any]:
    """Return a finished run's summary: its scores, what it cost in `seconds` of training, and how it came about."""
    tokens = config.steps * config.tokens_per_step
    count = dataclasses.asdict(size(config.model, data.tokenizer.n_vocab))
    return {
        "status": "finished",
        "activation": config.model.activation,
        "gated": ACTIVATIONS[config.model.activation].gated,
        "steps": config.steps,
        "tokens": tokens,
        **scores,
        "perf/tokens_per_s": tokens / seconds,
        "perf/train_seconds": seconds,
        "perf/peak_memory_bytes": peak_memory(model.embedding.weight.device),
        **{f"params/{part}": count[part] for part in ("total", "embedding", "block", "ffn")},
        "flops/token": count["flops_per_token"],
        "data/fingerprint": data.fingerprint,
        "data/train_tokens": len(data.train.tokens_N),
        "sample/prompt": "",
        "sample/text": text,
        "environment": env,
    }
