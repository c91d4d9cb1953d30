"""What SQL does, judged by its first words: nothing that writes passes as harmless."""

from __future__ import annotations

import pytest

from akv.tokens.opaque import Effect, read


@pytest.mark.parametrize(
    ("sql", "effect", "savepoint"),
    [
        ("SELECT 1", Effect.NOTHING, ""),
        ("  \n select 'INSERT INTO users'", Effect.NOTHING, ""),
        ("-- UPDATE users\nSELECT 1", Effect.NOTHING, ""),
        ("/* UPDATE users */ VALUES (1)", Effect.NOTHING, ""),
        ("WITH q AS (SELECT 1) SELECT * FROM q", Effect.NOTHING, ""),
        ("EXPLAIN DELETE FROM users", Effect.NOTHING, ""),
        ("PRAGMA user_version = 5", Effect.NOTHING, ""),
        ("BEGIN IMMEDIATE", Effect.NOTHING, ""),
        ("CREATE TABLE t (id INTEGER)", Effect.NOTHING, ""),
        ("", Effect.NOTHING, ""),
        ("-- nothing", Effect.NOTHING, ""),
        ("update users set name = 1", Effect.WRITES, ""),
        ("-- SELECT\nINSERT INTO users VALUES (1)", Effect.WRITES, ""),
        ("/**//* x */;REPLACE INTO users VALUES (1)", Effect.WRITES, ""),
        ("\ufeffDELETE FROM users", Effect.WRITES, ""),
        ("WITH q AS (SELECT 1) UPDATE users SET name = (SELECT * FROM q)", Effect.WRITES, ""),
        ("with recursive q as (select 1) delete from users", Effect.WRITES, ""),
        ("DROP TABLE users", Effect.WRITES, ""),
        ("ALTER TABLE users DROP COLUMN name", Effect.WRITES, ""),
        ("(SELECT 1)", Effect.WRITES, ""),
        ("MERGE INTO users", Effect.WRITES, ""),
        ("/* unterminated UPDATE users", Effect.WRITES, ""),
        ("COMMIT", Effect.ENDS, ""),
        ("end", Effect.ENDS, ""),
        ("ROLLBACK TRANSACTION", Effect.ENDS, ""),
        ("SAVEPOINT sa_savepoint_1", Effect.SAVEPOINT, "sa_savepoint_1"),
        ('savepoint "A b"', Effect.SAVEPOINT, "a b"),
        ("RELEASE SAVEPOINT x", Effect.RELEASE, "x"),
        ("release [X];", Effect.RELEASE, "x"),
        ("ROLLBACK TO SAVEPOINT x", Effect.ROLLBACK_TO, "x"),
        ("ROLLBACK TRANSACTION TO `x`", Effect.ROLLBACK_TO, "x"),
    ],
)
def test_effect_of_a_statement(sql: str, effect: Effect, savepoint: str) -> None:
    assert read(sql) == (effect, savepoint)
