"""Programs that measure speed and size, as ratios within one run."""
