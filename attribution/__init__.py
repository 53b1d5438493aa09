"""Gaussian-process attribution mathematics: posteriors, information in nats, greedy rules. Torch only, no files."""
