"""From TOML and flags to the runs of a study, before anything is trained.

`config.py` lays the flags over the file, `grid.py` multiplies its lists, and `plan.py` makes runs and arms of that.
`claims.py` reads what a study predicts, and `metrics.py` checks what a claim is about. `tuning.py` names the runs of a
search over learning rates. `estimate.py` and `engine.py` say what the runs cost and how they share a machine.
"""
