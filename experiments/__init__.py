"""Programs that recompute the paper's figures and tables with the project's own index and selection."""
