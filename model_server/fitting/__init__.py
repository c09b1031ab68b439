"""Fitting priors to annotations: samples, pose, residuals, solvers."""
