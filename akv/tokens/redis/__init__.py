"""
Tokens in Redis or Valkey: the room of RedisTokens.

The scripts beside this page (``*.lua``) are all that is ever written there. Only
:mod:`~akv.tokens.redis.wire` imports the driver, and only once an object is made.
"""

from akv.tokens.redis.tokens import RedisTokens as RedisTokens
