"""Many runs: `command.py` runs whole commands over plan (what), run (trained), judge (effects), report (pages)."""
