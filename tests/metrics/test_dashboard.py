"""The dashboard against a live node: every name and label it asks for exists, and what exists is shown or named as not shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("promql_parser")

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

from tests.metrics.looks import get, scraped
from tests.runtime.mesh import run
from zpipe.metrics.dashboard import NOT_SHOWN, dashboard
from zpipe.metrics.families import COMMON_LABELS, METRICS

#: What Prometheus puts on each series itself.
SCRAPED = {"instance", "job"}
#: Of Grafana's units, those used.
UNITS = {"short", "s", "hertz", "bytes", "Bps", "percentunit"}
#: Only told once it was measured, or where admission limits something: a mesh in memory that idles has none.
SOMETIMES = {
    "zpipe_link_bandwidth_bytes_per_second": "peer",
    "zpipe_source_rate_limit_hertz": "",
    "zpipe_source_window_samples": "",
}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """(query as Prometheus gets it, legend)."""
    targets = [target for panel in panels() for target in panel["targets"]]
    return [(re.sub(r"\$__(rate_interval|range)", "1m", target["expr"]), target["legendFormat"]) for target in targets]


def selectors(query: str) -> Iterator[Any]:
    found: list[Any] = []
    promql.walk(promql.parse(query), lambda each: found.append(each))
    yield from (each for each in found if isinstance(each, promql.VectorSelector))


def groupings(query: str) -> set[str]:
    """Labels that a query aggregates by."""
    found: set[str] = set()

    def note(each: Any) -> None:
        if isinstance(each, promql.AggregateExpr) and each.modifier is not None:
            found.update(each.modifier.labels)

    promql.walk(promql.parse(query), note)
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """{sample name: its labels} of a source and of a node that serves, after some samples."""
    found: dict[str, set[str]] = {name: {*COMMON_LABELS, *label.split()} for name, label in SOMETIMES.items()}

    async def main() -> None:
        for rank in (0, 1):
            async with scraped(rank) as (mesh, telling):
                for number in range(20):
                    mesh.submit(number)
                await mesh.until(20)
                for family in text_string_to_metric_families((await get(telling, "/metrics")).body.decode()):
                    for sample in family.samples:
                        found.setdefault(sample.name, set()).update(sample.labels)

    run(main)
    return found


def test_every_query_asks_for_what_nodes_tell(told: dict[str, set[str]]) -> None:
    for query, legend in queries():
        asked = list(selectors(query))
        assert bool(asked), query
        labels = {*SCRAPED}
        for selector in asked:
            assert selector.name in told, query
            labels |= told[selector.name]
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched <= told[selector.name], query
            assert matched >= set(COMMON_LABELS), f"{query}: not only of what is chosen"
        assert groupings(query) <= labels, query
        assert set(re.findall(r"{{(\w+)}}", legend)) <= (groupings(query) or labels), (query, legend)


def test_a_query_for_what_no_node_tells_is_found_out() -> None:
    (selector,) = selectors('sum by (rank) (rate(zpipe_nothing_total{rank="1"}[1m]))')
    assert (selector.name, [matcher.name for matcher in selector.matchers.matchers]) == ("zpipe_nothing_total", ["rank"])
    assert groupings("sum by (rank, peer) (up)") == {"rank", "peer"}


def test_only_what_grows_is_asked_for_its_rate() -> None:
    kinds = {metric.name: metric.kind for metric in METRICS}
    for query, _ in queries():
        for name in re.findall(r"(?:rate|increase)\((\w+)", query):
            counts = re.sub("_(bucket|sum|count)$", "", name)
            assert kinds.get(name) == "counter" or kinds.get(counts) == "histogram" or name == "process_cpu_seconds_total", query


def test_whatever_is_told_is_shown_or_named() -> None:
    asked = {re.sub("_(bucket|sum|count)$", "", selector.name) for query, _ in queries() for selector in selectors(query)}
    assert {metric.name for metric in METRICS} - asked == NOT_SHOWN


def test_structure_is_what_grafana_imports() -> None:
    plain = json.loads(json.dumps(dashboard()))
    numbers = [panel["id"] for panel in plain["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert [variable["name"] for variable in plain["templating"]["list"]] == ["datasource", "topology", "rank"]
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert [target["refId"] for target in panel["targets"]] == [chr(ord("A") + n) for n in range(len(panel["targets"]))]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert panel["description"] or "process_" in panel["targets"][0]["expr"], panel["title"]
    assert len({panel["title"] for panel in plain["panels"]}) == len(plain["panels"])


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
