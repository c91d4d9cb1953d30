"""
Who would run here, where, with what durability and serializer.
"""

from __future__ import annotations

import argparse

from rich.markup import escape
from rich.table import Table

from benchmarks.contenders import Absent, Contender, contenders_for
from benchmarks.options import dialect_of
from benchmarks.places import NoServer, fill, place_for
from benchmarks.report import Report


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: none."""


async def run(options: argparse.Namespace, report: Report) -> None:
    """Open everybody once."""
    table = Table(title="contenders", title_justify="left")
    for column in ("backend", "name", "contender", "durability", "serializer", "setup", "here"):
        table.add_column(column, overflow="fold")
    for backend in options.backends:
        try:
            async with place_for(backend) as place:
                report.server(backend, place.settings)
                await fill(place, {})
                for kind in contenders_for(dialect_of(backend), options.contenders):
                    one = kind(place)
                    here = await presence(one)
                    report.add(
                        backend=backend,
                        contender=one.name,
                        durability=one.durability,
                        serializer=one.serializer,
                        setup=one.setup,
                        here=here,
                    )
                    table.add_row(backend, one.name, one.title, one.durability, one.serializer, one.setup, escape(here))
        except NoServer as reason:
            report.no_server(backend, str(reason))
    report.console.print(table)


async def presence(contender: Contender) -> str:
    """Try one, and say yes or why not."""
    try:
        await contender.open()
        await contender.close()
    except Absent as reason:
        return f"absent: {reason}"
    except Exception as error:
        return f"it does not work here: {error}"
    return "yes"
