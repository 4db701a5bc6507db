"""The optimisers of a stack against torch's own, one run at a time."""

import pytest
import torch

from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.optim import build_optimizers
from training.stacked_optim import orthogonal, segments

LRS = [1e-3, 1e-2, 3e-2]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_each_run_moves_as_under_torch_s_optimiser_at_its_own_learning_rate(optimizer):
    config = TrainConfig(optimizer=optimizer, momentum=0.9)
    shape = ModelConfig(activation="prelu", n_layer=2, n_head=2, d_model=8, context=8)
    models = [GPT(shape, 11, seed) for seed in range(3)]
    own = [build_optimizers(model, config) for model in models]
    generator = torch.Generator().manual_seed(0)

    def torch_step(r):
        for p in models[r].parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for o in own[r]:
            for group in o.param_groups:
                group["lr"] = LRS[r]
            o.step()

    torch_step(0)  # what a run remembers from before joins the stack: 2, 1 and 0 steps
    torch_step(0)
    torch_step(1)
    parts = segments(models[0], config)
    names = [name for part in parts for name in part.shapes]
    assert sorted(names) == sorted(name for name, _ in models[0].named_parameters())

    def rows(part, value):
        return torch.stack([torch.cat([value(m, name).flatten() for name in part.shapes]) for m in models])

    weights = [rows(part, lambda m, name: m.get_parameter(name).detach()) for part in parts]
    states = []
    for model, optimizers in zip(models, own, strict=True):
        owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
        # copies: torch's own go on beside the stack's
        before = {n: owner[id(p)].state.get(p, {}) for n, p in model.named_parameters()}
        states.append({n: {k: v.clone() for k, v in state.items() if v is not None} for n, state in before.items()})
    for part, w_RN in zip(parts, weights, strict=True):
        part.take(states, w_RN)
    for _ in range(3):
        for r in range(3):
            torch_step(r)
        for part, w_RN in zip(parts, weights, strict=True):
            part.update(w_RN, rows(part, lambda m, name: m.get_parameter(name).grad), torch.tensor(LRS)[:, None])
    for part, w_RN in zip(parts, weights, strict=True):
        expected = rows(part, lambda m, name: m.get_parameter(name).detach())
        torch.testing.assert_close(w_RN, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(w_RN[0], w_RN[1])
    for state, model, optimizers in zip(states, models, own, strict=True):  # and they keep it, as views
        for o in optimizers:
            for p, slots in o.state.items():
                name = next(n for n, q in model.named_parameters() if q is p)
                for slot, value in slots.items():
                    torch.testing.assert_close(state[name][slot], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 32)])
def test_newton_schulz_makes_every_matrix_of_a_batch_nearly_orthogonal(shape):
    x_LMN = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    made = orthogonal(x_LMN, (3.4445, -4.7750, 2.0315), 5).float()
    singular = torch.linalg.svdvals(made)
    assert singular.min() > 0.3
    assert singular.max() < 1.3
    u, _, vh = torch.linalg.svd(x_LMN, full_matrices=False)
    torch.testing.assert_close(
        made, u @ (u.mT @ made @ vh.mT).diagonal(dim1=1, dim2=2).diag_embed() @ vh, atol=0.05, rtol=0
    )
