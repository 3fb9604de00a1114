"""Predictions and truth to numbers with intervals."""
