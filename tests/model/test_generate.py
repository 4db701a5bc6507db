import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from test_gpt import OPTIONS, loud_model
from torch import Tensor, nn

from model import decoder
from model.activations import ACTIVATIONS, Activation
from model.block import EPS
from model.decoder import decoding
from model.generate import generate, next_token
from model.gpt import GPT

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


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("length", "n_tokens"), [(3, CONTEXT - 2), (1, 30)])
def test_greedy_equals_an_uncached_loop(name, length, n_tokens):
    model, prompt_BT = loud_model(name), prompts(4, length)
    new_BN = generate(model, prompt_BT, n_tokens, temperature=0)
    assert new_BN.tolist() == [uncached(model, row, n_tokens) for row in prompt_BT.tolist()]


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_prompts_about_as_long_as_the_context_and_longer(length):
    model, prompt_BT = loud_model("swiglu"), prompts(4, length)
    new_BN = generate(model, prompt_BT, 20, temperature=0)
    assert new_BN.tolist() == [uncached(model, row, 20) for row in prompt_BT.tolist()]
    assert new_BN.unique().numel() > 5  # a text that varies


@pytest.mark.parametrize("context", [1, 2, 3])
def test_smallest_contexts(context):
    model, prompt_BT = loud_model("gelu", context=context), prompts(2, 4)
    expected = [uncached(model, row, 9) for row in prompt_BT.tolist()]
    assert generate(model, prompt_BT, 9, temperature=0).tolist() == expected


@pytest.mark.parametrize("change", [*OPTIONS, {"n_head": 1}])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_networks_of_other_shapes(name, change):
    model, prompt_BT = loud_model(name, **change), prompts(3, 2)
    for i, vector in enumerate(p for p in model.parameters() if p.ndim == 1):
        vector.data = vector.data.roll(i)  # no two norms are alike
    expected = [uncached(model, row, 20) for row in prompt_BT.tolist()]
    assert generate(model, prompt_BT, 20, temperature=0).tolist() == expected


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("change", OPTIONS)
@pytest.mark.parametrize("name", ["gelu", "swiglu", "torch's prelu"])
def test_networks_of_other_shapes_in_bf16_as_a_processor_that_has_it_reads_them(name, change, rows, monkeypatch):
    # the product alone is a stand-in, so that the dtypes between are seen on any processor
    monkeypatch.setattr(decoder, "BF16", True)
    monkeypatch.setattr(decoder, "PACK", lambda weight_OI, rows: weight_OI)
    monkeypatch.setattr(decoder, "onednn", F.linear)
    monkeypatch.setitem(ACTIVATIONS, "torch's prelu", Activation(nn.PReLU))  # leaves the dtypes to autocast
    model, prompt_BT = rounded(loud_model(name, **change)), prompts(rows, 3)
    with torch.autocast("cpu", torch.bfloat16):
        text_BT = torch.cat((prompt_BT, generate(model, prompt_BT, CONTEXT - 3, temperature=0)), 1)
    with torch.no_grad():
        logits_BTV = model(text_BT[:, :-1])[:, 2:]
    short_BT = logits_BTV.amax(-1) - logits_BTV.gather(-1, text_BT[:, 3:, None]).squeeze(-1)
    assert short_BT.max() < 0.25 * logits_BTV.std()


def test_rows_of_a_batch_are_as_alone():
    model, prompt_BT = loud_model("gelu"), prompts(5, 4)
    alone = [generate(model, row[None], 20, temperature=0)[0].tolist() for row in prompt_BT]
    assert generate(model, prompt_BT, 20, temperature=0).tolist() == alone


def test_no_tokens():
    assert generate(loud_model("gelu"), prompts(2, 3), 0).shape == (2, 0)


def test_seed_fixes_the_text():
    model, prompt_BT = loud_model("gelu"), prompts(3, 2)

    def text(seed: int) -> list[list[int]]:
        return generate(model, prompt_BT, 30, generator=torch.Generator().manual_seed(seed)).tolist()

    first = text(1)
    torch.manual_seed(99)
    assert text(1) == first
    assert text(2) != first


