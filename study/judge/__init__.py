"""The runs of a study read back, compared and judged.

The way from a run folder to a line in the table has three steps. `results.py` reads the folders. `arms.py` gathers
runs that differ only in their seeds. `effects.py` compares each arm with its reference and gives the verdict;
`verdicts.py` does so for claims. `statistics.py` and `curves.py` know numbers alone. `repetitions.py` puts studies side
by side, and `controls.py` measures what theory knows.
"""
