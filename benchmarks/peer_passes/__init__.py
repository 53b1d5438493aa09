"""One module for each peer: what it does to a batch of rows, through its own interface and in its own environment."""
