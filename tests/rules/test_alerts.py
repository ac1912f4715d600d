"""The alerts can be loaded: their figures are ones that the services export, and each leads to a place in a runbook."""

import re

import yaml
from tests.rules.house import ROOT
from tests.rules.test_documents import broken_links

from outbox_runtime.metrics import Metrics

FILE = ROOT / "docs" / "alerts.yaml"
METRIC = re.compile(r"\boutbox_\w+")
ALERT = re.compile(r"`(Outbox[A-Z]\w+)`")


def test_every_alert_asks_for_what_is_exported_and_leads_to_its_runbook() -> None:
    """Each rule has an expression over our metrics only, a severity, a summary and a heading of a runbook that exists."""
    # A family with labels has no samples yet.
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in Metrics().registry.collect()}
    [group] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) >= 5
    for rule in group["rules"]:
        asked = set(METRIC.findall(rule["expr"]))
        assert asked, rule["alert"]
        assert asked <= exported, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")
        runbook = rule["annotations"]["runbook"]
        assert re.fullmatch(r"docs/runbooks/[a-z-]+\.md#[a-z-]+", runbook), rule["alert"]
        assert list(broken_links(ROOT / "README.md", f"[runbook]({runbook})")) == [], rule["alert"]


def test_the_pages_name_the_alerts_that_there_are() -> None:
    """The page of doubts and the runbooks name every alert of the file, and no other."""
    defined = set(re.findall(r"alert: (\w+)", FILE.read_text(encoding="utf-8")))
    pages = [ROOT / "docs" / "doubts.md", *(ROOT / "docs" / "runbooks").glob("*.md")]
    named = {name for page in pages for name in ALERT.findall(page.read_text(encoding="utf-8"))}
    assert named == defined
