"""Sagittal: from raw medical studies to a model that a hospital can run and trust."""

__version__ = "0.1.0"
