"""The service: its ports, its pages and its operation."""
