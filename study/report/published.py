"""What others measured, to hold a ranking against: final losses of T5-like encoder-decoders and of GPTs.

Transcribed second-hand, and not tuned for each activation. Nats per token, but EleutherAI's bits per byte.
"""

from collections.abc import Mapping

TABLES: dict[str, dict[str, float]] = {
    "Shazeer 2020, 524k steps": {
        "relu": 1.677, "gelu": 1.679, "silu": 1.683, "glu": 1.663,
        "bilinear": 1.648, "reglu": 1.645, "geglu": 1.633, "swiglu": 1.636,
    },
    "Narang et al. 2021, final": {
        "relu": 1.838, "gelu": 1.838, "silu": 1.847, "softplus": 1.850, "sigmoid": 1.867, "elu": 1.932, "selu": 1.948,
        "glu": 1.814, "bilinear": 1.798, "reglu": 1.803, "geglu": 1.792, "swiglu": 1.789,
    },
    "EleutherAI's ablation, one run each": {
        "sigmoid": 1.1484, "relu": 1.1482, "silu": 1.1482, "tanh": 1.1481, "gelu": 1.1453,
    },
}  # fmt: skip


def agreement(losses: Mapping[str, float]) -> list[str]:
    """Return a sentence for each table that shares three activations or more: Spearman's ρ of the ranking, and n."""
    from scipy.stats import spearmanr

    said = []
    for source, table in TABLES.items():
        both = [name for name in losses if name in table]
        if len(both) > 2:
            rho, _ = spearmanr([losses[name] for name in both], [table[name] for name in both])
            said.append(f"Ranking against {source}: Spearman {rho:+.2f}, n = {len(both)} activations.")
    return said
