"""The final figures of a run, in `summary.json`."""

import dataclasses
from typing import Any

from data.dataset import Dataset
from model.activations import is_gated
from model.gpt import GPT
from model.size import size
from training.config import RunConfig
from training.device import peak_memory, speed_figures
from training.evaluate import evaluating
from training.sample import sample


def sample_of(model: GPT, data: Dataset) -> str:
    """Return the text that a trained model writes for a new document, always with the same random numbers."""
    # As sample.py does without flags, but longer.
    with evaluating(model):
        return sample(model, data.tokenizer, prompt="", n_tokens=300, temperature=0.8, top_k=50, seed=0)[0]


def summary_of(
    config: RunConfig,
    model: GPT,
    text: str,
    data: Dataset,
    scores: dict[str, float | None],
    seconds: float,
    env: dict[str, Any],
) -> dict[str, Any]:
    """Return the summary of a run that has taken all its steps; `seconds` is the time of training."""
    tokens = config.steps * config.tokens_per_step
    count = dataclasses.asdict(size(config.model, data.tokenizer.n_vocab))
    return {
        # Beyond 700 nats per token a loss has no perplexity that a number could hold.
        "status": "diverged" if scores["val/perplexity"] is None else "finished",
        "activation": config.model.activation,
        "gated": is_gated(config.model.activation),
        "steps": config.steps,
        "tokens": tokens,
        **scores,
        **speed_figures(tokens / seconds, count["flops_per_token"], env),
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


def describe(summary: dict[str, Any]) -> str:
    """Return the final scores in one line, as the door prints them."""
    if summary["status"] == "diverged":
        return "diverged: the validation loss is not finite, or beyond 700 nats/token. Lower train.lr."
    return (
        f"val loss {summary['val/loss']:.4f} nats/token  perplexity {summary['val/perplexity']:.2f}  "
        f"{summary['val/bits_per_byte']:.4f} bits/byte"
    )
