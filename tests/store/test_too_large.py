"""A value that the server cannot take is refused at once, with what would help."""

from __future__ import annotations

import pytest

from akv import StoreError, StoreUnavailableError
from tests.conftest import MakeStore


@pytest.mark.backends("mariadb")
async def test_a_value_above_the_packet_of_the_server_is_refused_naming_its_setting(make_store: MakeStore) -> None:
    kv = await make_store()
    await kv.set("small", 1)
    with pytest.raises(StoreError, match="Raise max_allowed_packet") as refused:
        await kv.set("large", b"x" * (17 * 2**20))
    assert not isinstance(refused.value, StoreUnavailableError)
    assert await kv.get_many(["small", "large"]) == {"small": 1}
