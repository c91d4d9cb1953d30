"""
Invalidation: identifiers of what can change, tokens that change with them, keys made of tokens.

Knows SQLAlchemy, and nothing of the key-value store.
"""
