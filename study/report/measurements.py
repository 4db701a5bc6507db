"""What is measured inside the network, in words: a group, a name, a unit and a sentence for each metric of a block."""

from dataclasses import dataclass

MATRICES = {  # part of a key -> the matrix in words
    "up": "W1 (up)",
    "gate": "the gate’s matrix",
    "down": "W2 (down)",
    "attn.qkv": "attention’s queries, keys and values",
    "attn.out": "attention’s output matrix",
    "ffn.up": "W1 (up)",
    "ffn.gate": "the gate’s matrix",
    "ffn.down": "W2 (down)",
}
BATCHES = {"token": "one token", "sequence": "one sequence", "batch": "the whole batch"}


@dataclass(frozen=True)
class Measurement:
    """What a metric means. With `log`, its colours follow the logarithm, since ratios are what counts."""

    group: str
    name: str
    unit: str
    text: str
    log: bool = False


GRADIENT, SATURATION, CENTRING, SPECTRUM = "Gradient", "Saturation", "Centring", "Hidden units"
GATES, SIGNS, PATH, UPDATES = "Gates", "Signs of the gradient", "Path of the weights", "Size of the updates"


def _all() -> dict[str, Measurement]:
    """Return the measurement of each key, with * for the block, in the order in which the page offers them."""
    found = {
        "grad/blocks.*/rms": Measurement(
            GRADIENT, "gradient at the block’s input", "RMS", "How much of the gradient reaches this block.", log=True
        ),
        "stream/blocks.*/rms": Measurement(
            GRADIENT, "size of the residual stream", "RMS", "The values that enter the block.", log=True
        ),
    }
    for part in ("up", "gate", "down"):
        matrix = MATRICES[part]
        found[f"grad/blocks.*/{part}"] = Measurement(
            GRADIENT, f"gradient of {matrix}", "norm", "How strongly the batch asks this matrix to change.", log=True
        )
    found |= {
        "act/blocks.*/saturated": Measurement(
            SATURATION, "saturated units", "share", "Pre-activations where the slope is below 5 % of its maximum."
        ),
        "act/blocks.*/dead": Measurement(
            SATURATION, "dead units", "share", "Units that are saturated on at least 99.9 % of the tokens."
        ),
        "act/blocks.*/slope": Measurement(SATURATION, "mean slope", "E[φ′]", "The derivative at the pre-activations."),
        "act/blocks.*/slope_square": Measurement(
            SATURATION, "mean square of the slope", "E[φ′²]", "It decides how much of the gradient passes the units."
        ),
        "act/blocks.*/u_sd": Measurement(
            SATURATION, "spread of the pre-activations", "sd", "Large values reach the flat ends of the sigmoid."
        ),
        "act/blocks.*/mean_share": Measurement(
            CENTRING, "mean share of a hidden unit", "(E h)²/E[h²]", "0: centred. 1: the unit is a constant."
        ),
        "act/blocks.*/mean": Measurement(CENTRING, "mean of the hidden units", "E h", "0 for a centred activation."),
        "act/blocks.*/sd": Measurement(CENTRING, "spread of the hidden units", "sd", "What varies with the token."),
        "ffn/blocks.*/mean_share": Measurement(
            CENTRING, "mean share of the FFN’s output", "(E y)²/E[y²]", "How much of the output is a constant."
        ),
        "ffn/blocks.*/mean": Measurement(CENTRING, "mean of the FFN’s output", "E y", "Over tokens and channels."),
        "ffn/blocks.*/sd": Measurement(CENTRING, "spread of the FFN’s output", "sd", "Over tokens and channels."),
        "act/blocks.*/lambda_ratio": Measurement(
            SPECTRUM, "largest eigenvalue over the mean", "λmax/mean λ", "Large: one direction dominates hᵀh.", log=True
        ),
        "act/blocks.*/effective_rank": Measurement(
            SPECTRUM, "effective rank", "directions", "How many directions the hidden units use."
        ),
        "gate/blocks.*/mean": Measurement(GATES, "mean gate", "act(gate)", "The factor on the other branch."),
        "gate/blocks.*/below_0.1": Measurement(GATES, "closed gates", "share", "Gates below 0.1."),
        "gate/blocks.*/above_0.9": Measurement(GATES, "open gates", "share", "Gates above 0.9."),
    }
    for part in ("down", "up"):
        for batch, words in BATCHES.items():
            where = f"rows of the gradient of {MATRICES[part]}, {words}"
            found[f"sign/blocks.*/{part}_{batch}_pairs"] = Measurement(
                SIGNS, f"agreeing pairs in {where}", "share", "Two entries of a row have one sign. Chance: 0.5."
            )
            found[f"sign/blocks.*/{part}_{batch}"] = Measurement(
                SIGNS, f"majority in {where}", "share", "Entries with the row’s more frequent sign. Chance: about 0.5."
            )
    for part in ("down", "up", "gate"):
        matrix = MATRICES[part]
        found[f"path/blocks.*/{part}_efficiency"] = Measurement(
            PATH, f"directness of {matrix}", "distance/length", "1: a straight path. Near 0: a zig-zag."
        )
        found[f"path/blocks.*/{part}_cosine"] = Measurement(
            PATH, f"successive updates of {matrix}", "cosine", "Below 0: an update undoes the one before."
        )
        found[f"grad/blocks.*/{part}_cosine"] = Measurement(
            PATH, f"successive gradients of {matrix}", "cosine", "On one batch, before and after a step."
        )
    for part in ("attn.qkv", "attn.out", "ffn.up", "ffn.gate", "ffn.down"):
        matrix = MATRICES[part]
        found[f"update/blocks.*.{part}/reach"] = Measurement(
            UPDATES, f"update of {matrix}", "RMS update/RMS weight", "How far the last step moved the matrix.", log=True
        )
        found[f"update/blocks.*.{part}/near_eps"] = Measurement(
            UPDATES, f"{matrix}: near Adam’s epsilon", "share", "Entries whose denominator is below 10 eps."
        )
    return found


MEASUREMENTS = _all()


def describe(key: str) -> Measurement:
    """Return what a metric of a block means; a metric that is not in the table is described by its key."""
    return MEASUREMENTS.get(key, Measurement("Other", key, "", ""))