def test_generating_leaves_no_trace_in_the_model():
    model, prompt_BT = loud_model("gelu"), prompts(2, 4)
    before = model(prompt_BT)
    assert not generate(model, prompt_BT, 20).requires_grad
    assert torch.equal(model(prompt_BT), before)
    assert before.requires_grad


def rounded(model: GPT) -> GPT:
    """The model in float32 with matrices that bf16 holds exactly."""
    for p in model.float().parameters():
        p.data = p.data.bfloat16().float()
    return model


@pytest.mark.parametrize(("bf16", "pack"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_products_of_any_kind_follow_the_model_in_float32(name, bf16, pack, monkeypatch):
    if not pack:
        monkeypatch.setattr(decoder, "PACK", None)
    model, prompt_BT = rounded(loud_model(name)), prompts(16, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        text_BT = torch.cat((prompt_BT, generate(model, prompt_BT, CONTEXT - 3, temperature=0)), 1)
    with torch.no_grad():
        logits_BTV = model(text_BT[:, :-1])[:, 2:]
    short_BT = logits_BTV.amax(-1) - logits_BTV.gather(-1, text_BT[:, 3:, None]).squeeze(-1)
    assert short_BT.max() < 0.25 * logits_BTV.std()  # the likeliest, or as good as
    assert (short_BT == 0).float().mean() > (0.9 if bf16 else 0.999)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_products_and_norms_are_those_of_torch(threads, positions, rows, bf16, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model, reference = rounded(loud_model("swiglu")), nn.RMSNorm(12, EPS)
    reference.load_state_dict(model.norm.state_dict())
    x_BTD, weight_VD = torch.randn(rows, positions, model.config.d_model), model.embedding.weight
    half = bf16 and rows > 1  # one row is read in fp32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected = F.linear(x_BTD, weight_VD)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16), decoding(model, rows) as reader:
        found, normed = reader.scores(x_BTD), reader.norm(x_BTD)
    assert found.dtype == expected.dtype
    share = 0.01 if half else 1e-5
    torch.testing.assert_close(found, expected, rtol=share, atol=share)
    torch.testing.assert_close(normed, reference(x_BTD).detach())


@pytest.mark.parametrize("bf16", [False, True])
def test_what_generating_sets_ends_with_the_text_and_with_an_error(bf16, monkeypatch):
    model, prompt_BT = loud_model("swiglu").float(), prompts(20, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert generate(model, prompt_BT, 20).shape == (20, 20)
        monkeypatch.setattr(torch.nn.Module, "__call__", None)  # the activation's, which is called, now fails
        with pytest.raises(TypeError):
            generate(model, prompt_BT, 20)
        assert torch.is_autocast_enabled("cpu") == bf16
    assert torch.backends.mkldnn.enabled


def test_a_decoder_refuses_positions_that_it_cannot_read():
    with torch.no_grad(), decoding(loud_model("gelu"), 1) as reader:
        reader.read(prompts(1, 3))
        with pytest.raises(ValueError, match="one at a time"):
            reader.read(prompts(1, 2))
        reader.length = CONTEXT
        with pytest.raises(ValueError, match="exceed the context"):
            reader.read(prompts(1, 1))


def test_generated_tokens_can_be_trained_on():
    model = loud_model("gelu")
    new_BT = generate(model, prompts(2, 3), CONTEXT)
    model.train_loss(new_BT[:, :-1], new_BT[:, 1:]).backward()
    assert model.embedding.weight.grad is not None


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
        ({"temperature": 0.5}, [1, 3, 4, 2, 0]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 4}, [1, 3, 4, 2]),
        ({"top_k": 99}, [1, 3, 4, 2, 0]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.7}, [1, 3, 4]),
        ({"top_p": 0.9}, [1, 3, 4, 2]),
        ({"top_p": 0.55, "temperature": 0.5}, [1]),  # squares: .16 of .27
        ({"top_k": 2, "top_p": 0.6}, [1]),  # of the two kept, the first has 62 %
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),
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
