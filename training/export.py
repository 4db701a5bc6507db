"""A run as a folder that Hugging Face's transformers loads without our code. Writing it needs no transformers."""

import json
from pathlib import Path
from typing import Any

import torch

from data.export import to_tokenizers
from data.tokenizer import END_OF_TEXT, Tokenizer
from errors import UserError
from files import write_folder, writing
from model.export import check_exportable, to_transformers
from model.gpt import GPT
from model.size import size
from training.checkpoint import save_tensors
from training.config import RunConfig
from training.contents import read_config, read_summary
from training.sample import load_run


def export_run(run: Path, folder: Path) -> None:
    """Write the newest checkpoint of a run as a new Hugging Face folder, with a model card, and print how to load it.

    Raises:
        UserError: it is not a run, has no checkpoint, cannot be expressed exactly, or `folder` holds something already.
    """
    config = read_config(run)
    check_exportable(config.model)
    _check_free(folder)
    model, tokenizer, state = load_run(run, torch.device("cpu"))
    write_model_folder(folder, model, tokenizer, _card(run, config, model, state))
    print(f"{run}, step {state['step']}, is in {folder}. With transformers installed, it loads by:")
    print(_loading(folder))


def write_model_folder(folder: Path, model: GPT, tokenizer: Tokenizer, card: str) -> None:
    """Write config, weights, tokenizer and card, the folder whole or not at all.

    Raises:
        UserError: the model cannot be expressed exactly, or `folder` holds something already or cannot be written.
    """
    config, weights = to_transformers(model)
    _check_free(folder)
    # One token separates documents: it begins each of them.
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eot)
    tokens = dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT)
    records = {
        "config.json": config | ends,
        "generation_config.json": {**ends, "pad_token_id": tokenizer.eot},
        "tokenizer.json": to_tokenizers(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokens,
            "model_max_length": model.config.context,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
    }
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with writing(folder, way_out="Choose another --export."), write_folder(folder) as partial:
        for name, record in records.items():
            (partial / name).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")
        save_tensors(weights, partial / "model.safetensors", {"format": "pt"})


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; choose another --export.")


def _loading(folder: Path) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})"
    )


def _card(run: Path, config: RunConfig, model: GPT, state: dict[str, Any]) -> str:
    """Return the model card: what was trained, on what, how well, and how to load it."""
    c, corpus = config.model, config.data.corpus
    env = dict.fromkeys(("precision", "commit", "torch", "python"), "unknown") | state["environment"]
    theirs = to_transformers(model)[0]
    parameters = size(c, model.n_vocab).total
    rows = {
        "activation": f"{c.activation} ({theirs['architectures'][0]} with `hidden_act` {theirs['hidden_act']})",
        "parameters": f"{parameters:,}, float32",
        "layers, heads, width, context": f"{c.n_layer}, {c.n_head}, {c.d_model}, {c.context}",
        "corpus": Path(corpus).name if Path(corpus).is_absolute() else corpus,
        "tokenizer": f"{config.data.tokenizer}, {model.n_vocab:,} tokens",
        "trained on": f"{state['step'] * config.tokens_per_step:,} tokens (step {state['step']} of {config.steps})",
        "training": f"{config.train.optimizer}, learning rate {config.train.lr}, {env['precision']}, "
        f"seed {config.train.seed}",
    }
    if (summary := read_summary(run)) and summary["steps"] == state["step"]:  # the scores are those of these weights
        for split in ("val", "test"):
            scores = [summary.get(f"{split}/{name}") for name in ("loss", "perplexity", "bits_per_byte")]
            if None not in scores:  # those of a run that diverged are null
                loss, perplexity, bits = scores
                rows[split] = f"{loss:.4f} nats/token, perplexity {perplexity:.3f}, {bits:.4f} bits/byte"
    rows["versions"] = f"actgpt {env['commit'] or 'without git'}, torch {env['torch']}, python {env['python']}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [actgpt]
---
# A small GPT whose feed-forward activation is {c.activation}

| | |
|---|---|
{table}

```python
{_loading(Path("."))}
```
`{END_OF_TEXT}` starts and ends a document; in a prompt it is that token unless `split_special_tokens=True`, which gives
the ids that training saw. The context is {c.context} tokens, prompt included.
"""
