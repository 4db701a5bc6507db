"""What is measured inside the network while it trains."""
