"""The key-value half: knows SQLAlchemy, never tokens."""
