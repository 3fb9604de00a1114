"""Encoders, decoders, heads and pretrained weights."""

from sagittal.networks.encoder import ENCODERS, build_encoder
from sagittal.networks.heads import Head, Network, build_dense, build_network
from sagittal.networks.pretrained import fetch_hub

__all__ = ["ENCODERS", "Head", "Network", "build_dense", "build_encoder", "build_network", "fetch_hub"]
