"""The arithmetic of the probes, on tensors. N tokens, F units, R rows; further legend in model/gpt.py."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SATURATED = 0.05  # a slope below this share of the steepest one
DEAD = 0.001  # a unit that is active on a smaller share of the tokens
SPECTRUM_TOKENS = 128  # an eigenvalue problem costs the cube
BINS = 15  # of the calibration error


def hidden_moments(h_NF: Tensor) -> dict[str, Tensor]:
    """Return mean and sd over everything, and the mean share (E h)²/E[h²] per unit, averaged over units that fire."""
    mean_F, square_F = h_NF.mean(0), h_NF.square().mean(0)
    return {
        "mean": h_NF.mean(),
        "sd": h_NF.std(correction=0),
        "mean_share": (mean_F.square() / square_F).nanmean(),
    }


def slopes(act: nn.Module, u_NF: Tensor) -> dict[str, Tensor]:
    """Return E[φ'] and E[φ'²] at the pre-activations, the saturated share of them, and the share of dead units.

    Saturated: |φ'| < 5 % of its maximum over u = −5 … 5 (some derivatives have no bound). Dead: a unit that is not
    saturated on less than 0.1 % of the tokens; below 1,000 tokens, on none.
    """
    grid_GF = torch.linspace(-5, 5, 101, dtype=u_NF.dtype, device=u_NF.device)[:, None].expand(-1, u_NF.shape[1])
    with torch.enable_grad():
        # One call for both, since an activation may hold weights for each unit.
        u_NF = torch.cat((u_NF.detach(), grid_GF)).requires_grad_()
        (slope_NF,) = torch.autograd.grad(act(u_NF).sum(), u_NF)
    slope_NF, grid_GF = slope_NF[: -len(grid_GF)], slope_NF[-len(grid_GF) :]
    active_NF = slope_NF.abs() >= SATURATED * grid_GF.abs().amax(0)
    return {
        "slope": slope_NF.mean(),
        "slope_square": slope_NF.square().mean(),
        "saturated": 1 - active_NF.float().mean(),
        "dead": (active_NF.float().mean(0) < DEAD).float().mean(),
    }


def spectrum(h_NF: Tensor) -> dict[str, Tensor]:
    """Return λmax/mean λ and the effective rank of hᵀh, from `SPECTRUM_TOKENS` tokens spread over the N.

    The effective rank is exp of the entropy of λ/Σλ (Roy & Vetterli, 2007). The mean is over all F eigenvalues;
    with more units than tokens, some are zero.
    """
    h_NF = h_NF[:: max(len(h_NF) // SPECTRUM_TOKENS, 1)][:SPECTRUM_TOKENS]
    # h hᵀ and hᵀh have the same eigenvalues but for zeros: take the smaller one.
    gram = h_NF @ h_NF.mT if len(h_NF) < h_NF.shape[1] else h_NF.mT @ h_NF
    if not gram.isfinite().all():  # the run diverges, and LAPACK would raise
        return dict.fromkeys(("lambda_ratio", "effective_rank"), h_NF.new_tensor(math.nan))
    # On the CPU: MPS has no eigenvalues.
    eigenvalues = torch.linalg.eigvalsh(gram.cpu()).clamp(min=0).to(gram.device)
    share = eigenvalues / eigenvalues.sum()
    return {"lambda_ratio": share.max() * h_NF.shape[1], "effective_rank": torch.special.entr(share).sum().exp()}


def same_sign(g_RF: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the entries of a row share a sign: majority share and pairwise agreement, averaged over rows.

    A row has n entries that are not 0, of mean sign m. Its majority share is (1 + |m|)/2, at chance ½ + 1/√(2πn) for
    large n. Its pairwise agreement is the probability that two different entries agree: ((nm² − 1)/(n − 1) + 1)/2,
    unbiased for any n, at chance ½. Rows with n < 2 are left out.
    """
    sign_RF = g_RF.sign()
    n_R = sign_RF.abs().sum(-1)
    rows = n_R > 1
    n_R = n_R[rows]
    m_R = sign_RF[rows].sum(-1) / n_R
    pairs_R = ((n_R * m_R.square() - 1) / (n_R - 1) + 1) / 2
    return ((1 + m_R.abs()) / 2).mean(), pairs_R.mean()


def agreement(rho: float) -> float:
    """Return the pairwise sign agreement of W2's gradient at mean share ρ and random output deltas: ½ + arcsin(ρ)/π."""
    return 0.5 + math.asin(rho) / math.pi


def log_slope(norms: list[float]) -> float:
    """Return the least-squares slope of ln(norm) over depth, per block; above 0, early blocks get less."""
    depth = [layer - (len(norms) - 1) / 2 for layer in range(len(norms))]
    if len(norms) < 2 or min(norms) <= 0:
        return math.nan
    return sum(d * math.log(n) for d, n in zip(depth, norms, strict=True)) / sum(d * d for d in depth)


def calibration(logits_NV: Tensor, y_N: Tensor) -> dict[str, Tensor]:
    """Return top-1 accuracy and the expected calibration error of the softmax, 15 bins (Guo et al., 2017)."""
    confidence_N, guess_N = logits_NV.softmax(-1).max(-1)
    correct_N = (guess_N == y_N).float()
    # The confidence of a run that has diverged is NaN, which has no bin.
    bin_N = (confidence_N.nan_to_num() * BINS).long().clamp(max=BINS - 1)
    gap_bins = (correct_N - confidence_N) @ F.one_hot(bin_N, BINS).float()
    return {"accuracy": correct_N.mean(), "ece": gap_bins.abs().sum() / len(y_N)}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two tensors of one shape."""
    return (a * b).sum() / (a.norm() * b.norm())


def rms(x: Tensor) -> Tensor:
    """Return the root of the mean square."""
    return x.square().mean().sqrt()
