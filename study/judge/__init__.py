"""The runs of a study read back, compared and judged."""
