# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Look and behaviour of the report, in strings, so that the page needs no other file."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5c6773; --line: #d9dee4; --paper: #fff; --right: #3b82c4;
  --wrong: #d6453d; --missed: #e5242a; --false: #ff8a00; --duplicate: #a435f0; --hit: #1fae5f; --do: #fff6dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a3adb8; --line: #3a424b; --paper: #16191d;
  --do: #3a3220; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 760px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 8px 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 20px 0 4px; }
section { margin: 36px 0; }
section > p:first-of-type { color: var(--soft); margin: 0 0 12px; }
.do { background: var(--do); border-left: 5px solid var(--false); padding: 12px 16px; margin: 0 0 20px; }
.do > p:first-of-type { color: var(--ink); font-size: 1.1rem; margin: 0; }
.numbers { display: flex; flex-wrap: wrap; gap: 8px 24px; }
.numbers b { font-size: 1.5rem; display: block; line-height: 1.2; }
.numbers span { color: var(--soft); font-size: 0.9rem; }
.bar { display: grid; grid-template-columns: 17em 1fr 3em; gap: 10px; align-items: center; margin: 6px 0; }
.track { position: relative; height: 18px; background: color-mix(in srgb, var(--line) 40%, transparent); }
.track b { position: absolute; inset: 0 auto 0 0; background: var(--right); }
.track .behind { opacity: 0.35; }
.value { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 560px) { .bar { grid-template-columns: 1fr 3em; gap: 0 10px; }
  .bar > span:first-child { grid-column: 1 / 3; font-size: 0.9rem; } }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 8px 0; font-size: 0.92rem; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
.text { text-align: left; }
.text:first-child { padding-left: 0; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.matrix { width: auto; }
.matrix td { position: relative; min-width: 46px; height: 34px; text-align: center; border: 1px solid var(--line); }
.matrix td i { position: absolute; inset: 0; }
.matrix td span { position: relative; }
.matrix .up { padding: 6px 0; text-align: center; }
.matrix .up span { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix th { white-space: nowrap; }
.matrix th:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); }
.chart { display: block; width: 100%; max-width: 600px; height: auto; margin: 8px 0 20px; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart path { fill: none; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .c { stroke-width: 1.5; opacity: 0.85; }
.chart .all { stroke: var(--ink); stroke-width: 2.5; }
.chart .best { fill: var(--ink); }
.one .c { opacity: 0.08; }
.one .c.on { opacity: 1; stroke-width: 3; stroke: var(--false) !important; }
.legend, .kinds { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; margin: 0 0 8px; }
.legend .line { display: inline-block; width: 18px; height: 3px; vertical-align: middle; margin-right: 6px; }
select { font: inherit; max-width: 14em; }
.kinds label { display: inline-flex; align-items: center; gap: 6px; }
.kinds i { width: 16px; height: 12px; border: 2.5px solid; }
.kinds .missed i { border: 2.5px dashed var(--missed); }
.kinds .false i { border-color: var(--false); }
.kinds .duplicate i { border: 2.5px dotted var(--duplicate); }
.kinds .right i { border: 1.5px solid var(--hit); }
figure { margin: 0 0 24px; }
figcaption { color: var(--soft); font-size: 0.92rem; overflow-wrap: anywhere; }
.picture { display: block; width: 100%; max-height: 80vh; height: auto; background: #8884; }
.picture rect { fill: transparent; vector-effect: non-scaling-stroke; stroke-width: 2.5; }
.picture .blank { fill: #8883; stroke: none; }
.picture .missed { stroke: var(--missed); stroke-dasharray: 7 4; }
.picture .false { stroke: var(--false); }
.picture .duplicate { stroke: var(--duplicate); stroke-dasharray: 2 3; stroke-width: 3; }
.picture .right { stroke: var(--hit); stroke-width: 1.2; }
.picture .region { stroke: #999; stroke-dasharray: 1 4; }
.off { display: none; }
ol { padding-left: 1.6em; }
li { margin: 3px 0; color: var(--soft); }
.chosen { color: var(--ink); font-weight: 600; }
"""

SCRIPT = """
for (const box of document.querySelectorAll("[data-kind]"))
  box.addEventListener("change", () => {
    for (const mark of document.querySelectorAll(".picture ." + box.dataset.kind))
      mark.classList.toggle("off", !box.checked);
  });
const one = document.getElementById("one");
if (one)
  one.addEventListener("change", () => {
    for (const chart of document.querySelectorAll(".chart")) chart.classList.toggle("one", one.value !== "");
    for (const line of document.querySelectorAll(".chart .c"))
      line.classList.toggle("on", line.dataset.c === one.value);
  });
"""
