"""One run: configuration, loop, optimiser, checkpoint, metrics, evaluation."""
