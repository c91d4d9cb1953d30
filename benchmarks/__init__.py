"""How fast akv is beside its peers: see ``python -m benchmarks --help``."""
