"""What became of a dataset: a table for people and for programs, and a page with a thumbnail of each volume."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape

from pipeline.core.printable import one_line
from pipeline.core.strict_json import json_text
from pipeline.dataset.outcome import Outcome, State
from pipeline.places import durable

FILES = ("summary.json", "summary.csv", "summary.html")

COLUMNS = (
    "name",
    "state",
    "reason",
    "voxels",
    "tiles",
    "seconds",
    "model",
    "fingerprint",
    "seen",
    "image",
    "url",
    "ended",
)

FIRST: tuple[State, ...] = ("failed", "busy", "waiting", "done", "skipped")
"""Order of states in tables: what needs somebody comes first."""

FORMULA = tuple("=+-@|%\uff1d\uff0b\uff0d\uff20")
"""Signs that begin a formula, or a command, in some spreadsheet; the wide ones in East Asian ones."""

NAMED = 20
"""Volumes that an error names at most."""


@dataclass(frozen=True)
class Summary:
    """A dataset after a go over it, or in the middle of one.

    Args:
        output: Path or URL of the set's output.
        catalogue: What its volumes were taken from.
        began: When, ISO 8601, UTC.
        volumes: In the catalogue.
        outcomes: Of those that were come to.
        ended: When; empty while it goes on.
        left_out: What the catalogue found that is no volume, and why.
    """

    output: str
    catalogue: str
    began: str
    volumes: int
    outcomes: Sequence[Outcome] = field(default_factory=list)
    ended: str = ""
    left_out: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Volumes by state."""
        counts = Counter(outcome.state for outcome in self.outcomes)
        return {state: counts[state] for state in FIRST if counts[state]}

    @property
    def ordered(self) -> list[Outcome]:
        """Those that need somebody first, then by name."""
        return sorted(self.outcomes, key=lambda outcome: (FIRST.index(outcome.state), outcome.name))

    def line(self) -> str:
        """The counts in a line."""
        left = self.volumes - len(self.outcomes)
        parts = [f"{count} {state}" for state, count in self.counts.items()] + ([f"{left} not come to"] if left else [])
        others = f"; {len(self.left_out)} that are no volumes left out" if self.left_out else ""
        return f"{self.volumes} volume{'s'[: self.volumes != 1]}: {', '.join(parts) or 'none'}{others}"

    def to_dict(self) -> dict[str, Any]:
        head = {key: value for key, value in asdict(self).items() if key != "outcomes"}
        return {**head, "counts": self.counts, "outcomes": [outcome.to_dict() for outcome in self.ordered]}

    def write(self, home: Path) -> None:
        """Replace `summary.json`, `summary.csv` and `summary.html` in the set's folder.

        Raises:
            OSError: They cannot be written.
        """
        durable.make_folder(home)
        contents = (json_text(self.to_dict(), indent=2) + "\n", self._csv(), self._page())
        for name, content in zip(FILES, contents, strict=True):
            # watchers write it too
            durable.replace(home / name, content.encode(errors="backslashreplace"), shared=True)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in outcome.to_dict().items()} for outcome in self.ordered)
        return text.getvalue()

    def _page(self) -> str:
        template = Environment(autoescape=select_autoescape(default=True)).from_string(_TEMPLATE)
        return template.render(summary=self)


def _cell(value: Any) -> Any:
    """A cell of a table: one line, and a text that a spreadsheet would take for a formula has a `'` before it, as one types it there."""
    if not isinstance(value, str):
        return value
    text = one_line(value.replace("\n", " | "))
    return f"'{text}" if value.lstrip()[:1] in FORMULA or value[:1] in ("\t", "\r", "\n") else text


def failures(outcomes: Sequence[Outcome]) -> str:
    """Volumes that failed, a line or more each, the first ones of many."""
    lines = [f"  {outcome.name}: {outcome.reason}" for outcome in outcomes[:NAMED]]
    return "\n".join([*lines, *([f"  and {len(outcomes) - NAMED} more"] if len(outcomes) > NAMED else [])])


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Halotile: {{ summary.output }}</title>
{% if not summary.ended %}<meta http-equiv="refresh" content="10">{% endif %}
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } .small { color: #666; font-size: .85rem } img { max-height: 90px; image-rendering: pixelated }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .8rem .4rem 0; vertical-align: top }
tr { border-bottom: 1px solid #eee } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.done, .skipped { color: #17692f } .failed { color: #a11 } .busy, .waiting { color: #946200 }
td.state { font-weight: 600 } pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit }
summary { cursor: pointer; overflow-wrap: anywhere }
</style></head><body>
<h1>{{ summary.output }}</h1>
<p>{{ summary.line() }}.
<span class="small">From {{ summary.catalogue }}. Began {{ summary.began }}, {{ "ended " ~ summary.ended if summary.ended else "goes on" }}.
As files: <a href="summary.csv">summary.csv</a>, <a href="summary.json">summary.json</a>.</span></p>
<table><tr><th>input, output</th><th>volume</th><th>state</th><th></th><th>voxels</th><th>tiles</th><th>seconds</th><th>model</th></tr>
{% for o in summary.ordered %}{% set run = o.name ~ "/versions/" ~ o.fingerprint ~ "/" ~ o.name ~ ".ome.zarr.run/" %}
<tr><td>{% if o.fingerprint %}<a href="{{ run }}report.html"><img loading="lazy" src="{{ run }}thumbnail.png" alt="Middle slice of {{ o.name }}, and of its prediction"></a>{% endif %}</td>
<td>{{ o.name }}<br><span class="small">{{ o.url }}</span></td>
<td class="state {{ o.state }}">{{ o.state }}</td>
<td>{% if o.state == "failed" %}<details><summary>{{ o.why[:200] }}</summary><pre>{{ o.reason }}</pre></details>
<span class="small">{{ "readers see version " ~ o.seen[:12] if o.seen else "readers see nothing" }}</span>{% else %}{{ o.reason }}{% endif %}
{% if o.fingerprint %}<a href="{{ run }}report.html">report</a> <span class="small">version {{ o.fingerprint[:12] }}</span>{% endif %}</td>
<td class="number">{{ "{:,}".format(o.voxels) if o.voxels else "" }}</td><td class="number">{{ o.tiles or "" }}</td>
<td class="number">{{ "%.1f" % o.seconds if o.seconds else "" }}</td><td class="small">{{ o.model }}</td></tr>
{% endfor %}</table>
{% if summary.left_out %}<h2>Left out</h2><ul>{% for line in summary.left_out %}<li class="small">{{ line }}</li>{% endfor %}</ul>{% endif %}
</body></html>
"""
