import itertools

import pytest
from pydantic import ValidationError

from model.activations import ACTIVATIONS
from model.config import ModelConfig


def test_every_name_is_valid():
    assert [ModelConfig(activation=name).activation for name in ACTIVATIONS] == list(ACTIVATIONS)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_head": 3}, r"d_model 128 does not split into 3 heads.*Nearest n_head that fits: 2\."),
        ({"d_model": 12, "n_head": 4}, r"4 heads of an even width.*Nearest n_head that fits: 3\."),
        ({"d_model": 129, "n_head": 1}, r"d_model must be even"),
        ({"d_model": 1_000_002, "n_head": 7}, r"Nearest n_head that fits: 3\."),
        ({"d_model": 2**62 + 2, "n_head": 3}, r"less than 1048576"),
        ({"d_model": 4, "n_head": 10**9}, r"Nearest n_head that fits: 2\."),
        ({"norm": "batch"}, "norm\n.*'rms' or 'none'"),
        ({"activation": "rellu"}, r"unknown activation 'rellu'\. Did you mean 'relu'\?"),
        ({"activation": ""}, r"unknown activation ''\. Allowed: sigmoid, relu"),
        ({"n_layers": 3}, "n_layers\n.*[Uu]nexpected keyword"),
    ],
)
def test_bad_config_is_explained(given, message):
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        ModelConfig(**given)


def test_nearest_number_of_heads_is_that_of_a_plain_search():
    for d_model, n_head in itertools.product(range(1, 61), range(1, 33)):
        if fits := [n for n in range(1, d_model + 1) if d_model % (2 * n) == 0]:
            if n_head in fits:
                continue
            message = f"fits: {min(fits, key=lambda n: abs(n - n_head))}\\."
        else:
            message = "must be even"
        with pytest.raises(ValidationError, match=message):
            ModelConfig(d_model=d_model, n_head=n_head)


@pytest.mark.parametrize("field", ["n_layer", "n_head", "d_model", "context"])
@pytest.mark.parametrize("value", [0, -4])  # other types: tests/training/test_config.py
def test_sizes_are_positive(field, value):
    with pytest.raises(ValidationError, match=rf"\n{field}\n"):
        ModelConfig(**{field: value})
