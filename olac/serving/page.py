"""The page for operators: programs, workers, jobs and load, refreshed every two seconds. It loads nothing else."""

from __future__ import annotations

import secrets

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>olac</title>
<style nonce="NONCE">
:root { color-scheme: light dark; --line: #8884; --bar: #3a7bd5; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; }
h2 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
td.error { white-space: normal; min-width: 12rem; }
progress { accent-color: var(--bar); width: 100%; height: .8rem; }
#counts { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .5rem 0; padding: 0; list-style: none; }
.none, #state { opacity: .7; }
</style>
</head>
<body>
<h1>olac <span id="version"></span></h1>
<div id="state" role="status">loading</div>
<ul id="counts"></ul>
<label for="memory">Memory of workers: <span id="memory-text"></span></label>
<progress id="memory" max="1" value="0"></progress>
<h2>Programs</h2><div class="scroll" id="programs"></div>
<h2>Workers</h2><div class="scroll" id="workers"></div>
<h2>Jobs</h2><div class="scroll" id="jobs"></div>
<script nonce="NONCE">
"use strict";
const at = id => document.getElementById(id);
const gb = bytes => (bytes / 1e9).toFixed(2) + " GB";
const duration = s => s < 100 ? s.toFixed(s < 10 ? 1 : 0) + " s" : s < 6000 ? (s / 60).toFixed(0) + " min"
  : (s / 3600).toFixed(1) + " h";
function table(id, heads, rows) {
  const place = at(id);
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
      if (heads[i] === "error") cell.className = "error";
    });
  }
  place.replaceChildren(made);
}
function layers(job) {
  if (job.state !== "running") return "";
  return job.total ? `${job.done} of ${job.total}: ${job.layer}` : "loading keys";
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
  table("programs", ["program", "engine", "images", "input", "predicted"], load.programs.map(p =>
    [p.id, p.engine, p.images, p.input_shape.join(" x "), duration(p.seconds)]));
  table("workers", ["client", "program", "keys", "memory", "job"], load.workers.map(w =>
    [w.owner, w.program, w.identity.slice(0, 8), gb(w.bytes), w.job ? w.job.slice(0, 8) : "idle"]));
  table("jobs", ["job", "client", "program", "state", "time", "layer", "left", "error"], load.jobs.map(j =>
    [j.id.slice(0, 8), j.owner, j.program, j.state, duration(j.seconds), layers(j),
     j.eta_seconds === null ? "" : duration(j.eta_seconds), j.error]));
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
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return _PAGE.replace("NONCE", nonce), policy


__all__ = ["page"]
