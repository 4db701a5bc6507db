"""A run as a folder that Hugging Face's transformers loads without our code. Writing it needs no transformers."""

import json
from pathlib import Path
from typing import Any

import torch

from data.corpus import is_hub_name
from data.export import to_tokenizers
from data.tokenizer import END_OF_TEXT, Tokenizer
from errors import UserError
from files import write_folder, writing
from model.export import HIDDEN_ACT, architecture, check_exportable, has_own_code, refusals, to_transformers
from model.gpt import GPT
from model.size import size
from training.checkpoint import save_tensors
from training.config import RunConfig
from training.contents import SCORES, read_config, read_summary
from training.sample import load_model

SAVED_AGAIN = """
llama.cpp no longer refuses a folder that transformers has saved again. It then computes another network.
"""


def export_run(run: Path, folder: Path) -> None:
    """Write the newest checkpoint of a run as a new Hugging Face folder, with a model card.

    Prints which programs compute the same network, and how to load it.

    Raises:
        UserError: it is not a run, has no checkpoint, cannot be expressed exactly, or `folder` holds something already.
    """
    config = read_config(run)
    check_exportable(config.model)
    _check_free(folder)
    model, tokenizer, state = load_model(run, torch.device("cpu"))
    write_model_folder(folder, model, tokenizer, _card(run, folder, config, model, state))
    print(f"{run}, step {state['step']}, is in {folder}.")
    for program, reason in refusals(config.model.activation, tokenizer.spec).items():
        print(f"{program:12}  {_verdict(reason)}")
    print(f"With transformers installed, it loads by:\n{_loading(folder)}")


def write_model_folder(folder: Path, model: GPT, tokenizer: Tokenizer, card: str) -> None:
    """Write config, weights, tokenizer and card, the folder whole or not at all.

    Raises:
        UserError: the model cannot be expressed exactly, or `folder` holds something already or cannot be written.
    """
    config, weights = to_transformers(model)
    _check_free(folder)
    # One token separates documents: it begins each of them. It also pads a batch, where a mask hides it. config.json
    # names no padding: there, transformers would train this token's embedding no further.
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eot)
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    records = {
        "config.json": config | ends,
        # Without a `max_length`, transformers' pipeline writes 256 new tokens, past the context.
        "generation_config.json": {**ends, "pad_token_id": tokenizer.eot, "max_length": model.config.context},
        "tokenizer.json": to_tokenizers(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokens,
            "padding_side": "left",  # a text is continued at its right end
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


def _verdict(reason: str) -> str:
    return f"refuses it: {reason}" if reason else "computes the same network"


def _card(run: Path, folder: Path, config: RunConfig, model: GPT, state: dict[str, Any]) -> str:
    """Return the model card: what was trained, on what, how well, where it is right, how to load and upload it."""
    c = config.model
    corpus = Path(config.data.corpus).name if Path(config.data.corpus).is_absolute() else config.data.corpus
    env = dict.fromkeys(("precision", "commit", "torch", "python"), "unknown") | state["environment"]
    rows = {
        "activation": f"{c.activation} (`{architecture(c.activation)}` with `hidden_act` {HIDDEN_ACT[c.activation]})",
        "parameters": f"{size(c, model.n_vocab).total:,}, float32",
        "layers, heads, width, context": f"{c.n_layer}, {c.n_head}, {c.d_model}, {c.context}",
        "corpus": corpus,
        "tokenizer": f"{config.data.tokenizer}, {model.n_vocab:,} tokens",
        "trained on": f"{state['step'] * config.tokens_per_step:,} tokens (step {state['step']} of {config.steps})",
        "training": f"{config.train.optimizer}, learning rate {config.train.lr}, {env['precision']}, "
        f"seed {config.train.seed}",
    }
    scores = _scores(run, state["step"])
    for split, figures in scores.items():
        loss, perplexity, bits = figures.values()
        rows[split] = f"{loss:.4f} nats/token, perplexity {perplexity:.3f}, {bits:.4f} bits/byte"
    rows["versions"] = f"actgpt {env['commit'] or 'without git'}, torch {env['torch']}, python {env['python']}"
    programs = {program: _verdict(reason) for program, reason in refusals(c.activation, config.data.tokenizer).items()}
    return f"""---
{_metadata(c.activation, corpus, scores)}
---
# A small GPT whose feed-forward activation is {c.activation}

{_table(rows)}

## Where it is right

{_table(programs)}
{"" if has_own_code(c.activation) else SAVED_AGAIN}
## Load it

```python
{_loading(Path("."))}
```
`{END_OF_TEXT}` starts and ends a document; in a prompt it is that token unless `split_special_tokens=True`, which gives
the ids that training saw. The context is {c.context} tokens, prompt included.

## Upload it

Choose a licence in the first lines of this file. Then, in this folder:
```
hf upload YOUR-NAME/{folder.name} .
```
"""


def _table(rows: dict[str, str]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)


def _scores(run: Path, step: int) -> dict[str, dict[str, float]]:
    """Return the figures of each split, by the names in `SCORES`, where those of the weights of `step` are known."""
    summary = read_summary(run)
    if not summary or summary["steps"] != step:
        return {}
    scores = {}
    for split in ("val", "test"):
        figures = {name: summary.get(f"{split}/{name}") for name in SCORES}
        if None not in figures.values():  # those of a run that diverged are null
            scores[split] = figures
    return scores


def _metadata(activation: str, corpus: str, scores: dict[str, dict[str, float]]) -> str:
    """Return the card's metadata as the Hub reads it, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData  # late: only an export needs it

    results = []
    for split, figures in scores.items():
        for name, value in figures.items():
            result = EvalResult(
                task_type="text-generation",
                dataset_type=corpus,
                dataset_name=corpus,
                dataset_split={"val": "validation", "test": "test"}[split],
                metric_type=name,
                metric_name=SCORES[name],
                metric_value=value,
            )
            results.append(result)
    data = ModelCardData(
        license="unknown",  # the Hub's name for one that nobody has chosen yet
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["actgpt"],
        datasets=corpus.partition(":")[0] if is_hub_name(corpus) else None,
        model_name=f"actgpt-{activation}",
        eval_results=results or None,
    )
    return data.to_yaml()
