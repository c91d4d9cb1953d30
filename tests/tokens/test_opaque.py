"""What SQL says, judged by its words: nothing that writes passes as harmless, no table that is written is missed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akv.tokens.drivers import Dialect
from akv.tokens.opaque.lexer import lex
from akv.tokens.opaque.mariadb import _sees_triggers, _tables_of_view, targets
from akv.tokens.opaque.reading import Effect, Reading, reading_of

NOTHING, CALLS, WRITES, COMMITS, ENDS = Effect.NOTHING, Effect.CALLS, Effect.WRITES, Effect.COMMITS, Effect.ENDS
SAVEPOINT, RELEASE, ROLLBACK_TO = Effect.SAVEPOINT, Effect.RELEASE, Effect.ROLLBACK_TO


def read(dialect: Dialect, sql: str) -> Reading:
    return reading_of(dialect, sql, None)


def of(dialect: str, *cases: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(dialect, *(*case, "")[:3], id=f"{dialect}: {case[0]}") for case in cases]


@pytest.mark.parametrize(
    ("dialect", "sql", "effect", "savepoint"),
    [
        *of(
            "sqlite",
            ("SELECT 1", NOTHING),
            ("  \n select 'INSERT INTO users'", NOTHING),
            ("-- UPDATE users\nSELECT 1", NOTHING),
            ("/* UPDATE users */ VALUES (1)", NOTHING),
            ("WITH q AS (SELECT 1) SELECT * FROM q", NOTHING),
            ("EXPLAIN DELETE FROM users", NOTHING),
            ("PRAGMA user_version = 5", NOTHING),
            ("BEGIN IMMEDIATE", NOTHING),
            ("CREATE TABLE t (id INTEGER)", NOTHING),
            ("", NOTHING),
            ("-- nothing", NOTHING),
            ("update users set name = 1", WRITES),
            ("-- SELECT\nINSERT INTO users VALUES (1)", WRITES),
            ("/**//* x */;REPLACE INTO users VALUES (1)", WRITES),
            ("\ufeffDELETE FROM users", WRITES),
            ("WITH q AS (SELECT 1) UPDATE users SET name = (SELECT * FROM q)", WRITES),
            ("with recursive q as (select 1) delete from users", WRITES),
            ("DROP TABLE users", WRITES),
            ("ALTER TABLE users DROP COLUMN name", WRITES),
            ("(SELECT 1)", WRITES),
            ("MERGE INTO users", WRITES),
            ("/* unterminated UPDATE users", WRITES),
            ("COMMIT", ENDS),
            ("end", ENDS),
            ("ROLLBACK TRANSACTION", ENDS),
            ("SAVEPOINT sa_savepoint_1", SAVEPOINT, "sa_savepoint_1"),
            ('savepoint "A b"', SAVEPOINT, "a b"),
            ("RELEASE SAVEPOINT x", RELEASE, "x"),
            ("release [X];", RELEASE, "x"),
            ("ROLLBACK TO SAVEPOINT x", ROLLBACK_TO, "x"),
            ("ROLLBACK TRANSACTION TO `x`", ROLLBACK_TO, "x"),
        ),
        *of(
            "postgresql",
            ("SELECT 1", CALLS),
            ("SELECT 'UPDATE users; COMMIT'", CALLS),
            ("SELECT * FROM users FOR UPDATE", CALLS),
            ("WITH q AS (SELECT 1) SELECT * FROM q FOR NO KEY UPDATE", CALLS),
            ("VALUES (1)", CALLS),
            ("SELECT $q$ it's; COMMIT $q$", CALLS),
            ("SELECT E'it\\'s; COMMIT'", CALLS),
            ("SELECT 1 -- ; COMMIT", CALLS),
            ("SELECT 1;", CALLS),
            ("", NOTHING),
            ("SHOW server_version", NOTHING),
            ("SET LOCAL search_path = x", NOTHING),
            ("BEGIN", NOTHING),
            ("EXPLAIN UPDATE users SET name = 1", NOTHING),
            ("NOTIFY x", NOTHING),
            ("EXPLAIN (ANALYZE) UPDATE users SET name = 1", WRITES),
            ("EXPLAIN ANALYSE UPDATE users SET name = 1", WRITES),
            ("SET CONSTRAINTS ALL IMMEDIATE", WRITES),
            ("WITH q AS (DELETE FROM users RETURNING 1) SELECT * FROM q", WRITES),
            ("COPY users FROM STDIN", WRITES),
            ("DO $$ BEGIN COMMIT; END $$", WRITES),
            ("CALL f()", WRITES),
            ("EXECUTE p", WRITES),
            ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END", WRITES),
            ("SELECT 1; UPDATE users SET name = 1", WRITES),
            ("SELECT 'a\\'; UPDATE users SET name = '", WRITES),
            ("SELECT 1 /* /* nested */ UPDATE */", WRITES),
            ("SELECT 1 /* open", WRITES),
            ("(SELECT 1)", WRITES),
            ("COMMIT", ENDS),
            ("END", ENDS),
            ("ABORT", ENDS),
            ("ROLLBACK AND CHAIN", ENDS),
            ("PREPARE TRANSACTION 'x'", ENDS),
            ("COMMIT PREPARED 'x'", ENDS),
            ("UPDATE users SET name = 1; COMMIT", ENDS),
            ("PREPARE p AS UPDATE users SET name = 1", NOTHING),
            ('SAVEPOINT "A b"', SAVEPOINT, "a b"),
            ("RELEASE x", RELEASE, "x"),
            ("ROLLBACK WORK TO SAVEPOINT x", ROLLBACK_TO, "x"),
        ),
        *of(
            "mysql",
            ("SELECT 1", CALLS),
            ("(SELECT 1) UNION (SELECT 2)", CALLS),
            ("SELECT * FROM users FOR UPDATE", CALLS),
            ('SELECT "UPDATE users; COMMIT"', CALLS),
            ("SELECT 1 # ; COMMIT", CALLS),
            ("SELECT 1 -- ; COMMIT", CALLS),
            ("WITH q AS (SELECT 1) SELECT * FROM q", CALLS),
            ("DO SLEEP(1)", CALLS),
            ("SET @a = 1", CALLS),
            ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", CALLS),
            ("CREATE TEMPORARY TABLE t AS SELECT 1", CALLS),
            ("DROP TEMPORARY TABLE t", CALLS),
            ("SHOW TABLES", NOTHING),
            ("EXPLAIN UPDATE users SET name = 1", NOTHING),
            ("XA START 'x'", NOTHING),
            ("XA END 'x'", NOTHING),
            ("UPDATE users SET name = 1", WRITES),
            ("ANALYZE UPDATE users SET name = 1", WRITES),
            ("SET STATEMENT max_statement_time = 1 FOR UPDATE users SET name = 1", WRITES),
            ("WITH q AS (SELECT 1) DELETE FROM users", WRITES),
            ("SELECT /*! 1 */", WRITES),
            ("/*M! UPDATE users SET name = 1 */", WRITES),
            ("SELECT 'it\\'s'", WRITES),
            ("SELECT 1; UPDATE users SET name = 1", WRITES),
            ("LOAD DATA INFILE 'x' INTO TABLE users", WRITES),
            ("HANDLER users OPEN", WRITES),
            ("CREATE TABLE t (id INTEGER)", COMMITS),
            ("TRUNCATE users", COMMITS),
            ("ANALYZE TABLE users", COMMITS),
            ("LOCK TABLES users WRITE", COMMITS),
            ("SET autocommit = 1", COMMITS),
            ("SET @@session.autocommit = 0", COMMITS),
            ("START TRANSACTION", COMMITS),
            ("BEGIN NOT ATOMIC UPDATE users SET name = 1; END", COMMITS),
            ("CALL f()", COMMITS),
            ("EXECUTE IMMEDIATE 'COMMIT'", COMMITS),
            ("SELECT 1; TRUNCATE users", COMMITS),
            ("COMMIT", ENDS),
            ("ROLLBACK", ENDS),
            ("XA COMMIT 'x'", ENDS),
            ("UPDATE users SET name = 1; COMMIT", ENDS),
            ("SAVEPOINT `x`", SAVEPOINT, "x"),
            ("RELEASE SAVEPOINT x", RELEASE, "x"),
            ("ROLLBACK TO x", ROLLBACK_TO, "x"),
        ),
    ],
)
def test_effect_of_a_statement(dialect: Dialect, sql: str, effect: Effect, savepoint: str) -> None:
    reading = read(dialect, sql)
    assert (reading.effect, reading.savepoint) == (effect, savepoint)


@pytest.mark.parametrize("dialect", ["postgresql", "mysql"])
def test_calls_and_names_are_found_past_comments_and_case(dialect: Dialect) -> None:
    quote = '"' if dialect == "postgresql" else "`"
    reading = read(dialect, f"SELECT Sales.F /* x */ (1), {quote}g{quote} (2), 'h(3)' FROM Seen -- i(4)\n")
    assert reading.calls == {"f", "g"}
    assert {"sales", "seen"} <= reading.names
    assert not {"h", "i"} & reading.names


@pytest.mark.parametrize(
    ("sql", "redefines"),
    [
        ("UPDATE users SET name = 1", False),
        ("CREATE TRIGGER t", True),
        ("ALTER TABLE users ADD x INTEGER", True),
        ("DO $$ $$", True),
        ("SELECT 1; DROP TRIGGER t", True),
    ],
)
def test_statements_that_redefine_are_told(sql: str, redefines: bool) -> None:
    assert read("postgresql", sql).redefines == redefines


def test_long_texts_are_read_as_short_ones_are() -> None:
    sql = "UPDATE users SET name = 1 WHERE id IN (" + ", ".join(map(str, range(5_000))) + ")"
    assert read("mysql", sql).effect is WRITES
    assert read("postgresql", sql).effect is WRITES


WORDS = [*"'\"`\\;(#1\n", "SELECT", "UPDATE", "users", "COMMIT", "--", "/*", "*/", "/*!", "$$", "$a$", "E'"]


@given(st.sampled_from(["postgresql", "mysql"]), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_whatever_is_sent_is_read(dialect: Dialect, sql: str) -> None:
    read(dialect, sql)
    lex(dialect, sql)
    targets(sql)


@given(
    st.sampled_from(["postgresql", "mysql"]),
    st.lists(st.sampled_from(["'a; b'", "-- c ;\n", "/* ; */", "x", "(1)", "'it''s'", '"q;"', "`r`"]), max_size=6),
)
def test_what_stands_in_literals_and_comments_hides_no_statement_behind(dialect: Dialect, before: list[str]) -> None:
    start = " ".join(part for part in before if dialect == "mysql" or part != "`r`")
    assert read(dialect, f"SELECT {start} ; UPDATE users SET name = 1").effect is WRITES
    assert read(dialect, f"SELECT {start} ; COMMIT").effect is ENDS


# --- MariaDB: the tables in the head of a statement -------------------------------------------------------------------


def named(sql: str) -> set[str] | None:
    found = targets(sql)
    return None if found is None else {".".join(filter(None, relation)) for relation in found}


@pytest.mark.parametrize(
    ("sql", "written"),
    [
        ("UPDATE users SET name = 1 WHERE id IN (SELECT user_id FROM orders)", {"users"}),
        ("UPDATE LOW_PRIORITY IGNORE `us ers` SET name = 1", {"us ers"}),
        ("UPDATE shop.users SET name = 1", {"shop", "shop.users"}),
        ("UPDATE users u, orders AS o SET u.name = o.total", {"users", "u", "orders", "o"}),
        ("INSERT INTO users (name) SELECT body FROM notes", {"users"}),
        ("INSERT users VALUES (1)", {"users"}),
        ("INSERT HIGH_PRIORITY IGNORE INTO `users` SET id = 1", {"users"}),
        ("REPLACE DELAYED users VALUES (1)", {"users"}),
        ("DELETE FROM users WHERE id = 1", {"users"}),
        ("DELETE QUICK FROM users ORDER BY id LIMIT 1", {"QUICK", "users"}),
        ("DELETE FROM users RETURNING id", {"users"}),
        ("DELETE u FROM users u JOIN (SELECT id FROM orders WHERE x = 1) o USING (id)", None),
        ('UPDATE "users" SET name = 1', {"users"}),
        ("WITH q AS (SELECT 1) UPDATE users, q SET name = 1", {"users", "q"}),
        ("with q AS (SELECT 1 FROM x) DELETE FROM users WHERE 1", {"users"}),
        ("UPDATE users SET name = 'it\\'s'", None),
        ("UPDATE users SET name = 1; UPDATE orders SET total = 1", None),
        ("CALL f()", None),
        ("LOAD DATA INFILE 'x' INTO TABLE users", None),
        ("ANALYZE UPDATE users SET name = 1", None),
        ("", None),
    ],
)
def test_tables_that_a_statement_names_in_its_head(sql: str, written: set[str] | None) -> None:
    if "JOIN (SELECT" in sql:
        assert (named(sql) or set()) >= {"u", "users", "orders", "o"}
    else:
        assert named(sql) == written


def test_tables_of_a_view_are_read_from_its_definition() -> None:
    definition = "select `s`.`n`.`id` AS `id` from (`s`.`n` join `t`.`b``d` on(`s`.`n`.`id` = `t`.`b``d`.`id`))"
    assert {("s", "n"), ("t", "b`d")} <= {tuple(relation) for relation in _tables_of_view(definition)}


@pytest.mark.parametrize(
    ("grant", "sees"),
    [
        ("GRANT ALL PRIVILEGES ON *.* TO `a`@`%`", True),
        ("GRANT ALL PRIVILEGES ON `shop`.* TO `a`@`%`", True),
        ("GRANT SELECT, INSERT, TRIGGER ON `shop`.* TO `a`@`%`", True),
        ("GRANT TRIGGER ON `sh%`.* TO `a`@`%`", True),
        ("GRANT SELECT, INSERT ON `shop`.* TO `a`@`%`", False),
        ("GRANT TRIGGER ON `other`.* TO `a`@`%`", False),
        ("GRANT TRIGGER ON `sh\\_p`.* TO `a`@`%`", False),
        ("GRANT TRIGGER ON `shop`.`users` TO `a`@`%`", False),
        ("GRANT USAGE ON *.* TO `a`@`%` IDENTIFIED BY PASSWORD 'x'", False),
    ],
)
def test_right_to_see_triggers_is_read_from_grants(grant: str, sees: bool) -> None:
    assert _sees_triggers([grant], "shop") == sees
