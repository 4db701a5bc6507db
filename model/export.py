"""The network as Hugging Face's transformers knows it: Llama where the FFN gates, Arcee, down(act(up x)), where not.

Both have RMSNorm, rotary positions that turn the pairs (k, k + K/2) of a head, and no biases, as here. What they cannot
express exactly is refused.
"""

from typing import Any

from torch import Tensor

from errors import UserError
from model.activations import ACTIVATIONS, is_gated
from model.config import ModelConfig
from model.gpt import EPS, GPT, ffn_width

HIDDEN_ACT = {  # the registry's name -> the key of transformers.activations.ACT2FN that is exactly the same function
    "sigmoid": "sigmoid",
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swiglu": "silu",
    "identity": "linear",
    "tanh": "tanh",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "hard_swish": "hardswish",
    "mish": "mish",
    "relu2": "relu2",
    "glu": "sigmoid",
    "bilinear": "linear",
    "reglu": "relu",
    "geglu": "gelu",
    "tanhglu": "tanh",
    "relu2glu": "relu2",
}

# llama.cpp, vLLM and SGLang have their own code for both architectures, each with this `hidden_act` alone.
OWN_CODE = {"LlamaForCausalLM": "silu", "ArceeForCausalLM": "relu2"}


def architecture(activation: str) -> str:
    """Return the class of transformers that computes a network with this exportable activation."""
    return "LlamaForCausalLM" if is_gated(activation) else "ArceeForCausalLM"


def has_own_code(activation: str) -> bool:
    """Return whether llama.cpp, vLLM and SGLang compute an exportable activation with code of their own."""
    return HIDDEN_ACT[activation] == OWN_CODE[architecture(activation)]


def refusals(activation: str, tokenizer: str) -> dict[str, str]:
    """Return for each program why it refuses an exported model, or "" where it computes the same network.

    docs/export.md says how we know.

    Args:
        activation: an exportable name.
        tokenizer: the name in the config: bytes, bpe:N, gpt2.
    """
    reasons = {"transformers": "", "vLLM": "", "SGLang": "", "llama.cpp": ""}
    if not has_own_code(activation):
        base = architecture(activation)
        reasons["llama.cpp"] = f"it can compute {OWN_CODE[base]} alone in {base}, not {HIDDEN_ACT[activation]}"
    elif tokenizer != "gpt2":
        reasons["llama.cpp"] = f"it knows no tokenizer {tokenizer}; of ours, it knows gpt2 alone"
    return reasons


def check_exportable(config: ModelConfig) -> None:
    """Raise `UserError` with every reason why transformers' Llama and Arcee cannot express such a network."""
    reasons = []
    if config.activation not in HIDDEN_ACT:
        names = ", ".join(HIDDEN_ACT)
        reasons.append(f"activation {config.activation!r} {_why_not(config.activation)}; exportable are {names}")
    if config.norm != "rms":
        reasons.append(f"norm {config.norm!r}: they have RMSNorm alone")
    if not config.ffn_residual:
        reasons.append("ffn_residual = false: they add the FFN to its input")
    if config.ffn_bias != "none":
        reasons.append(f"ffn_bias {config.ffn_bias!r}: they put a bias on all matrices of the FFN or on none")
    if config.head != "softmax":
        reasons.append(f"head {config.head!r}: theirs is softmax")
    if reasons:
        lines = "".join(f"\n  {reason}" for reason in reasons)
        raise UserError(f"transformers' Llama and Arcee cannot express this network exactly:{lines}")


def _why_not(name: str) -> str:
    if name == "swiglu_clamped":
        return "changes the gated FFN's other factor too"
    if any(True for _ in ACTIVATIONS[name]().parameters()):
        return "holds weights of its own"
    return "is none of the functions of transformers' ACT2FN"


def to_transformers(model: GPT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the weights of the same network as LlamaForCausalLM or ArceeForCausalLM, in float32.

    The config lacks the ids of special tokens, which only a tokenizer knows. The output layer is the embedding, also
    where the weights hold a copy of it.

    Raises:
        UserError: as `check_exportable`.
    """
    c = model.config
    check_exportable(c)
    gated, base = is_gated(c.activation), architecture(c.activation)
    # transformers chooses the class by `model_type`, the other programs by the first architecture that they know. Under
    # this name, vLLM and SGLang run transformers' own code. llama.cpp's converter reads the first name alone, does not
    # know it, and stops. It reads no `hidden_act`, so that it would compute another network.
    others = [] if has_own_code(c.activation) else ["TransformersForCausalLM"]
    config = {
        "architectures": [*others, base],
        "model_type": "llama" if gated else "arcee",
        "hidden_act": HIDDEN_ACT[c.activation],
        "vocab_size": model.n_vocab,
        "max_position_embeddings": c.context,
        "num_hidden_layers": c.n_layer,
        "hidden_size": c.d_model,
        "intermediate_size": ffn_width(c.d_model, gated),
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_head,
        "head_dim": c.d_model // c.n_head,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rms_norm_eps": EPS,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "dtype": "float32",
    }
    ours, theirs = model.state_dict(), {}
    theirs["model.embed_tokens.weight"] = ours.pop("embedding.weight")[: model.n_vocab]
    theirs["model.norm.weight"] = ours.pop("norm.weight")
    for layer in range(c.n_layer):
        block, there = f"blocks.{layer}", f"model.layers.{layer}"
        theirs[f"{there}.input_layernorm.weight"] = ours.pop(f"{block}.attn_norm.weight")
        qkv = ours.pop(f"{block}.attn.qkv.weight").chunk(3)
        theirs |= {f"{there}.self_attn.{name}_proj.weight": part for name, part in zip("qkv", qkv, strict=True)}
        theirs[f"{there}.self_attn.o_proj.weight"] = ours.pop(f"{block}.attn.out.weight")
        theirs[f"{there}.post_attention_layernorm.weight"] = ours.pop(f"{block}.ffn_norm.weight")
        for name in ("gate", "up", "down") if gated else ("up", "down"):
            theirs[f"{there}.mlp.{name}_proj.weight"] = ours.pop(f"{block}.ffn.{name}.weight")
    if ours:
        raise ValueError(f"no place in transformers for {', '.join(ours)}")
    if has_own_code(c.activation) and not gated:
        # SGLang's Arcee has an output layer of its own. Without weights in the file, it would keep random ones.
        theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"].clone()
    return config, {name: tensor.detach().float().contiguous() for name, tensor in theirs.items()}
