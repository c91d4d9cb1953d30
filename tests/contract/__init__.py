"""The contract of the store: one suite, every backend."""
