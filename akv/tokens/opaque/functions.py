"""
Functions that a query may call without anybody losing sight of what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from akv.tokens.drivers import Dialect

_READ_MORE: Final = {
    "postgresql": re.compile(
        r"pg_(?!advisory|try_advisory|sleep|typeof|backend_pid|column_size|input_|notify)"
        r"|lo_|loread|dblink|crosstab|connectby|ts_stat|ts_rewrite|(?:next|curr|last|set)val$"
        r"|(?:query|table|schema|database|cursor)_to_xml|xpath_table"
    ),
    "mysql": re.compile(r"load_file$|(?:next|last|set)val$"),
}
"""Functions of the database itself that read tables whose names nobody sees, files, or other databases."""

_KNOWN_ON_SQLITE: Final = frozenset(
    """
    -> ->> abs acos acosh asin asinh atan atan2 atanh avg bm25 ceil ceiling changes char coalesce concat concat_ws
    cos cosh count cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp
    first_value floor format fts3_tokenizer fts5 fts5_source_id glob group_concat hex highlight if ifnull iif instr json
    json_array json_array_length json_error_position json_extract json_group_array json_group_object json_insert
    json_object json_patch json_pretty json_quote json_remove json_replace json_set json_type json_valid jsonb
    jsonb_array jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove
    jsonb_replace jsonb_set julianday lag last_insert_rowid last_value lead length like likelihood likely ln log log10
    log2 lower ltrim match matchinfo max median min mod nth_value ntile nullif octet_length offsets optimize
    percent_rank percentile percentile_cont percentile_disc pi pow power printf quote radians random randomblob rank
    regexp replace
    round row_number rtreecheck rtrim sign sin sinh snippet soundex sqlite_compileoption_get sqlite_compileoption_used
    sqlite_log sqlite_source_id sqlite_version sqrt strftime string_agg substr substring subtype sum tan tanh
    time timediff total total_changes trim trunc typeof unhex unicode unistr unistr_quote unixepoch unlikely upper
    zeroblob
    """.split()  # noqa: SIM905 - a list would take a screen
)
"""Those of SQLite, and what SQLAlchemy adds to it; whatever else there is, the application has made."""


def reading_more(dialect: Dialect, calls: Collection[str], of_users: Collection[str]) -> str | None:
    """
    Return a function that may read anything, if one is called.

    Args:
        dialect: Who runs it.
        calls: Names of functions, in lower case; on PostgreSQL and MariaDB also what merely looks like one.
        of_users: Functions that the users of the database have made.
    """
    if dialect == "sqlite":
        return next((name for name in sorted(calls) if name not in _KNOWN_ON_SQLITE), None)
    pattern = _READ_MORE[dialect]
    return next((name for name in sorted(calls) if name in of_users or pattern.match(name)), None)
