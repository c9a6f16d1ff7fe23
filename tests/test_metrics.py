"""The metrics, as a real parser of Prometheus's reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from attrs import evolve
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from msglog._factory import MessageLogFactory
from msglog._figures import read_figures
from msglog._health import Health
from msglog._metrics import Scrape, registry_of
from msglog._nats_store import NatsStore
from msglog._stream_counts import LinkCounts, StreamCounts
from msglog._stream_figures import EngineState, read_stream_figures
from msglog.testing import MemoryStream, appended, make_batch

from .test_health import A, Bench
from .test_nats_store import NatsCase

ROOT = Path(__file__).parent.parent
UNITS = ("_bytes", "_seconds", "_messages", "_clients", "_records", "_connections", "_batches")


class MetricsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.bench = Bench(self)
        self.bench.store.startService()

    def scrape(self) -> dict:
        """Metric families by their names."""
        made = Scrape(self.bench.figures(), Health((), (), ()), self.bench.limits)
        text = generate_latest(registry_of(made)).decode()
        self.text = text
        return {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, families: dict, name: str, **labels) -> float:
        (found,) = [
            sample.value
            for family in families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        return found

    def test_workers(self) -> None:
        """Without worker processes nothing is said of them."""
        self.assertEqual(self.scrape()["msglog_workers"].samples, [])
        figures = evolve(self.bench.figures(), workers=(3, 2))
        made = Scrape(figures, Health((), (), ()), self.bench.limits)
        text = generate_latest(registry_of(made)).decode()
        families = {f.name: f for f in text_string_to_metric_families(text)}
        self.assertEqual(self.value(families, "msglog_workers", state="serving"), 2)
        self.assertEqual(self.value(families, "msglog_workers", state="away"), 1)

    def test_values(self) -> None:
        """What was committed is what is scraped."""
        appended(self.bench.store, make_batch(A, 1, b"a", b"b", b"c"))
        self.bench.settle()
        families = self.scrape()
        size = self.bench.path.stat().st_size
        for name, value in (
            ("msglog_records_written_total", 3),
            ("msglog_log_written_bytes_total", size),
            ("msglog_log_size_bytes", size),
            ("msglog_last_durable_commit_timestamp_seconds", self.bench.clock.seconds()),
            ("msglog_commit_messages_count", 1),
            ("msglog_commit_messages_sum", 3),
            ("msglog_ready", 1),
            ("msglog_failed", 0),
            ("msglog_ledger_clients", 1),
            ("msglog_recovery_torn_bytes", 0),
        ):
            self.assertEqual(self.value(families, name), value, name)
        self.assertEqual(self.value(families, "msglog_commit_messages_bucket", le="1"), 0)
        self.assertEqual(self.value(families, "msglog_commit_messages_bucket", le="4"), 1)
        self.assertEqual(self.value(families, "msglog_commit_messages_bucket", le="+Inf"), 1)

    def test_unknown_is_absent(self) -> None:
        """There is no time of a last commit before any, instead of 1970."""
        self.scrape()
        self.assertNotIn("\nmsglog_last_durable_commit_timestamp_seconds ", self.text)

    def test_conventions(self) -> None:
        """Every name begins with msglog_, has a meaning, and counters end in _total."""
        for family in self.scrape().values():
            if family.name.startswith("process_"):
                continue
            self.assertTrue(family.name.startswith("msglog_"), family.name)
            self.assertTrue(family.documentation.endswith("."), family.name)
            for sample in family.samples:
                if family.type == "counter":
                    self.assertTrue(sample.name.endswith("_total"), sample.name)
                else:
                    self.assertFalse(sample.name.endswith("_total"), sample.name)
            if family.type == "histogram":
                self.assertTrue(family.name.endswith(UNITS), family.name)

    def test_manual(self) -> None:
        """docs/monitoring.md has a row for every metric of msglog's own, and no other."""
        text = (ROOT / "docs" / "monitoring.md").read_text()
        rows = set(re.findall(r"^\| `(msglog_[a-z_]+)", text, re.M))
        names = set()
        for family in self.scrape().values():
            if not family.name.startswith("process_"):
                names.add(family.name + ("_total" if family.type == "counter" else ""))
        self.assertEqual(rows, names)


