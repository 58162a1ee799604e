"""The Grafana dashboard of a topology: `zpipe deploy --target grafana`.

Every query is checked in a test against what a live node tells, and whatever a node tells is shown or named in NOT_SHOWN. It was
looked at by no Grafana here: its structure is checked against Grafana's published types, its queries by a running Prometheus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zpipe.metrics.families import METRICS

#: Metrics that no panel has, since others tell the same, or for whom it is too fine: they are there for one's own queries.
NOT_SHOWN = frozenset(
    {
        "zpipe_source_info",  # to be joined with the others by rank
        "zpipe_node_accepting",  # zpipe_node_ready, /readyz says which
        "zpipe_node_serving",
        "zpipe_held_tasks",
        "zpipe_spilled_batches_total",
        "zpipe_sent_input_tasks_total",
        "zpipe_relayed_answers_total",
        "zpipe_shared_memory_messages_total",
        "zpipe_link_latency_seconds",
        "zpipe_held_back_lines_total",
        "zpipe_source_room_samples",
        "zpipe_source_copies_total",  # of students alone, like the next two
        "zpipe_source_hedged_copies_total",
        "zpipe_source_partial_results_total",
    }
)
#: Of Grafana 11; later ones read it.
SCHEMA = 39
_COLUMNS = 24
_HEIGHT = {"stat": 4, "timeseries": 8, "state-timeline": 6, "table": 6}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: What is chosen at the top of the dashboard.
_CHOSEN = 'topology="$topology",rank=~"$rank"'

View = Literal["stat", "timeseries", "state-timeline", "table"]


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel.

    Attributes:
        queries: (PromQL, legend); `@` stands for what is chosen, `%` for the window of a rate.
        unit: Grafana's name of it.
        most: the end of the axis, None where it is free.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    view: View = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None

    @property
    def expressions(self) -> list[str]:
        """The queries as Grafana gets them."""
        return [query.replace("@", _CHOSEN).replace("%", "$__rate_interval") for query, _ in self.queries]


def _rate(metric: str, by: str, legend: str) -> tuple[str, str]:
    return f"sum by ({by}) (rate({metric}{{@}}[%]))", legend


def _latency(q: float, by: str = "le") -> str:
    return f"histogram_quantile({q}, sum by ({by}) (rate(zpipe_source_latency_seconds_bucket{{@}}[%])))"


_OUTCOME = 'zpipe_source_ended_samples_total{@,outcome="result"}'

_OVERVIEW = (
    Panel("Nodes ready", [("sum(zpipe_node_ready{@})", "")], view="stat", width=4),
    Panel("Results", [(f"sum(rate({_OUTCOME}[%]))", "")], "hertz", "stat", 4),
    Panel("Latency p95", [(_latency(0.95), "")], "s", "stat", 4),
    Panel(
        "Samples with a result",
        [(f"sum(rate({_OUTCOME}[%])) / sum(rate(zpipe_source_ended_samples_total{{@}}[%]))", "")],
        "percentunit",
        "stat",
        4,
    ),
    Panel("Neighbours missing", [("count(zpipe_neighbour_up{@} == 0) or vector(0)", "")], view="stat", width=4),
    Panel("Stage failures", [("sum(increase(zpipe_stage_failures_total{@}[$__range]))", "")], view="stat", width=4),
    Panel("Ready", [("zpipe_node_ready{@}", "rank {{rank}}")], view="state-timeline", width=16),
    Panel("What runs", [("zpipe_node_info{@}", "")], view="table"),
)

_SAMPLES = (
    Panel("Outcomes", [_rate("zpipe_source_ended_samples_total", "outcome", "{{outcome}}")], "hertz", stacked=True),
    Panel(
        "Offered and let in",
        [
            _rate("zpipe_source_submitted_samples_total", "rank", "submitted at {{rank}}"),
            _rate("zpipe_source_admitted_samples_total", "rank", "let in at {{rank}}"),
            ("zpipe_source_rate_limit_hertz{@}", "limit at {{rank}}"),
        ],
        "hertz",
    ),
    Panel("Latency", [(_latency(q), f"p{100 * q:.0f}") for q in (0.5, 0.95, 0.99)], "s"),
    Panel(
        "Mean latency",
        [("rate(zpipe_source_latency_seconds_sum{@}[%]) / rate(zpipe_source_latency_seconds_count{@}[%])", "source {{rank}}")],
        "s",
    ),
    Panel("Exits", [_rate("zpipe_exited_samples_total", "stage", "after stage {{stage}}")], "hertz", stacked=True),
    Panel("Exit thresholds", [("zpipe_source_exit_threshold_ratio{@}", "stage {{stage}} at {{rank}}")], "percentunit", most=1.0),
    Panel("Operating point", [("zpipe_source_operating_point_info{@}", "{{point}} at {{rank}}")], view="state-timeline"),
    Panel(
        "At the source",
        [
            ("zpipe_source_waiting_samples{@}", "waiting at {{rank}}"),
            ("zpipe_source_in_flight_samples{@}", "in flight at {{rank}}"),
            ("zpipe_source_window_samples{@}", "window at {{rank}}"),
        ],
    ),
    Panel(
        "Again and again",
        [
            _rate("zpipe_source_resubmitted_samples_total", "rank", "submitted again at {{rank}}"),
            _rate("zpipe_source_retransmit_timeouts_total", "rank", "by timer at {{rank}}"),
            _rate("zpipe_source_repeated_results_total", "rank", "repeated results at {{rank}}"),
            _rate("zpipe_source_stray_answers_total", "rank", "stray answers at {{rank}}"),
            _rate("zpipe_source_raised_sessions_total", "rank", "sessions raised at {{rank}}"),
        ],
        "hertz",
    ),
)

_NODES = (
    Panel("Executor busy", [_rate("zpipe_busy_seconds_total", "rank", "rank {{rank}}")], "percentunit"),
    Panel(
        "CPU",
        [
            _rate("process_cpu_seconds_total", "rank", "rank {{rank}}"),
            _rate("zpipe_stage_cpu_seconds_total", "rank", "stages of {{rank}}"),
        ],
        "percentunit",
    ),
    Panel("Memory", [("process_resident_memory_bytes{@}", "rank {{rank}}")], "bytes"),
    Panel("Queues", [("zpipe_queue_tasks{@}", "{{queue}} of {{rank}}")]),
    Panel(
        "Queue length, p95",
        [("histogram_quantile(0.95, sum by (le, rank) (rate(zpipe_queue_length_tasks_bucket{@}[%])))", "rank {{rank}}")],
    ),
    Panel(
        "Tasks in a batch",
        [("rate(zpipe_run_tasks_total{@}[%]) / rate(zpipe_run_batches_total{@}[%])", "rank {{rank}}")],
    ),
    Panel("Time of a task", [("zpipe_task_service_seconds{@}", "stage {{stage}} at {{rank}}")], "s"),
    Panel("File descriptors", [("process_open_fds{@} / process_max_fds{@}", "rank {{rank}}")], "percentunit", most=1.0),
    Panel(
        "Fullest tables",
        [("topk(5, zpipe_table_entries{@} / (zpipe_table_limit_entries{@} > 0))", "{{table}} of {{rank}}")],
        "percentunit",
        most=1.0,
    ),
)

_LINKS = (
    Panel("Sent over links", [_rate("zpipe_link_sent_bytes_total", "rank, peer", "{{rank}} to {{peer}}")], "Bps"),
    Panel(
        "Saved by codecs",
        [
            (
                "1 - rate(zpipe_link_sent_bytes_total{@}[%]) / rate(zpipe_link_uncoded_bytes_total{@}[%])",
                "{{rank}} to {{peer}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Tasks in a message",
        [("rate(zpipe_link_sent_tasks_total{@}[%]) / rate(zpipe_link_sent_messages_total{@}[%])", "{{rank}} to {{peer}}")],
    ),
    Panel(
        "Credit in use",
        [("zpipe_link_outstanding_tasks{@} / zpipe_link_window_tasks{@}", "{{rank}} to {{peer}}")],
        "percentunit",
        most=1.0,
    ),
    Panel(
        "Open, and waiting for credit",
        [("zpipe_link_open{@}", "{{rank}} to {{peer}} open"), ("zpipe_link_starved{@}", "{{rank}} to {{peer}} waits")],
        view="state-timeline",
    ),
    Panel("Round trip", [("zpipe_link_round_trip_seconds{@}", "{{rank}} to {{peer}}")], "s"),
    Panel("Bandwidth, as measured", [("zpipe_link_bandwidth_bytes_per_second{@}", "{{rank}} to {{peer}}")], "Bps"),
    Panel(
        "All traffic",
        [_rate("zpipe_sent_bytes_total", "rank", "from {{rank}}"), _rate("zpipe_received_bytes_total", "rank", "to {{rank}}")],
        "Bps",
    ),
    Panel(
        "Messages",
        [
            _rate("zpipe_sent_messages_total", "plane", "{{plane}} sent"),
            _rate("zpipe_received_messages_total", "plane", "{{plane}} received"),
            _rate("zpipe_sent_tasks_total", "topology", "tasks sent"),
            _rate("zpipe_received_tasks_total", "topology", "tasks received"),
        ],
        "hertz",
    ),
)

_TROUBLE = (
    Panel("Messages refused", [_rate("zpipe_refused_messages_total", "rank, reason", "{{reason}} at {{rank}}")], "hertz"),
    Panel("Connections turned away", [_rate("zpipe_refused_connections_total", "rank, reason", "{{reason}} at {{rank}}")], "hertz"),
    Panel(
        "Connections made anew",
        [
            _rate("zpipe_reset_connections_total", "rank, reason", "{{reason}} at {{rank}}"),
            _rate("zpipe_suspicions_total", "rank", "silence seen by {{rank}}"),
            _rate("zpipe_blocked_messages_total", "rank", "credit asked for by {{rank}}"),
            _rate("zpipe_dropped_credits_total", "rank", "late credit at {{rank}}"),
        ],
        "hertz",
    ),
    Panel(
        "Tasks lost on the way",
        [
            _rate("zpipe_missed_tasks_total", "rank", "never arrived, sent by {{rank}}"),
            _rate("zpipe_dropped_tasks_total", "rank, reason", "{{reason}} at {{rank}}"),
            _rate("zpipe_stage_failures_total", "rank", "failed at {{rank}}"),
            _rate("zpipe_handed_over_tasks_total", "rank", "handed over by {{rank}}"),
            _rate("zpipe_unroutable_answers_total", "rank", "answers without a way at {{rank}}"),
        ],
        "hertz",
    ),
    Panel(
        "Liars",
        [
            ("zpipe_bans_total{@}", "bans by {{rank}}"),
            ("zpipe_banned_keys_total{@}", "keys struck by {{rank}}"),
            ("zpipe_false_results_total{@}", "false results at {{rank}}"),
        ],
    ),
    Panel("Log lines that could not be written", [("zpipe_failed_lines_total{@}", "rank {{rank}}")]),
)

ROWS = {"Overview": _OVERVIEW, "Samples": _SAMPLES, "Nodes": _NODES, "Links": _LINKS, "Trouble": _TROUBLE}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it; it asks for the Prometheus there, then for topology and ranks."""
    return {
        "uid": "zpipe",
        "title": "zpipe",
        "description": "One deep network over several small computers: samples, nodes, links, trouble.",
        "tags": ["zpipe"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair through all panels
        "time": {"from": "now-30m", "to": "now"},
        "refresh": "10s",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": list(_panels()),
    }


def _variables() -> list[dict[str, Any]]:
    chosen = {"datasource": _SOURCE, "type": "query", "refresh": 2, "sort": 3}
    topology, rank = "label_values(zpipe_node_info, topology)", 'label_values(zpipe_node_info{topology="$topology"}, rank)'
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "topology",
            "label": "Topology",
            **chosen,
            "query": {"query": topology, "refId": "topology"},
        },
        {
            "name": "rank",
            "label": "Rank",
            **chosen,
            "query": {"query": rank, "refId": "rank"},
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        },
    ]


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, top, _COLUMNS, 1),
        }
        left, top, tallest = 0, top + 1, 0
        for panel in panels:
            height = _HEIGHT[panel.view]
            if left + panel.width > _COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            number += 1
            yield {"id": number, "gridPos": _place(left, top, panel.width, height), **_panel(panel)}
            left, tallest = left + panel.width, max(tallest, height)
        top += tallest


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.view in ("timeseries", "stat") and panel.title != "Saved by codecs":  # a codec may add bytes to few
        defaults["min"] = 0
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.stacked:
        defaults["custom"] = {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}}
    return {
        "type": panel.view,
        "title": panel.title,
        "description": _meanings(panel),
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.view),
        "targets": [_target(panel, index) for index in range(len(panel.queries))],
    }


def _target(panel: Panel, index: int) -> dict[str, Any]:
    now = panel.view == "table"
    return {
        "refId": chr(ord("A") + index),
        "datasource": _SOURCE,
        "expr": panel.expressions[index],
        "legendFormat": panel.queries[index][1] or "__auto",
        "range": not now,
        "instant": now,
        **({"format": "table"} if now else {}),
    }


def _options(view: View) -> dict[str, Any]:
    match view:
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "none", "graphMode": "area"}
        case "timeseries":
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        case "state-timeline":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
                "showValue": "never",
                "mergeValues": True,
            }
        case "table":
            return {"showHeader": True}


def _meanings(panel: Panel) -> str:
    """What the metrics of a panel are, as the nodes say it."""
    asked = set(re.findall(r"zpipe_\w+", " ".join(panel.expressions)))
    told = [
        metric for metric in METRICS if {metric.name, *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))} & asked
    ]
    return "\n".join(f"{metric.name}: {metric.help}" for metric in told)
