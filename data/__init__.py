"""Text -> tokens -> batches. It knows nothing of networks."""
