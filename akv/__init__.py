"""
A key-value store in the SQL database you already have, and caches that never go stale, for asyncio.
"""

from akv.store.client import Store as AsyncKVAlchemy
