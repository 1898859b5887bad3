"""Wraps deploy/prometheus/rules/*.yml for the Prometheus operator: run it after changing a rule.

    python deploy/kubernetes/write_prometheus_rules.py

Kustomize cannot put one file into another, so the result is kept beside the rest of the component;
a test compares it with the rules.
"""

from __future__ import annotations

from pathlib import Path

_DEPLOY = Path(__file__).resolve().parents[1]
RULES = _DEPLOY / "prometheus" / "rules"
RESULT = _DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rules.yaml"

_HEAD = "# Written by deploy/kubernetes/write_prometheus_rules.py from deploy/prometheus/rules.\n"
_RESOURCE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: segvlm-{name}
spec:
{spec}"""


def prometheus_rules() -> str:
    """A PrometheusRule for each file of rules, whose text becomes its `spec`."""
    resources = []
    for path in sorted(RULES.glob("*.yml")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        spec = "".join(line if line.isspace() else f"  {line}" for line in lines)
        resources.append(_RESOURCE.format(name=path.stem, spec=spec))
    return _HEAD + "---\n".join(resources)


if __name__ == "__main__":
    RESULT.write_text(prometheus_rules(), encoding="utf-8")
    print(f"wrote {RESULT.relative_to(_DEPLOY.parent)}")
