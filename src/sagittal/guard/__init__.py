"""What stands between the package and bytes that nobody trusts: caps, processes with limits, archives, XML and JSON."""
