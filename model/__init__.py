"""The network. It knows nothing of text, files or training."""
