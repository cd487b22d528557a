"""The page of a report."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, select_autoescape

from pipeline.core.plan import Plan
from pipeline.reports.rows import ledger_rows, mismatch_rows, plan_rows

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Halotile: {{ plan.output.url }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } th { text-align: left; padding-right: 2rem; font-weight: 600; vertical-align: top }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere } tr { border-bottom: 1px solid #eee }
img { max-width: 100%; image-rendering: pixelated } .good { color: #17692f } .bad { color: #a11 }
</style></head><body>
<h1>{{ plan.output.url }}</h1>
<p class="{{ 'good' if complete else 'bad' }}">{{ verdict }}</p>
<h2>Input beside output, z {{ z }}</h2>
<img src="slices.png" alt="Middle slice of the input, and of the prediction">
<h2>Plan</h2>
<table>{% for name, value in rows %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Ledger</h2>
<table>{% for name, value in ledger %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""


def page(plan: Plan, content: dict[str, Any]) -> str:
    """The page, HTML, of a plan and its report as data."""
    verification = content["stages"]["verify"] or {}
    complete = bool(verification.get("complete"))
    done, total = content["tiles"]["done"], content["tiles"]["total"]
    verdict = f"{done} of {total} tiles done; " + ("every stored byte verified." if complete else "not verified.")
    template = Environment(autoescape=select_autoescape(default=True)).from_string(_TEMPLATE)
    return template.render(
        plan=plan,
        complete=complete,
        verdict=verdict,
        z=plan.source.shape[0] // 2,
        rows=plan_rows(plan) + mismatch_rows(content.get("mismatch")),
        ledger=ledger_rows(plan, content["stages"]["infer"]),
    )
