"""The score of a finished or half-finished run on the data it was made for."""

from pathlib import Path

from data.dataset import prepare
from errors import UserError
from training.device import autocast, pick_device, pick_precision
from training.evaluate import Score, evaluate
from training.folder import read_run_config
from training.sample import load_run


def score_run(folder: Path, device_name: str) -> dict[str, Score]:
    """Score the newest checkpoint of a run on its whole validation and test splits, and print it.

    Raises:
        UserError: it is not a run, has no checkpoint, or its data have changed since.
    """
    config = read_run_config(folder)
    device = pick_device(device_name)
    model, _, state = load_run(folder, device)
    data = prepare(config.data)
    if state["fingerprint"] != data.fingerprint:
        raise UserError(f"{folder} was trained on other data: the corpus {config.data.corpus} has changed since.")
    precision = pick_precision(config.train.precision, device)
    scores = {}
    for name, split in {"val": data.val, "test": data.test}.items():
        if split is None:
            continue
        with autocast(precision, device):
            scores[name] = score = evaluate(model, split, config.train.batch_size // config.train.accumulate)
        figures = (
            f"loss {score.loss:.4f} nats/token  perplexity {score.perplexity:.3f}  {score.bits_per_byte:.4f} bits/byte"
        )
        print(f"{name:<5} {figures}  ({len(split.tokens_N) - 1:,} tokens, step {state['step']}, {precision})")
    return scores
