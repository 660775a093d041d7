"""The page for operators: programs, workers, jobs and load, refreshed every two seconds. It loads nothing else."""

from __future__ import annotations

import secrets

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>olac: programs, jobs and load</title>
<link rel="icon" href="data:,">
<style nonce="NONCE">
:root { color-scheme: light dark; --line: #8884; --track: #8883; --bar: #3a7bd5; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --bar: #6ba3f0; --bad: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; }
h2 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; overflow-wrap: break-word; }
tr { border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
progress { appearance: none; border: 0; border-radius: .4rem; overflow: hidden; width: 100%; height: .8rem; }
progress, progress::-webkit-progress-bar { background: var(--track); }
progress::-webkit-progress-value { background: var(--bar); }
progress::-moz-progress-bar { background: var(--bar); }
#counts { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .5rem 0; padding: 0; list-style: none; }
#state:not(:empty), .failed { color: var(--bad); }
.none { opacity: .7; }
td[data-label="input"], td[data-label="memory"], td[data-label="time"] { white-space: nowrap; }
@media (max-width: 50rem) {
  thead { clip-path: inset(50%); position: absolute; }
  tr { display: block; padding: .4rem 0; }
  td { display: grid; grid-template-columns: 6rem 1fr; padding: .1rem 0; overflow-wrap: anywhere; }
  td::before { content: attr(data-label); opacity: .7; }
  td:empty { display: none; }
}
</style>
</head>
<body>
<h1>olac <span id="version"></span></h1>
<div id="state" role="status"></div>
<ul id="counts"></ul>
<label for="memory">Memory of workers: <span id="memory-text"></span></label>
<progress id="memory" max="1" value="0"></progress>
<h2>Programs</h2><div id="programs"></div>
<h2>Workers</h2><div id="workers"></div>
<h2>Jobs</h2><div id="jobs"></div>
<script nonce="NONCE">
"use strict";
const at = id => document.getElementById(id);
const gb = bytes => (bytes / 1e9).toFixed(2) + " GB";
const duration = s => s < 0.95 ? (s * 1000).toFixed(0) + " ms" : s < 10 ? s.toFixed(1) + " s"
  : s < 100 ? s.toFixed(0) + " s" : s < 6000 ? (s / 60).toFixed(0) + " min" : (s / 3600).toFixed(1) + " h";
const shown = {};
function table(id, heads, rows) {
  const place = at(id), text = JSON.stringify(rows);
  if (shown[id] === text) return;  // so that what somebody has marked stays marked
  shown[id] = text;
  if (!rows.length) {
    const none = document.createElement("p");
    none.className = "none";
    none.textContent = "none";
    place.replaceChildren(none);
    return;
  }
  const made = document.createElement("table"), head = made.createTHead().insertRow(), body = made.createTBody();
  for (const text of heads) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = text;
    head.append(cell);
  }
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, i) => {
      const cell = line.insertCell();
      cell.textContent = text;
      cell.dataset.label = heads[i];
      if (row.includes("failed") && ["state", "details"].includes(heads[i])) cell.className = "failed";
    });
  }
  place.replaceChildren(made);
}
function details(job) {
  if (job.state !== "running") return job.error;
  const left = job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`;
  return job.total ? `layer ${job.done} of ${job.total}: ${job.layer}${left}` : "loading keys";
}
function show(load) {
  at("version").textContent = load.version;
  at("memory").max = load.memory.limit;
  at("memory").value = load.memory.held;
  at("memory-text").textContent = `${gb(load.memory.held)} of ${gb(load.memory.limit)}`;
  at("counts").replaceChildren(...Object.entries(load.counts).map(([state, count]) => {
    const item = document.createElement("li");
    item.textContent = `${count} ${state}`;
    return item;
  }));
  table("programs", ["program", "engine", "images in a batch", "input", "predicted for a batch"], load.programs.map(p =>
    [p.id, p.engine, p.images, p.input_shape.join(" x "), duration(p.seconds)]));
  table("workers", ["client", "program", "keys", "memory", "job"], load.workers.map(w =>
    [w.owner, w.program, w.identity.slice(0, 8), gb(w.bytes), w.job ? w.job.slice(0, 8) : "idle"]));
  table("jobs", ["job", "client", "program", "state", "time", "details"], load.jobs.map(j =>
    [j.id.slice(0, 8), j.owner, j.program, j.state, duration(j.seconds), details(j)]));
}
async function refresh() {
  try {
    const answer = await fetch("/v1/load");
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    show(await answer.json());
    at("state").textContent = "";
  } catch (error) {
    at("state").textContent = `not up to date: ${error.message}`;
  }
  setTimeout(refresh, 2000);
}
refresh();
</script>
</body>
</html>
"""


def page() -> tuple[str, str]:
    """The HTML, and the value of its header Content-Security-Policy: no script and no style but its own."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return _PAGE.replace("NONCE", nonce), policy


__all__ = ["page"]
