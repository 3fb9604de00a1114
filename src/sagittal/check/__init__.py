"""Findings about a data set, before anything is trained."""
