"""get_proxy: one entry as an object."""

from __future__ import annotations

from datetime import timedelta

import pytest

from akv import AsyncKVAlchemy
from akv.errors import InvalidKeyError, MissingKeyError
from akv.store.verbs import Verbs
from akv.typing import ENOVAL
from tests.conftest import MakeStore
from tests.contract.helpers import NOON


async def test_a_proxy_names_its_entry(kv: Verbs) -> None:
    proxy = kv.get_proxy("a", 1, "t")

    assert (proxy.kva, proxy.key, proxy.default, proxy.tag) == (kv, "a", 1, "t")
    assert kv.get_proxy("a").default is ENOVAL


async def test_a_proxy_sets_gets_and_deletes_its_entry(kv: Verbs) -> None:
    proxy = kv.get_proxy("a", tag="t")
    with pytest.raises(MissingKeyError):
        await proxy.get()
    await proxy.set([1], 60)

    assert await proxy.get() == await kv.get("a", tag="t") == [1]
    assert await proxy.get(return_expiration=True) == ([1], NOON + timedelta(minutes=1))
    await proxy.set(2, expire=None)
    assert await proxy.get("default", True) == (2, None)
    assert await proxy.delete() is True
    assert await proxy.delete() is False


async def test_a_default_at_the_call_wins_over_that_of_the_proxy(kv: Verbs) -> None:
    proxy = kv.get_proxy("a", "of the proxy")

    assert await proxy.get() == "of the proxy"
    assert await proxy.get("at the call") == "at the call"
    assert await proxy.get(None) is None
    assert await proxy.get(return_expiration=True) == ("of the proxy", None)
    assert await kv.get_proxy("a", None).get() is None


async def test_a_proxy_without_tag_has_the_stores_default(make_store: MakeStore) -> None:
    kv: AsyncKVAlchemy = await make_store(default_tag="d")
    proxy = kv.get_proxy("a")
    await proxy.set(1)

    assert proxy.tag == "d"
    assert await kv.get("a", tag="d") == 1
    assert kv.get_proxy("a", tag="").tag == ""


def test_a_proxy_of_a_wrong_key_is_refused_at_once() -> None:
    kv = AsyncKVAlchemy("sqlite+aiosqlite://")
    for key, tag in (("x" * 257, ""), ("a", "a\0"), (1, "")):
        with pytest.raises(InvalidKeyError):
            kv.get_proxy(key, tag=tag)  # type: ignore[arg-type]
