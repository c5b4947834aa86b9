"""Looks of the report: its style sheet, and the script that sorts its tables."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { --ink: #22303f; --muted: #5f6b7a; --line: #e3e7eb; --won: #00796d; --lost: #c23a4d; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { margin: 0; font-size: 26px; } h2 { margin: 0 0 10px; font-size: 16px; }
header p { margin: 4px 0 0; color: var(--muted); }
header .simulated { display: inline-block; margin: 0 0 8px; padding: 2px 10px; border-radius: 4px;
  background: #b3261e; color: white; font-weight: 600; }
section { margin-top: 16px; padding: 16px; background: white; border: 1px solid var(--line);
  border-radius: 8px; }
.wide { padding: 6px 4px; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; padding: 0;
  overflow: hidden; background: var(--line); }
.cards div { display: flex; flex-direction: column; padding: 12px 16px; background: white; }
.cards span, .cards small, .note { color: var(--muted); } .cards b { font-size: 21px; }
.cards small { font-size: 12px; white-space: nowrap; } .note { margin: 8px 0; font-size: 13px; }
.won b, b.won, tr.won td:nth-child(7), tr.won td:nth-child(8) { color: var(--won); }
.lost b, b.lost, tr.lost td:nth-child(7), tr.lost td:nth-child(8) { color: var(--lost); }
.notes { border-color: #e5b567; background: #fff8ea; } .notes ul { margin: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 8px 40px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 24px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
thead td, thead th { color: var(--muted); font-weight: 500; }
th, td { padding: 4px 8px; text-align: right; } tbody tr { border-top: 1px solid var(--line); }
.figures { align-self: start; }
.figures th { padding-left: 0; font-weight: 400; text-align: left; vertical-align: top; }
.figures th, .figures td { white-space: nowrap; } .figures td + td { color: var(--muted); }
.figures td.text { white-space: normal; text-align: left; padding-left: 24px; width: 70%; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .months td { padding: 4px 5px; font-size: 13px; } .months .sum { font-weight: 600; }
.months th { font-weight: 500; } .trades td, .trades th { white-space: nowrap; }
.trades td:first-child, .trades th:first-child, .trades td:last-child, .trades th:last-child {
  text-align: left; }
.sortable th { cursor: pointer; } .sortable th[aria-sort]::after { content: " \\2191"; }
.sortable th[aria-sort="descending"]::after { content: " \\2193"; }
summary { cursor: pointer; } summary h2 { display: inline-block; margin: 0; }
@media (max-width: 560px) { .cards { grid-template-columns: repeat(2, 1fr); } }
@media print { body { background: white; } section { break-inside: avoid; border: 0; } }
"""

SCRIPT: Final = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.v;
    const order = (a, b) => {
      const x = value(a), y = value(b), n = Number(x) - Number(y);
      return down * (Number.isNaN(n) ? x.localeCompare(y) : n);
    };
    body.append(...[...body.rows].sort(order));
  }));
}
"""
