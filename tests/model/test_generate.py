"""Text with a cache is that of a plain loop without one, and draws follow the kept tokens' probabilities."""

import pytest
import torch
from helpers import loud_model, without_gradient
from scipy.stats import chisquare
from torch import Tensor

from model.config import ModelConfig
from model.generate import generate, next_token
from model.gpt import GPT
from model.heads import HEADS

CONTEXT = 8
PROBABILITY = torch.tensor([0.05, 0.40, 0.12, 0.25, 0.18])  # likeliest first: 1, 3, 4, 2, 0


def uncached(model: GPT, prompt: list[int], n_tokens: int) -> list[int]:
    """The likeliest continuation without a cache: the end of the prompt, and a full window drops to its latter half."""
    window, new = prompt[-model.config.context :], []
    with torch.no_grad():
        for _ in range(n_tokens):
            if len(window) > model.config.context:
                window = window[-max(model.config.context // 2, 1) :]
            new.append(int(model(torch.tensor([window]))[0, -1].argmax()))
            window.append(new[-1])
    return new


def prompts(*lengths: int) -> Tensor:
    return torch.randint(11, lengths, generator=torch.Generator().manual_seed(1))


def assert_greedy_is_uncached(model: GPT, prompt_BT: Tensor, n_tokens: int) -> None:
    new_BN = generate(model, prompt_BT, n_tokens, temperature=0)
    assert new_BN.tolist() == [uncached(model, row, n_tokens) for row in prompt_BT.tolist()]


@pytest.mark.parametrize(("length", "n_tokens"), [(3, CONTEXT - 2), (1, 30)])
def test_greedy_text_is_that_of_an_uncached_loop(activation, length, n_tokens):
    assert_greedy_is_uncached(loud_model(activation), prompts(4, length), n_tokens)


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_prompts_about_as_long_as_the_context_and_longer(length):
    model, prompt_BT = loud_model("swiglu"), prompts(4, length)
    assert_greedy_is_uncached(model, prompt_BT, 20)
    assert generate(model, prompt_BT, 20, temperature=0).unique().numel() > 5  # a text that varies


@pytest.mark.parametrize(
    "change",
    [
        *({"context": context} for context in (1, 2, 3)),
        *({"head": head} for head in HEADS),
        {"n_head": 1},
        {"norm": "none", "ffn_residual": False, "ffn_bias": "zero"},
    ],
    ids=str,
)
def test_networks_of_other_shapes(change):
    assert_greedy_is_uncached(loud_model(**change), prompts(3, 4), 20)


def test_text_in_bf16_is_as_likely_as_that_of_float32(activation):
    model, prompt_BT = loud_model(activation).float(), prompts(16, 3)
    for p in model.parameters():
        p.data = p.data.bfloat16().float()  # the weights themselves lose nothing
    with torch.autocast("cpu", torch.bfloat16):
        text_BT = torch.cat((prompt_BT, generate(model, prompt_BT, CONTEXT - 3, temperature=0)), 1)
    with torch.no_grad():
        logits_BTV = model(text_BT[:, :-1])[:, 2:]
    gap_BT = logits_BTV.amax(-1) - logits_BTV.gather(-1, text_BT[:, 3:, None]).squeeze(-1)
    assert gap_BT.max() < 0.25 * logits_BTV.std()  # the likeliest, or as good as
    assert (gap_BT == 0).float().mean() > 0.9


def test_no_tokens():
    assert generate(loud_model(), prompts(2, 3), 0).shape == (2, 0)


def test_seed_fixes_the_text():
    model, prompt_BT = loud_model(), prompts(3, 2)

    def text(seed: int) -> list[list[int]]:
        return generate(model, prompt_BT, 30, generator=torch.Generator().manual_seed(seed)).tolist()

    first = text(1)
    torch.manual_seed(99)
    assert text(1) == first
    assert text(2) != first


def test_generated_tokens_can_be_trained_on():
    model = loud_model()
    new_BT = generate(model, prompts(2, 3), CONTEXT)
    model(new_BT[:, :-1], new_BT[:, 1:]).backward()
    assert without_gradient(model) == []


def test_rows_that_pad_the_vocabulary_are_never_drawn():
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=6, context=4), n_vocab=2)  # 62 rows pad it
    new_BN = generate(model, torch.zeros(2000, 1, dtype=torch.long), 2, generator=torch.Generator().manual_seed(0))
    assert new_BN.unique().tolist() == [0, 1]


def draw(n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> Tensor:
    logits_BV = PROBABILITY.log().expand(n, -1) + 3  # a shift changes nothing
    return next_token(logits_BV, temperature, top_k, top_p, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
def test_four_ways_to_take_the_likeliest(rule):
    assert set(draw(200, **rule).tolist()) == {1}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({}, [1, 3, 4, 2, 0]),
        ({"temperature": 2.0}, [1, 3, 4, 2, 0]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [1, 3, 4, 2, 0]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.7}, [1, 3, 4]),
        ({"top_p": 0.55, "temperature": 0.5}, [1]),  # squares: .16 of .27
        ({"top_k": 2, "top_p": 0.6}, [1]),  # of the two kept, the first has 62 %
    ],
)
def test_draws_follow_the_softmax_of_the_kept_tokens(rule, kept):
    weight = PROBABILITY.double()[kept] ** (1 / rule.get("temperature", 1.0))
    counts = torch.bincount(draw(20_000, **rule), minlength=5)
    assert counts.sum() == counts[kept].sum() == 20_000
    assert (counts[kept] > 0).all()
    if len(kept) > 1:
        assert chisquare(counts[kept].numpy(), (20_000 * weight / weight.sum()).numpy()).pvalue > 1e-3


def test_rows_have_rules_of_their_own():
    logits_BV = torch.tensor([[5.0, 4.0, 0.0, 0.0], [0.0, 0.0, 4.0, 5.0]]).repeat(500, 1)
    drawn = next_token(logits_BV, 1.0, 2, 1.0, torch.Generator().manual_seed(0)).view(500, 2)
    assert [set(column.tolist()) for column in drawn.T] == [{0, 1}, {2, 3}]
    assert torch.equal(logits_BV[0], torch.tensor([5.0, 4.0, 0.0, 0.0]))
