"""
The auditor: a process that reads the database itself every few milliseconds, and says what has changed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from tests.history.board import Board
from tests.history.log import Kind, LogWriter, now, pack
from tests.history.rows import audit_statement
from tests.servers import connect

PERIOD = 0.004


@dataclass(frozen=True)
class AuditSpec:
    folder: Path
    url: str
    log: Path


def main(spec: AuditSpec) -> None:
    """Audit until the round is over; a database that is down is asked again."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    board = Board(spec.folder / "board")
    auditor = Auditor(LogWriter(spec.log))
    while not board.stopping:
        try:
            with connect(spec.url) as connection:
                auditor.audit(connection, board)
        except Exception:  # whatever a driver says of a server that is down
            time.sleep(0.02)
            auditor.log.beat()


class Auditor:
    def __init__(self, log: LogWriter) -> None:
        self.log = log
        self._known: dict[int, tuple[int, int, int]] = {}
        self._text = ""

    def audit(self, connection: Connection, board: Board) -> None:
        statement = audit_statement(connection.dialect.name)
        cursor = connection.connection.cursor()
        while not board.stopping:
            start = now()
            cursor.execute(statement)
            (text,) = cursor.fetchone()  # type: ignore[misc]
            self._compare(text if isinstance(text, str) else text.decode(), start)
            self.log.beat()
            time.sleep(PERIOD)

    def _compare(self, text: str, start: int) -> None:
        if text == self._text:
            return
        self._text = text
        changed = []
        for entry in text.split(","):
            row, version, tag = map(int, entry.split(":"))
            if self._known.get(row) != (row, version, tag):
                self._known[row] = (row, version, tag)
                changed.append((row, version, tag))
        self.log.append(Kind.AUDIT, pack(changed), start=start)
