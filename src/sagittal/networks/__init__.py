"""Encoders, heads and pretrained weights."""

from sagittal.networks.encoder import ENCODERS, build_encoder
from sagittal.networks.heads import Head, Network, build_dense, build_network
from sagittal.networks.pretrained import fetch_hub
from sagittal.networks.unet import UNETS, DenseNetwork

__all__ = [
    "ENCODERS",
    "UNETS",
    "DenseNetwork",
    "Head",
    "Network",
    "build_dense",
    "build_encoder",
    "build_network",
    "fetch_hub",
]
