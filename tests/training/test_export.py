"""A run as a folder of Hugging Face's transformers: the same logits, the same text, the same ids."""

import functools
import json
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TOKENIZER, rewrite, texts_of_all_kinds
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import eval as eval_door  # the builtin keeps its name
from data.encode import Split
from data.tokenizer import END_OF_TEXT, train_tokenizer
from errors import UserError, door
from model.activations import ACTIVATIONS, is_gated
from model.config import ModelConfig
from model.export import HIDDEN_ACT, check_exportable, refusals, to_transformers
from model.generate import generate
from model.gpt import GPT
from training.evaluate import evaluate
from training.export import export_run, write_model_folder
from training.loop import train
from training.sample import load_model

LEARNED = {"prelu", "swish_beta", "xielu", "polyrelu", "dyt", "sigmoid_affine", "snake"}
U = torch.linspace(-30, 30, 6001, dtype=torch.float64)


def tiny_gpt(activation, n_vocab=257):
    """A model far from its start, whose logits depend on every weight."""
    model = GPT(ModelConfig(activation=activation, n_layer=2, n_head=2, d_model=24, context=80), n_vocab).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(drawn + 1 if parameter.ndim == 1 else drawn)
    return model


def metadata(card) -> Any:
    """The metadata of a model card as the Hub's own library reads them."""
    return ModelCard(card).data


