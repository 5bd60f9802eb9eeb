"""The style sheet of the page: system fonts, one accent, light and dark from one set of variables."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE"]

STYLE: Final = """
:root{color-scheme:light dark;
--paper:#ffffff;--wash:#f6f7f9;--line:#e2e5ea;--rule:#c9ced6;--ink:#1b2129;--soft:#5a6573;--faint:#8a94a2;
--accent:#2b5f9e;--accent-wash:#e8f0f9;--before:#b9c1cc;--ok:#1c7a45;--ok-wash:#e6f4ec;--bad:#b3261e;
--bad-wash:#fbeae9;--warn:#8a5a00;--warn-wash:#fdf3e0}
@media (prefers-color-scheme:dark){:root{
--paper:#14181d;--wash:#1b2027;--line:#2b323b;--rule:#3d4651;--ink:#e6e9ed;--soft:#a3adb9;--faint:#77828f;
--accent:#7db1ea;--accent-wash:#1d2f45;--before:#56606c;--ok:#6fce97;--ok-wash:#17301f;--bad:#ff8f86;
--bad-wash:#3b1a18;--warn:#e5b45b;--warn-wash:#362a12}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
h1{font-size:1.05rem;font-weight:600;margin:0;letter-spacing:.01em}
h2{font-size:1.2rem;font-weight:650;letter-spacing:-.01em;margin:0 0 .35rem}
h3{font-size:.95rem;font-weight:600;margin:1.6rem 0 .5rem}
p{margin:0 0 .6rem;max-width:46rem}
section{margin-top:2.6rem;padding-top:1.5rem;border-top:1px solid var(--line)}
code,.mono{font-family:ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"Liberation Mono",
"DejaVu Sans Mono",monospace;
font-size:.86em;font-variant-ligatures:none}
.soft{color:var(--soft)}.small{font-size:.85rem}.num{text-align:right;white-space:nowrap}
.top{display:flex;gap:.4rem 1rem;flex-wrap:wrap;align-items:baseline;justify-content:space-between}
.verdict{display:flex;gap:1rem;align-items:flex-start;margin:1.4rem 0 1.6rem}
.mark{flex:none;width:2.6rem;height:2.6rem;border-radius:50%;display:grid;place-items:center;
font-size:1.35rem;font-weight:700;line-height:1}
.verdict strong{display:block;font-size:1.7rem;line-height:1.2;letter-spacing:-.02em}
.verdict p{font-size:1.08rem;line-height:1.45;margin:.3rem 0 0}
.pass{color:var(--ok)}.fail{color:var(--bad)}.inconclusive,.not-run{color:var(--warn)}
.mark.pass,.badge.pass{background:var(--ok-wash)}.mark.fail,.badge.fail{background:var(--bad-wash)}
.mark.inconclusive,.mark.not-run,.badge.inconclusive,.badge.not-run{background:var(--warn-wash)}
.badge{display:inline-block;border-radius:99px;padding:.05rem .6rem;font-size:.8rem;font-weight:600;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));
border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tile{box-shadow:0 0 0 .5px var(--line);padding:.9rem 1.1rem}
.tile b{display:block;white-space:nowrap;font-size:1.45rem;font-weight:600;letter-spacing:-.02em;line-height:1.25}
.tile span{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%}
th{font-weight:500;font-size:.8rem;color:var(--soft);text-align:left;padding:.35rem .9rem .35rem 0;
border-bottom:1px solid var(--rule);white-space:nowrap}
td{padding:.55rem .9rem .55rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
th.num{text-align:right}
.op{font-weight:600}
.note{border-left:3px solid var(--rule);padding:.1rem 0 .1rem .9rem;margin:.8rem 0}
.note.fail{border-color:var(--bad);color:inherit}.note.warn{border-color:var(--warn)}
.note b{font-weight:600}
ul{margin:.3rem 0 .6rem;padding-left:1.1rem}li{margin:.25rem 0}
details{margin:.5rem 0}
summary{cursor:pointer;color:var(--accent);font-size:.9rem;width:fit-content}
summary:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:3px}
.rows{display:grid;grid-template-columns:minmax(7rem,19rem) minmax(8rem,1fr) max-content;gap:0 1rem;align-items:center}
.rows>*{min-width:0}
.rows .val{text-align:right;white-space:nowrap;font-size:.88rem}
.rows .lab{font-size:.88rem}
.rows .head{font-size:.8rem;color:var(--soft)}
.chart{display:block;width:100%;overflow:visible}
.chart text{font-size:11px;fill:var(--soft);font-family:inherit}
.grid{stroke:var(--line);stroke-width:1}.zero{stroke:var(--rule);stroke-width:1.5}
.granted{stroke:var(--soft);stroke-width:2}.dot{fill:var(--accent)}.dot.bad{fill:var(--bad)}
.lead{stroke:var(--rule);stroke-width:2}.lead.bad{stroke:var(--bad)}
.rest{fill:var(--wash)}.dot.other{fill:var(--before)}.dot.at{fill-opacity:.85}
.b0{fill:var(--before)}.b1{fill:var(--accent)}.span{stroke:var(--accent);stroke-width:2.5}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.82rem;color:var(--soft);margin:.3rem 0 .6rem}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem;vertical-align:-.08rem}
.key .k0{background:var(--before)}.key .k1{background:var(--accent)}
.key .kd{background:var(--accent);border-radius:50%}.key .kl{background:var(--soft);width:2px;margin:0 .6rem 0 .3rem}
.pictures{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem;align-items:start}
.pictures.broad{grid-template-columns:1fr}
.pictures figure{margin:0;min-width:0}.pictures figcaption{font-size:.88rem;color:var(--soft);margin-bottom:.5rem}
.frame{background:var(--wash);border:1px solid var(--line);border-radius:10px;padding:.8rem}
.graph{display:block;max-width:100%;height:auto;margin:0 auto}
.graph text{font-family:inherit;font-size:12px;fill:var(--ink);text-anchor:middle}
.graph .sub{font-size:10px;fill:var(--soft)}
.graph .box{fill:var(--paper);stroke:var(--rule)}.graph .end{fill:none;stroke:var(--rule);stroke-dasharray:3 3}
.graph .core .box{fill:var(--accent-wash);stroke:var(--accent);stroke-width:1.5}
.graph .edge{fill:none;stroke:var(--faint);stroke-width:1.2}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;margin:.4rem 0}
dt{color:var(--soft)}dd{margin:0;min-width:0}
footer{margin-top:3rem;color:var(--faint);font-size:.8rem}
@media (max-width:44rem){
main{padding:1.5rem 1rem 3rem}.verdict strong{font-size:1.4rem}.pictures{grid-template-columns:1fr}
table.wide,table.wide tbody,table.wide tr,table.wide td{display:block;width:100%}
table.wide thead{display:none}
table.wide tr{padding:.7rem 0;border-bottom:1px solid var(--line)}
table.wide td{border:0;padding:.1rem 0;text-align:left;white-space:normal}
table.wide td[data-label]::before{content:attr(data-label) ": ";color:var(--soft)}
.rows{grid-template-columns:1fr max-content;grid-auto-flow:row dense}
.rows .lab.head{grid-column:1/-1}.rows .lab{grid-column:1}.rows .val{grid-column:2}
.rows .plot{grid-column:1/-1;margin:-.2rem 0 .2rem}.rows .val.low{display:none}
.broad .frame{overflow-x:auto}.broad .graph{max-width:none;min-width:40rem}
dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{
:root{color-scheme:light;--paper:#fff;--wash:#fff;--line:#ddd;--rule:#bbb;--ink:#000;--soft:#444;--faint:#666;
--accent:#2b5f9e;--accent-wash:#e8f0f9;--before:#b9c1cc;--ok:#1c7a45;--ok-wash:#e6f4ec;--bad:#b3261e;
--bad-wash:#fbeae9;--warn:#8a5a00;--warn-wash:#fdf3e0}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:9.5pt}main{max-width:none;padding:0}.tiles{grid-template-columns:repeat(auto-fit,minmax(7rem,1fr))}
.tile{padding:.6rem .7rem}.tile b{font-size:1.1rem}section{margin-top:1.4rem;padding-top:.9rem}
tr,figure,.tile,.note,.rows>*{break-inside:avoid}h2,h3{break-after:avoid}
details::details-content{content-visibility:visible;display:block;height:auto}summary{color:inherit}}
"""
