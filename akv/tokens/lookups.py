"""
Instances that sessions give out of their identity maps, without a statement that anybody would see.

SQLAlchemy has no event for that. ``Session.get`` and references to a loaded row
both go through one method of ``Session``, which it offers to subclasses; that
one is wrapped, and asks for a recording once the original has found something.
"""

from __future__ import annotations

import threading
from functools import wraps
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import InstanceState, Session

from akv.tokens.listeners import bound_engine_of
from akv.tokens.reads import ENTERED, current
from akv.tokens.things import state_of

if TYPE_CHECKING:
    from akv.tokens.backend import Backend

_installing = threading.Lock()
_installed = False


def install() -> None:
    """Wrap the method, and listen for instances that enter sessions from outside; once per process."""
    global _installed
    with _installing:
        if not _installed:
            Session._identity_lookup = _seeing(Session._identity_lookup)  # type: ignore[method-assign]
            event.listen(Session, "detached_to_persistent", _detached_to_persistent)
            _installed = True


def _seeing(lookup: Any) -> Any:
    @wraps(lookup)
    def seen(session: Session, *args: Any, **options: Any) -> Any:
        found = lookup(session, *args, **options)
        reads = current()
        if reads is not None and found is not None:
            state = state_of(found)
            if state is not None:
                reads.meet(session)
                reads.see(_tokens_of(session, state), ())
                reads.give_out(session, lambda each: each is state)
        return found

    return seen


def _tokens_of(session: Session, state: InstanceState[Any]) -> Backend | None:
    try:
        bound = bound_engine_of(session.get_bind(mapper=state.mapper).engine)
    except sa_exc.UnboundExecutionError:
        return None
    return bound.tokens if bound is not None else None


def _detached_to_persistent(session: Session, _: object) -> None:
    reads = current()
    if reads is not None:
        reads.refuse(ENTERED)