class StreamMetricsTest(NatsCase):
    """What is scraped of a store on a stream."""

    def scrape(self, store: NatsStore) -> dict[tuple[str, str], float]:
        """Each sample's value by its name and the values of its labels."""
        factory = MessageLogFactory(self.clock, store, self.limits)
        made = Scrape(read_figures(store, factory), Health((), (), ()), self.limits)
        return {
            (sample.name, ",".join(sorted(sample.labels.values()))): sample.value
            for family in text_string_to_metric_families(
                generate_latest(registry_of(made)).decode()
            )
            for sample in family.samples
        }

    def test_values(self) -> None:
        stream = MemoryStream()
        stream.info["cluster"] = {
            "leader": "n1",
            "replicas": [{"name": "n2", "current": True, "lag": 3, "active": 1}],
        }
        stream.counts.connected("n1:4222")
        store = self.make_store(stream)
        self.append(store, 1, b"a", b"b")
        self.settle(store)
        stream.mute = 1
        self.append(store, 3, b"c")
        self.settle(store)
        self.advance(1)
        scraped = self.scrape(store)
        for name, label, value in (
            ("messages_acked_total", "", 0),
            ("records_written_total", "", 2),
            ("commit_seconds_count", "", 1),
            ("stream_request_seconds_count", "append", 1),
            ("stream_request_seconds_bucket", "+Inf,append", 1),
            ("stream_request_seconds_count", "tail", 2),
            ("stream_append_batches_sum", "", 1),
            ("stream_appends_unknown_total", "timeout", 1),
            ("stream_appends_unknown_total", "disconnected", 0),
            ("stream_appends_resolved_total", "landed", 1),
            ("stream_appends_unresolved", "", 0),
            ("stream_conflicts_total", "elsewhere", 0),
            ("stream_messages_refused_total", "full", 0),
            ("stream_state", "answering", 1),
            ("stream_state", "away", 0),
            ("stream_away_seconds", "", 0),
            ("stream_connection_info", "n1:4222", 1),
            ("stream_disconnected_seconds", "", 0),
            ("stream_reconnects_total", "", 0),
            ("stream_requests", "append", 0),
            ("stream_requests_limit", "", 256),
            ("stream_replicas", "", 3),
            ("stream_replicas_current", "", 2),
            ("stream_replica_lag", "n2", 3),
            ("stream_leader_changes_total", "", 0),
        ):
            self.assertEqual(scraped["msglog_" + name, label], value, (name, label))
        self.assertGreater(scraped["msglog_stream_read_bytes_total", "tail"], 0)

    def test_unknown_is_absent(self) -> None:
        """Without a connection there is no name of a server."""
        scraped = self.scrape(self.make_store())
        self.assertEqual([name for name, _ in scraped if name.endswith("connection_info")], [])


class DeployTest(SynchronousTestCase):
    """What is in deploy/ names only metrics that there are."""

    def setUp(self) -> None:
        self.bench = Bench(self)
        self.bench.store.startService()
        appended(self.bench.store, make_batch(A, 1, b"a"))
        self.bench.settle()
        stream = read_stream_figures(
            StreamCounts(),
            LinkCounts(server="n1:4222"),
            {"cluster": {"leader": "n1", "replicas": [{"name": "n2"}]}},
            EngineState.AWAY,
            0.0,
            1,
        )
        figures = evolve(self.bench.figures(), certificate_expires=2e9, stream=stream)
        made = Scrape(figures, Health((), (), ()), self.bench.limits)
        self.names = {
            sample.name
            for family in text_string_to_metric_families(
                generate_latest(registry_of(made)).decode()
            )
            for sample in family.samples
        }

    def check(self, expression: str) -> None:
        used = set(re.findall(r"\b(?:msglog|process)_[a-z_]+\b", expression))
        self.assertTrue(used, f"no metric in {expression!r}")
        self.assertEqual(used - self.names, set(), expression)
        self.assertEqual(expression.count("("), expression.count(")"), expression)

    def test_alerts(self) -> None:
        """Each alert has a severity, a text, metrics that exist, and a row in the manual."""
        rules = yaml.safe_load((ROOT / "deploy" / "prometheus-rules.yml").read_text())
        manual = (ROOT / "docs" / "monitoring.md").read_text()
        alerts = [rule for group in rules["groups"] for rule in group["rules"]]
        self.assertGreater(len(alerts), 5)
        self.assertEqual(len({rule["alert"] for rule in alerts}), len(alerts))
        for rule in alerts:
            if rule["alert"] != "MsglogDown":
                self.check(rule["expr"])
            self.assertIn(rule["labels"]["severity"], ("page", "ticket"))
            self.assertEqual(set(rule["annotations"]), {"summary", "description"})
            self.assertIn(f"`{rule['alert']}`", manual)

    def test_dashboard(self) -> None:
        """Each panel has a title, and queries that name metrics that there are."""
        board = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
        panels = [panel for panel in board["panels"] if panel["type"] != "row"]
        self.assertGreater(len(panels), 8)
        self.assertEqual(len({panel["id"] for panel in board["panels"]}), len(board["panels"]))
        for panel in panels:
            self.assertTrue(panel["title"])
            for target in panel["targets"]:
                self.check(target["expr"])
        taken = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    self.assertLess(x, 24)
                    taken.add((x, y))