@functools.cache
def auto() -> Any:
    """Import transformers once, and late: it is slow."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM, transformers.AutoTokenizer


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_exported_is_exactly_what_transformers_has(name):
    from transformers.activations import ACT2FN

    def equal(theirs):
        act = ACTIVATIONS[name]()
        ours_N = act.double()(U, torch.ones_like(U)) if is_gated(name) else act.double()(U)
        return torch.allclose(ours_N, ACT2FN[theirs](U), rtol=1e-12, atol=1e-14)

    if name in HIDDEN_ACT:
        assert equal(HIDDEN_ACT[name])
        assert not is_gated(name) or torch.equal(ACTIVATIONS[name]()(U, U), ACTIVATIONS[name]()(U, U * 0 + 1) * U)
    elif name not in LEARNED and name != "swiglu_clamped":
        assert not [theirs for theirs in ACT2FN if theirs not in LEARNED and equal(theirs)]


@pytest.mark.parametrize("name", HIDDEN_ACT)
def test_transformers_computes_the_same(name, tmp_path):
    model = tiny_gpt(name)  # 257 tokens: inside, the embedding has 320 rows
    write_model_folder(tmp_path / "hf", model, TOKENIZER, "")
    theirs, problems = auto()[0].from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(problems.values())  # no weight is missing or left over
    assert type(theirs).__name__ == ("LlamaForCausalLM" if is_gated(name) else "ArceeForCausalLM")
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert (theirs.dtype, theirs.config.max_position_embeddings) == (torch.float32, 80)
    tokens_BT = torch.randint(257, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours_BTV, theirs_BTV = model(tokens_BT), theirs(tokens_BT).logits
    assert ours_BTV.std() > 0.5
    torch.testing.assert_close(theirs_BTV, ours_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["swiglu", "relu"])
def test_transformers_generates_and_scores_the_same(name, tmp_path):
    model, tokenizer = tiny_gpt(name), TOKENIZER
    write_model_folder(tmp_path / "hf", model, tokenizer, "")
    theirs = auto()[0].from_pretrained(tmp_path / "hf")
    prompt_BT = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    # A prompt without token 256, which transformers takes for padding.
    new_BT = theirs.generate(prompt_BT, max_length=80, do_sample=False, eos_token_id=None)[:, 16:]
    assert new_BT.tolist() == generate(model, prompt_BT, 64, temperature=0).tolist()

    text = "".join(texts_of_all_kinds(300))[:4000]
    ids = [tokenizer.eot, *auto()[1].from_pretrained(tmp_path / "hf")(text)["input_ids"]]
    nats, context = [], model.config.context
    for start in range(0, len(ids) - 1, context):  # one window at a time, each token but the first once
        window = torch.tensor(ids[start : start + context + 1])
        with torch.no_grad():
            nats.append(F.cross_entropy(theirs(window[None, :-1]).logits[0], window[1:], reduction="sum"))
    ours = evaluate(model, Split(np.array([tokenizer.eot, *tokenizer.encode(text)]), len(text.encode()), 1), 4)
    assert ours.loss > 5
    assert (torch.stack(nats).sum() / (len(ids) - 1)).item() == pytest.approx(ours.loss, abs=1e-4)


@pytest.mark.parametrize("name", HIDDEN_ACT)
def test_llama_cpp_gets_a_name_that_it_knows_where_it_computes_the_same(name):
    # As its converter does, which reads no hidden_act: the first architecture decides what is computed.
    computed = {"LlamaForCausalLM": "silu", "ArceeForCausalLM": "relu2"}
    config, _ = to_transformers(tiny_gpt(name))
    first = config["architectures"][0]
    assert computed.get(first) in (None, config["hidden_act"])
    assert bool(refusals(name, "gpt2")["llama.cpp"]) == (first not in computed)
    assert refusals(name, "bpe:1024")["llama.cpp"]
    assert not any(refusals(name, "bytes")[program] for program in ("transformers", "vLLM", "SGLang"))


def test_the_file_of_relu2_holds_the_output_layer_of_sglangs_arcee():
    _, weights = to_transformers(tiny_gpt("relu2"))
    torch.testing.assert_close(weights["lm_head.weight"], weights["model.embed_tokens.weight"], rtol=0, atol=0)


def test_the_default_pipeline_fills_the_context_and_no_more(tmp_path):
    from transformers import pipeline

    write_model_folder(tmp_path / "hf", tiny_gpt("relu"), TOKENIZER, "")
    write: Any = pipeline("text-generation", model=str(tmp_path / "hf"), device="cpu")
    torch.manual_seed(0)
    drawn = write(["the king"] * 8, return_tensors=True)
    assert max(len(text["generated_token_ids"]) for (text,) in drawn) == 80
    prompts = ["the king", "O Romeo, Romeo!", "a"]
    together = write(prompts, batch_size=3, do_sample=False, return_tensors=True)
    for prompt, (text,) in zip(prompts, together, strict=True):
        (alone,) = write(prompt, do_sample=False, return_tensors=True)
        ids = text["generated_token_ids"]
        padding = 15 - len(prompt)  # it counts towards the length
        assert ids == [TOKENIZER.eot] * padding + alone["generated_token_ids"][: 80 - padding]


@pytest.mark.parametrize("n_vocab", [320, 257, 65])
def test_the_rows_that_pad_the_vocabulary_are_not_exported(n_vocab):
    config, weights = to_transformers(tiny_gpt("gelu", n_vocab))
    assert config["vocab_size"] == len(weights["model.embed_tokens.weight"]) == n_vocab


def test_the_folder_holds_the_tokenizer_and_its_special_token(tmp_path):
    tokenizer = train_tokenizer("bpe:600", iter(texts_of_all_kinds(2000)))
    write_model_folder(tmp_path / "hf", tiny_gpt("relu", tokenizer.n_vocab), tokenizer, "")
    theirs = auto()[1].from_pretrained(tmp_path / "hf")
    text = "O Romeo, 'tis 1234\n\n  é\U0001f600 , don't"
    read = theirs(text)
    assert read["input_ids"] == tokenizer.encode(text)
    assert set(read) == {"input_ids", "attention_mask"}
    assert theirs.decode(read["input_ids"]) == text
    assert (len(theirs), theirs.model_max_length) == (tokenizer.n_vocab, 80)
    assert (theirs.eos_token, theirs.eos_token_id, theirs.bos_token_id) == (END_OF_TEXT, tokenizer.eot, tokenizer.eot)
    assert (theirs.pad_token, theirs.pad_token_id, theirs.padding_side) == (END_OF_TEXT, tokenizer.eot, "left")
    assert theirs(f"a{END_OF_TEXT}")["input_ids"] == [*tokenizer.encode("a"), tokenizer.eot]
    literal = theirs(f"a{END_OF_TEXT}", split_special_tokens=True)["input_ids"]
    assert literal == tokenizer.encode(f"a{END_OF_TEXT}")
    model = auto()[0].from_pretrained(tmp_path / "hf")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eot
    assert model.generate(max_length=3)[0, 0] == tokenizer.eot
    # With a padding token, torch's embedding would give that row no gradient.
    assert model.config.pad_token_id is None


REFUSED = {
    "softsign": ({"activation": "softsign"}, "none of the functions of transformers' ACT2FN"),
    "xielu": ({"activation": "xielu"}, "weights of its own"),
    "swiglu_clamped": ({"activation": "swiglu_clamped"}, "other factor"),
    "none": ({"norm": "none"}, "RMSNorm alone"),
    "residual": ({"ffn_residual": False}, "add the FFN to its input"),
    "bias": ({"ffn_bias": "zero"}, "bias"),
    "head": ({"head": "sigsoftmax"}, "softmax"),
}


@pytest.mark.parametrize("changes", REFUSED)
def test_what_transformers_cannot_express_is_refused_with_the_reason(changes, tmp_path):
    options, reason = REFUSED[changes]
    config = ModelConfig(**{"n_layer": 1, "d_model": 16, "context": 8} | options)
    with pytest.raises(UserError, match=reason):
        write_model_folder(tmp_path / "hf", GPT(config, 257), TOKENIZER, "")
    assert not list(tmp_path.iterdir())


def test_every_name_is_exportable_or_refused_and_all_reasons_are_given():
    for name in ACTIVATIONS.keys() - HIDDEN_ACT.keys():
        with pytest.raises(UserError, match="exportable are sigmoid, relu, gelu"):
            check_exportable(ModelConfig(activation=name))
    with pytest.raises(UserError, match=r"(?s)softsign.*norm 'none'.*ffn_residual"):
        check_exportable(ModelConfig(activation="softsign", norm="none", ffn_residual=False))


def test_a_weight_without_a_place_is_an_error(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "relu", torch.nn.PReLU)
    with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.act\.weight"):
        to_transformers(GPT(ModelConfig(activation="relu"), 257))


def exported(monkeypatch, *arguments):
    """Call the door where transformers is not installed, and return its exit code."""
    with monkeypatch.context() as patch:
        for absent in ("transformers", "tokenizers"):
            patch.setitem(sys.modules, absent, None)
        for room in ("data", "model", "training"):  # imported afresh
            patch.delitem(sys.modules, f"{room}.export", raising=False)
        patch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
        return door(eval_door.main)


def test_a_run_is_exported_through_the_door(tiny, tmp_path, monkeypatch, capsys, no_sample):
    run, folder = tmp_path / "run", tmp_path / "new" / "hf"
    summary = train(tiny(model={"activation": "swiglu"}), run)
    capsys.readouterr()
    assert exported(monkeypatch, run, "--export", folder) == 0
    printed = capsys.readouterr().out
    assert not [path for path in folder.parent.iterdir() if path != folder]
    found = {}
    exec(printed[printed.index("from transformers") :], found)
    model, tokenizer, _ = load_model(run, torch.device("cpu"))
    ids = tokenizer.encode("the king")
    assert found["tokenizer"]("the king")["input_ids"] == ids
    with torch.no_grad():
        torch.testing.assert_close(found["model"](torch.tensor([ids])).logits, model(torch.tensor([ids])))
    card = (folder / "README.md").read_text()
    assert f"{summary['val/loss']:.4f} nats/token, perplexity {summary['val/perplexity']:.3f}" in card
    assert f"{summary['val/bits_per_byte']:.4f} bits/byte" in card
    for part in (f"{summary['params/total']:,}", "1,280 tokens", "corpus.txt", "swiglu", f"torch {torch.__version__}"):
        assert part in card
    assert str(tmp_path) not in card
    for program, reason in refusals("swiglu", "bytes").items():
        assert f"| {program} | {'refuses it: ' + reason if reason else 'computes the same network'} |" in card
        assert re.search(rf"^{program} +{'refuses it: ' + reason if reason else 'computes the same'}", printed, re.M)
    assert "hf upload YOUR-NAME/hf ." in card
    assert "saved again" not in card
    data = metadata(card)
    assert (data.license, data.library_name, data.datasets) == ("unknown", "transformers", None)
    figures = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert figures == {
        (split, name): summary[f"{key}/{name}"]
        for key, split in (("val", "validation"), ("test", "test"))
        for name in ("loss", "perplexity", "bits_per_byte")
    }
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert exported(monkeypatch, run, "--export", folder) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (path,) = run.glob("checkpoints/*20")
    state = json.loads((path / "state.json").read_text())
    del state["environment"]  # as in a checkpoint of before
    rewrite(path, "state.json", lambda file: file.write_text(json.dumps(state)))
    (tmp_path / "empty").mkdir()
    assert exported(monkeypatch, run, "--export", tmp_path / "empty") == 0
    assert load_file(tmp_path / "empty" / "model.safetensors").keys() == dict(found["model"].named_parameters()).keys()


def test_the_card_of_a_run_without_figures_has_none(tiny, tmp_path, no_sample):
    train(tiny(), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000020" / "state.json").unlink()  # the figures are of another step
    train(tiny(train={"lr": 1e38, "warmup": 0.0, "tokens": 64}), tmp_path / "diverged")  # its figures are null
    for name, step in (("run", "step 18 of 20"), ("diverged", "step 1 of 1")):
        export_run(tmp_path / name, tmp_path / f"hf-{name}")
        card = (tmp_path / f"hf-{name}" / "README.md").read_text()
        assert step in card
        assert "nats" not in card
        assert "llama.cpp no longer refuses a folder that transformers has saved again." in card
        assert metadata(card).eval_results is None


def test_the_card_names_a_data_set_of_the_hub(tiny, tmp_path, no_sample):
    config, run = tiny(), tmp_path / "run"
    train(config, run)
    (path,) = run.glob("checkpoints/*20")

    def rename(file):
        file.write_text(file.read_text().replace(config.data.corpus, "roneneldan/TinyStories"))

    (run / "summary.json").unlink()  # it holds the hash of the config
    rename(run / "config.toml")
    rewrite(path, "state.json", rename)
    export_run(run, tmp_path / "hf")
    assert metadata((tmp_path / "hf" / "README.md").read_text()).datasets == "roneneldan/TinyStories"
