"""The run report: everything computed from sample ids, nothing assumed.

lost             ids without an outcome at the end
duplicate        ids whose outcome the caller saw more than once (the first one counts)
hung             ids still open 100 ms past their deadline, whatever became of them later
strangers        outcomes of numbers that were never offered
second_results   answers of another attempt, dropped at the source (allowed)
copies           of students: tasks that sources made of their samples; of these `hedged` were sent since an earlier one was late
partial          of students: results without every part
goodput          results that came before their deadline
"""

from zpipe.report.build import REPORT, SCHEMA, build_report, check_schema, spread
from zpipe.report.comparison import comparison, render_comparison
from zpipe.report.log import HUNG_SECONDS, KINDS, MOST_CAUSES, RunLog, merged
from zpipe.report.machine import machine
from zpipe.report.nodes import copies_grown, grown, link_rows, node_rows, quantile, sources_grown
from zpipe.report.terminal import render
from zpipe.report.words import policy_words

__all__ = [
    "HUNG_SECONDS",
    "KINDS",
    "MOST_CAUSES",
    "REPORT",
    "SCHEMA",
    "RunLog",
    "build_report",
    "check_schema",
    "comparison",
    "copies_grown",
    "grown",
    "link_rows",
    "machine",
    "merged",
    "node_rows",
    "policy_words",
    "quantile",
    "render",
    "render_comparison",
    "sources_grown",
    "spread",
]
