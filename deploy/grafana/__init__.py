"""The dashboards: written in Python, committed as Grafana loads them, drawn for the docs."""
