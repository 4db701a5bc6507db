"""From TOML and flags to the runs of a study, before anything is trained.

`config.py` lays the flags over the file, `grid.py` multiplies its lists, `plan.py` makes runs and arms of that, and
`claims.py` reads what a study predicts. `tuning.py` names the runs of a search over learning rates, `metrics.py` checks
what a claim is about, and `estimate.py` and `engine.py` say what the runs cost and how they share a machine.
"""
