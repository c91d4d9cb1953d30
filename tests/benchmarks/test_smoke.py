"""
Every benchmark runs, at sizes that measure nothing, and tells what it is there to tell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.contenders import ALL, Absent, Contender, contenders_for
from benchmarks.contenders.contender import need
from benchmarks.harness import Case, Effort, Outcome, Round, calls, percentiles, ratios
from benchmarks.options import dialect_of
from benchmarks.report import compare
from benchmarks.svg import Bars, Lines, chart

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["--rounds", "1", "--seconds", "0.02"]
SQLITE = ["--backends", "sqlite"]
WHO = ["--contenders", "akv", "core"]


def run(*arguments: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def document_of(tmp_path: Path, name: str, *arguments: str) -> dict[str, Any]:
    path = tmp_path / f"{name}.json"
    run(name, *arguments, "--json", str(path))
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["benchmark"] == name
    assert found["command"] == f"python -m benchmarks {name} {' '.join(arguments)} --json {path}"
    assert {"python", "sqlalchemy"} <= found["versions"].keys()
    for drawn in tmp_path.glob("*.svg"):
        ElementTree.parse(drawn)
    return found


def test_the_base_case_tells_of_every_contender_on_every_backend(tmp_path: Path) -> None:
    where = ["--backends", "sqlite", "postgres", "mariadb"]

    found = document_of(tmp_path, "base", *TINY, *where, "--rows", "64", "--tasks", "4", "--mixes", "mixed")

    told = {result["backend"]: result["contenders"] for result in found["results"]}
    assert told.keys() | found["absent_backends"].keys() == set(where[1:])
    for backend, contenders in told.items():
        assert [one["name"] for one in contenders] == [one.name for one in contenders_for(dialect_of(backend))]
        assert all("rate" in one or one.get("absent") or one.get("failed") for one in contenders)
        assert contenders[0]["name"] == "akv"
        assert contenders[0]["rate"] > 0
        assert contenders[0]["rounds"][0]["errors"] == contenders[0]["rounds"][0]["misses"] == 0
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"base-{backend}.svg" for backend in told}
    assert found["servers"]["sqlite"]["synchronous"] == "FULL"


def test_the_factors_tell_of_sizes_tasks_mixes_keys_and_rows(tmp_path: Path) -> None:
    arguments = [*TINY, *SQLITE, "--contenders", "akv", "--rows", "100"]
    loop = ["--uvloop"] if find_spec("uvloop") else []

    found = document_of(tmp_path, "factors", *arguments, *loop)

    assert {result["factor"] for result in found["results"]} == {"size", "tasks", "mix", "keys", "rows"}
    assert {result["case"]["size"] for result in found["results"]} == {100, 10_240, 1_048_576}
    assert {result["case"]["tasks"] for result in found["results"]} == {1, 16, 64, 256, 1024}


def test_processes_tell_of_rates_and_errors(tmp_path: Path) -> None:
    small = ["--rows", "64", "--processes", "2", "--tasks", "3"]

    found = document_of(tmp_path, "processes", *TINY, *SQLITE, *WHO, *small)

    assert [(one["contender"], one["errors"]) for one in found["results"]] == [("akv", 0), ("core", 0)]


def test_the_sweep_deletes_what_is_expired_while_gets_go_on(tmp_path: Path) -> None:
    small = ["--rows", "64", "--expired", "700", "--tasks", "4"]

    found = document_of(tmp_path, "sweep", *TINY, *SQLITE, *small)

    (round_,) = found["results"][0]["rounds"]
    assert round_["swept"] == 700
    assert round_["errors"] == 0


def test_the_scan_meets_every_entry(tmp_path: Path) -> None:
    found = document_of(tmp_path, "scan", *SQLITE, "--rounds", "1", "--rows", "200")

    assert found["results"][0]["contender"] == "akv"
    assert found["results"][0]["entries"] == 200


def test_an_idle_store_has_a_size_and_is_drawn_again_from_its_results(tmp_path: Path) -> None:
    found = document_of(tmp_path, "memory", *SQLITE, "--rounds", "1")

    assert {one["contender"]: one["mebibytes"] > 0 for one in found["results"]} == {"akv": True, "session": True}
    drawing = tmp_path / "memory.svg"
    first = drawing.read_text()
    drawing.unlink()

    run("plot", str(tmp_path / "memory.json"))

    assert drawing.read_text() == first


def test_uvloop_runs_beside_asyncio(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")

    found = document_of(tmp_path, "uvloop", *TINY, *SQLITE, "--contenders", "akv", "--rows", "64", "--tasks", "4")

    assert {loop for one in found["results"] for loop in one["rates"]} == {"asyncio", "uvloop"}


def test_tokens_tell_what_commits_statements_and_keys_cost(tmp_path: Path) -> None:
    where = ["--backends", "sqlite", "postgres"]
    small = ["--changed", "0", "1", "--tasks", "1", "3", "--instances", "2", "--writers", "2"]

    found = document_of(tmp_path, "tokens", *TINY, *where, *small)

    parts: dict[str, dict[str, list[Any]]] = {}
    for each in found["results"]:
        parts.setdefault(each["backend"], {}).setdefault(each["part"], []).append(each)
    assert parts.keys() | found["absent_backends"].keys() == set(where[1:])
    for backend, told in parts.items():
        assert told.keys() == {"commit", "hot", "keys", "capture"}
        assert all(each["rate"] > 0 and not each["errors"] for each in (*told["hot"], *told["keys"]))
        assert [(each["tasks"], each["who"]) for each in told["keys"]] == [
            (tasks, who) for tasks in (1, 3) for who in ("akv", "alkey")
        ]
        for each in told["commit"]:
            assert all(way["part"]["p50"] <= way["latencies"]["max"] for way in each["ways"].values())
            assert trips_of_commit(each) == ((1, 0), EXPECTED_TRIPS[backend, each["rows"]])
    assert all(goal["met"] for goal in found["goals"])
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"tokens-{backend}.svg" for backend in parts}


EXPECTED_TRIPS = {
    ("sqlite", 0): (1, 0),
    ("sqlite", 1): (3, 0),
    ("postgres", 0): (1, 0),
    ("postgres", 1): (2, 2),
}
"""To the database and to Redis, of the commit of a bound session: MARK and RESOLVE are one each, the gate is one."""


def trips_of_commit(result: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    trips = [result["ways"][way]["trips"] for way in ("unbound", "bound")]
    return tuple((each["commit_database"], each["commit_redis"]) for each in trips)


def test_memoize_tells_what_near_hits_cost_and_how_often_hits_with_dependencies_travel(tmp_path: Path) -> None:
    found = document_of(tmp_path, "memoize", *TINY, "--backends", "postgres")

    near = {one["way"]: one for one in found["results"] if one["part"] == "near"}
    assert near.keys() == {
        "akv, a str", "akv, a dict, copied", "akv, a dict, near_shared", "async_lru", "cachetools",
    }  # fmt: skip
    for way, told in near.items():
        assert told.get("absent") or (told["of_one"]["p50"] > 0 and not told["errors"]), way
    assert {"async_lru", "cachetools", "dogpile.cache"} <= found["versions"].keys()
    hits = [one for one in found["results"] if one["part"] == "hits"]
    assert {one["distance"] for one in hits} == (set() if found["absent_backends"] else {"local", "1 ms away"})
    for one in hits:
        assert one["rate"] > 0
        assert not one["errors"]
        assert tuple(one["trips"].values()) == TRIPS_OF_HITS[one["work"], one["way"]], one
        assert ("verdict" in one) is one["way"].startswith("hit")
        assert not one.get("cold")
        assert not one.get("bypasses")
    assert all(goal["met"] for goal in found["goals"] if "round trips" in goal["what"])


TRIPS_OF_HITS = {
    (work, way): trips
    for work, queries in {"row": 1, "three rows": 3, "aggregate, declared": 1, "aggregate, tracked": 1}.items()
    for way, trips in {
        "query": (queries + 2, 0),
        "query, AUTOCOMMIT": (queries, 0),
        "hit": (1, 1),
        "hit, near": (0, 1),
    }.items()
}
"""To the database and to Redis; a transaction begins and ends in one each."""


def test_a_stampede_tells_of_computations_waits_and_who_cannot(tmp_path: Path) -> None:
    small = ["--rounds", "1", "--callers", "8", "--processes", "1", "2", "--computation", "0.1"]

    found = document_of(tmp_path, "stampede", *small, "--backends", "postgres")

    told = {(one["part"], one["processes"], one["who"]): one for one in found["results"]}
    for (event, processes, who), one in told.items():
        if "absent" in one:
            assert event == "token change" or who.startswith(("cashews", "aiocache", "dogpile"))
            continue
        assert not one["errors"], one
        assert one["callers"] == 8 // processes
        if who.startswith("akv"):
            assert 1 <= one["computations"] <= processes, one
            assert one["computations"] == 1 or event == "expiry" or "lock=True" not in who, one
            assert one["old"] == 0 or "stale_for" in who, one
    if not found["absent_backends"]:
        assert {processes for _, processes, _ in told} == {1, 2}
        dogpile = told["token change", 1, "dogpile.cache in a thread"]
        assert dogpile["absent"]


def test_the_list_says_why_somebody_is_absent() -> None:
    nowhere = "postgresql+asyncpg://nobody@127.0.0.1:1/none"

    told = run("list", "--backends", "sqlite", "postgres", AKV_TEST_POSTGRES_URL=nowhere)

    assert "postgres is absent" in told
    assert "AKV_TEST_POSTGRES_URL" in told


def test_no_benchmark_is_without_a_smoke_run() -> None:
    assert BENCHMARKS.keys() == {
        "base", "factors", "processes", "sweep", "scan", "memory", "uvloop", "tokens", "memoize", "stampede", "list",
        "plot",
    }  # fmt: skip


def test_what_is_not_installed_is_absent_and_says_what_to_install() -> None:
    with pytest.raises(Absent, match=r"somebody is not installed .*pip install 'akv\[bench\]'"):
        need("no_such_module_anywhere", "somebody")


def test_an_unknown_contender_is_named() -> None:
    with pytest.raises(ValueError, match=r"no contender \['nobody'\]: there are akv"):
        contenders_for("sqlite", ["nobody"])


def test_every_contender_says_what_it_promises() -> None:
    assert all(one.name and one.title and one.dialects and one.serializer for one in ALL)
    assert len({one.name for one in ALL}) == len(ALL)


@pytest.mark.parametrize("gets", [1.0, 0.9, 0.0])
def test_calls_come_in_the_asked_proportion_and_the_same_for_everybody(gets: float) -> None:
    case = Case(rows=1_000, gets=gets)

    one, other = calls(case, 7, bytes), calls(case, 7, bytes)
    first = [next(one) for _ in range(2_000)]

    assert first == [next(other) for _ in range(2_000)]
    assert sum(value is None for _, value in first) == 2_000 * gets


def test_a_set_always_changes_the_row() -> None:
    ops = calls(Case(rows=50, gets=0.0), 1, bytes)
    values: dict[str, bytes] = {}

    for _ in range(5_000):
        key, value = next(ops)
        if values.get(key) == value:  # by chance, as seldom as there are values
            values["same"] = values.get("same", b"") + b"."
        values[key] = value

    assert len(values.get("same", b"")) < 5_000 / 509 * 4


def test_hot_keys_get_nine_calls_of_ten() -> None:
    ops = calls(Case(rows=10_000, gets=1.0, hot=True), 1, bytes)
    keys = [next(ops)[0] for _ in range(10_000)]

    hottest = {key for key in keys if int(key.split(":")[1]) < 100}

    assert 0.85 < sum(key in hottest for key in keys) / len(keys) < 0.95


def test_percentiles_are_those_of_the_calls() -> None:
    assert percentiles([each / 1000 for each in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def outcome(name: str, *rates: float) -> Outcome:
    rounds = [Round(rate, 1e6 / rate, percentiles([]), 1, 0, 0) for rate in rates]
    return Outcome(name, name, rounds=rounds)


def test_ratios_are_taken_round_by_round() -> None:
    ours, theirs = outcome("akv", 100, 10, 1), outcome("other", 10, 2, 1)

    assert ratios(ours, theirs) == {"rate": 5.0, "cpu": 5.0}
    assert compare([ours, theirs, Outcome("gone", "gone", absent="why")]) == {"other": {"rate": 5.0, "cpu": 5.0}}


def test_drawings_are_xml_whatever_they_are_called() -> None:
    bars = Bars("a < b & c", {"akv": 3.0, "<other>": 0.0})
    lines = Lines("x", ["1", "2"], {"akv": [1.0, None], "other": [None, 5e6]})

    ElementTree.fromstring(chart("<&>", [bars, lines, Bars("none", {})]))


def test_the_warm_up_is_never_longer_than_a_round() -> None:
    assert Effort(1, 0.1, 1).warm_up == 0.1
    assert Effort(1, 9.0, 1).warm_up == 0.5


def test_contenders_are_what_the_contract_says() -> None:
    assert all(issubclass(one, Contender) for one in ALL)
