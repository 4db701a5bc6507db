import pytest
import torch

from model.activations import ACTIVATIONS, pointwise

REPRESENTATIVES = ["relu", "gelu", "swiglu", "xielu", "plugin"]  # plain, smooth, gated, learnable, a user's own


@pytest.fixture(params=REPRESENTATIVES)
def activation(request, monkeypatch):
    """A name of each kind, for what depends on the structure of the network alone."""
    monkeypatch.setitem(ACTIVATIONS, "plugin", pointwise(lambda u: u / 2 + torch.sin(u)))
    return request.param
