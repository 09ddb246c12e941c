"""One HTML file that needs nothing else: its style, its sections, and a policy under which a browser loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .charts import DRAW, MARK, library

# The browser itself refuses every request; style, script and the charts' library stand in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --paper: #fff; --card: #f6f8fa;
  --better: #1a7f37; --worse: #b2182b; --cool: #2166ac; --even: #f7f7f7; --warm: #b2182b;
  --deep-0: #fff; --deep-1: #c6dcf0; --deep-2: #7fb2de; --deep-3: #3a7fbf; --deep-4: #123f73;
  --arm-0: #6e7781; --arm-1: #1b6ca8; --arm-2: #d4570a; --arm-3: #2e7d32; --arm-4: #7b3fb5; --arm-5: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --paper: #0d1117;
  --card: #161b22; --better: #57ab5a; --worse: #f47067; --cool: #4ea1f3; --even: #30363d; --warm: #ff7b6b;
  --deep-0: #1c2733; --deep-1: #1f4e79; --deep-2: #2f7fc1; --deep-3: #79b8f0; --deep-4: #e8f3ff;
  --arm-0: #9aa4af; --arm-1: #58a6ff; --arm-2: #ff9d5c; --arm-3: #57ab5a; --arm-4: #c39bff; --arm-5: #e3b341 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1160px;
  margin: 0 auto; padding: 1.2em 1em 3em; overflow-wrap: break-word }
h1 { font-size: 1.6em; line-height: 1.25; margin: .2em 0 .6em }
h2 { font-size: 1.25em; margin: 2.2em 0 .6em; padding-bottom: .2em; border-bottom: 1px solid var(--line) }
h3 { font-size: 1em; margin: 1.4em 0 .3em }
p { max-width: 75ch; margin: .5em 0 } code, pre { font: .88em/1.5 ui-monospace, monospace }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7em; overflow-x: auto }
figure { --back: var(--card) } .wide { overflow-x: auto; background:
  linear-gradient(90deg, var(--back, var(--paper)) 40%, transparent) left / 32px 100% no-repeat local,
  linear-gradient(-90deg, var(--back, var(--paper)) 40%, transparent) right / 32px 100% no-repeat local,
  linear-gradient(90deg, #8886, transparent) left / 10px 100% no-repeat scroll,
  linear-gradient(-90deg, #8886, transparent) right / 10px 100% no-repeat scroll }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4em 0 }
td, th { padding: .25em .7em; text-align: right; white-space: nowrap } th { font-weight: 600; vertical-align: bottom }
thead th { border-bottom: 1px solid var(--soft) } tbody tr + tr td { border-top: 1px solid var(--line) }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
.words td, .words th { text-align: left; white-space: normal; vertical-align: top }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: .2em 1em }
figure { margin: .8em 0; padding: .8em; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  min-width: 0 }
figcaption { font-weight: 600 } .note, summary { color: var(--soft); font-size: .9em } summary { cursor: pointer }
.drawn { background: #fff; padding: .5em; border-radius: 4px; overflow-x: auto } .drawn svg { min-width: 640px }
.lead { font-size: 1.08em } .better { color: var(--better) } .worse { color: var(--worse) } .not { color: var(--soft) }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """sections: (heading, HTML) in order. Raises PluginError if there are charts, and not the library that draws."""
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>\n" for heading, content in sections)
    script = f"<script>{library()}</script>\n<script>{DRAW}</script>" if MARK in body else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}{script}</body></html>\n"
    )
