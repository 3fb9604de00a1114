"""The package on disk and the predictor that uses it."""
