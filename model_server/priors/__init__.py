"""Shape priors and baselines: one file for each system, behind one protocol."""
