"""Encoders, heads and pretrained weights."""
