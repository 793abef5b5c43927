"""The alerts of docs/alerts.yaml, by Prometheus' own checker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ALERTS = Path(__file__).parents[3] / "docs/alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")


def said(promtool: str, what: str, file: Path) -> str:
    """Return what promtool says of a file that it must find right."""
    done = subprocess.run([promtool, what, "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_alerts_are_rules_of_prometheus(promtool: str) -> None:
    assert "SUCCESS" in said(promtool, "check", ALERTS)


def test_each_alert_fires_for_what_it_is_about_and_not_for_what_is_usual(promtool: str) -> None:
    said(promtool, "test", CASES)
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    names = {rule["alert"] for rule in group["rules"]}
    quiet, firing, *_ = yaml.safe_load(CASES.read_text())["tests"]
    assert {case["alertname"] for case in quiet["alert_rule_test"]} == names
    assert {case["alertname"] for case in firing["alert_rule_test"]} == names
    assert all(case["exp_alerts"] for case in firing["alert_rule_test"])


def test_every_document_that_is_named_is_there_with_the_section() -> None:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    actions = " ".join(rule["annotations"]["action"] for rule in group["rules"])
    named = re.findall(r"(docs/[\w.-]+)(?:, ([^)]+))?", actions)
    assert named
    for document, section in named:
        assert f"\n## {section}\n" in (ALERTS.parents[1] / document).read_text(), document
