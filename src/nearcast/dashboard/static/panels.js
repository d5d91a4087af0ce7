"use strict";
/* The charts and tables of one generator. A chart without data is left out. */
(function () {
  const { html, format, charts } = nearcast;
  const { Lines, Rows, Frontier } = charts;
  const KINDS = { publish: "published", rollback: "rolled back", audit: "refused by the audit", alert: "alert" };
  const line = (name, values, more) => ({ name, values, ...more });

  function Runs({ page, theme, from }) {
    const r = page.runs, common = { x: r.at, marks: page.marks, theme, from };
    const stages = Object.keys(r).filter((name) => name.startsWith("stage:"));
    const largest = stages.map((name) => [format.last(r[name]) || 0, name]).sort((a, b) => b[0] - a[0]).slice(0, 6).map(([, name]) => name);
    const depths = Object.keys(r).filter((name) => /^fill(_rate)?_at_/.test(name));
    const sides = (what) => [line("items", r["items_" + what]), line("queries", r["queries_" + what])];
    return html`
      <${Lines} ...${common} title="Recall" unit=${format.share} ceiling=${1} height=${210}
        hint="Share of the true nearest items that the lists hold, on a sample, with its 95% interval. Dashed: the target."
        lines=${[line("recall", r.recall, { band: r.recall_low && [r.recall_low, r.recall_high] }), line("target", r.promise, { dash: [5, 4], colour: "--quiet", step: true }), line("by traffic", r.recall_by_traffic, { colour: "--line-c" })]} />
      <${Lines} ...${common} title="Lists kept" unit=${format.share} floor=${0} ceiling=${1} height=${210} hint="Share of the candidates that were in the list of the same query in the snapshot served then, or in the run before." lines=${[line("overlap", r.overlap, { colour: "--line-b" })]} />
      <${Lines} ...${common} title="Slots filled" unit=${format.share} floor=${0} ceiling=${1} hint="Share of the k slots of all lists that hold a candidate." lines=${[line("of k", r.fill_rate), ...depths.map((name) => line("of the first " + name.replace(/^.*_at_/, ""), r[name]))]} />
      <${Lines} ...${common} title="Coverage" unit=${format.share} floor=${0} ceiling=${1} hint="Queries that have a list, and items that are in some list." lines=${[line("queries", r.query_coverage), line("items", r.item_coverage)]} />
      <${Lines} ...${common} title="Exposure" unit=${format.share} floor=${0} hint="Share of all slots that the most frequent 1% of items take, and the inequality of exposure (Gini: 0 is equal)." lines=${[line("top 1% of items", r.exposure_top1), line("Gini", r.exposure_gini)]} />
      <${Lines} ...${common} title="Copies in the lists" unit=${format.share} floor=${0} hint="Candidates with the same vector as the one before them." lines=${[line("copies", r.repeats)]} />
      <${Lines} ...${common} title="Drift of vectors" hint="Median of 1 − cosine between the two vectors of an id: now, and in the snapshot served then or the run before." floor=${0} lines=${sides("drift")} />
      <${Lines} ...${common} title="Vectors" hint="Number of joined vectors." lines=${sides("vectors")} />
      <${Lines} ...${common} title="Seconds by stage" unit=${format.stretch} floor=${0} hint="The longest stages of each run." lines=${[line("all", r.seconds, { colour: "--ink" }), ...largest.map((name, i) => line(name.slice(6), r[name], { colour: "--line-" + "abcdef"[i] }))]} />
      <${Lines} ...${common} title="Memory" unit=${format.bytes} floor=${0} hint="Peak of the run. Dashed: the estimate made before it." lines=${[line("peak", r.memory), line("estimate", r.memory_estimate, { dash: [5, 4], colour: "--quiet" })]} />`;
  }

  function Served({ page, theme, from }) {
    const p = page.passes;
    if (!p.at.length) return html`<p class="empty">No pass of <code>nearcast monitor</code> has checked served lists yet.</p>`;
    const common = { x: p.at, marks: page.marks.filter((mark) => mark.kind !== "publish"), theme, from };
    const share = { ...common, unit: format.share, floor: 0, ceiling: 1 };
    return html`
      <${Lines} ...${common} title="Recall among today's items" unit=${format.share} ceiling=${1} hint="Served lists against the nearest of today’s items that the overlay does not remove." lines=${[line("recall", p.recall, { band: p.recall_low && [p.recall_low, p.recall_high] })]} />
      <${Lines} ...${share} title="Gone and missed" hint="Served candidates that are not among today’s items, or that the overlay removes; keys without a list; answers by a fallback." lines=${[line("gone", p.dead), line("removed", p.removed), line("missed", p.misses), line("fallbacks", p.fallbacks)]} />
      <${Lines} ...${common} title="Age" unit=${format.stretch} floor=${0} hint="Age of the served snapshot at the monitor pass." lines=${[line("age", p.age)]} />
      ${p.lookups && p.lookups.some((n) => n > 0) && html`<${Lines} ...${common} title="Look-ups" floor=${0} hint="Look-ups in the hours before the pass, from the samples of the services." lines=${[line("look-ups", p.lookups)]} />`}`;
  }

  function Updates({ updates, now }) {
    const feeds = updates.feeds.map((feed) => html`<p key=${feed.source}><code>nearcast follow</code> of ${feed.source}:
      ${feed.freshness ? ` a file is in answers ${format.stretch(feed.freshness.p50)} after its arrival, 99% within ${format.stretch(feed.freshness.p99)} (the last ${format.number(feed.freshness.batches)} files);` : ""}
      ${` set aside: ${format.number(feed.set_aside)}`}${feed.last.map(([name, why]) => ` (last: ${name}: ${why})`)}.</p>`);
    const row = (patch) => html`<tr key=${patch.number}><td>${patch.number}</td><td class="nowrap">${format.ago(patch.at, now)}</td>
      ${["lists", "items", "gone", "queries"].map((name) => html`<td key=${name}>${format.number(patch.counts[name] || 0)}</td>`)}<td>${format.text(patch.note)}</td></tr>`;
    return html`<div class="wide">${feeds}<table class="events"><thead><tr>${["Patch", "Made", "Lists", "Items", "Removed", "Queries", "Note"].map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
      <tbody>${updates.patches.map(row)}</tbody></table>${updates.more > 0 && html`<p class="hint">${format.number(updates.more)} more</p>`}</div>`;
  }

  /* Why the figures of the newest run moved: percentage points by cause, which add up to the change. */
  function Changes({ changes }) {
    const figures = changes.figures.filter((figure) => Object.keys(figure.causes).length > 0);
    const names = { recall: "Recall", overlap: "Lists kept", fill_rate: "Slots filled", hit_rate: "Hit rate" };
    const causes = ["new items", "gone items", "vectors", "attributes", "rules", "settings", "engine", "unexplained"].filter((cause) => figures.some((figure) => format.there(figure.causes[cause])));
    const points = (value) => (format.there(value) ? (value > 0 ? "+" : "−") + Math.abs(100 * value).toFixed(2) : "");
    if (!figures.length) return html`<p class="empty">Nothing moved: the lists of ${format.number(changes.queries)} compared queries are those of ${format.version(changes.before)}.</p>`;
    const row = (name, of) => html`<tr key=${name}><th scope="row">${name}</th>${figures.map((figure) => html`<td key=${figure.figure}>${of(figure)}</td>`)}</tr>`;
    return html`<div class="wide"><table class="events"><thead><tr><th scope="col">Since ${format.version(changes.before)}</th>${figures.map((figure) => html`<th scope="col" key=${figure.figure}>${names[figure.figure] || format.text(figure.figure)}</th>`)}</tr></thead>
      <tbody>${row("before", (figure) => format.share(figure.before))}${causes.map((cause) => row(cause, (figure) => points(figure.causes[cause])))}${row("after", (figure) => format.share(figure.after))}</tbody></table>
      ${changes.limits.map((words) => html`<p class="hint" key=${words}>${format.text(words)}</p>`)}</div>`;
  }

  function Slices({ page, theme }) {
    if (!page.slices.length) return null;
    const rows = page.slices.slice(0, 40).map((slice) => ({
      name: `${format.text(slice.by)}: ${format.text(slice.value)}`, low: slice.low, mid: slice.recall, high: slice.high,
      colour: slice.below_promise ? "--bad" : "--line-a", note: `${format.number(slice.queries)} queries${slice.below_promise ? ", below the target" : ""}`,
    }));
    const many = page.slices.length > rows.length ? ` The ${rows.length} lowest of ${page.slices.length}.` : "";
    return html`<${Rows} title="Recall by slice" hint=${"Groups of queries, the lowest first, with 95% intervals. Red: below the target by more than chance." + many} rows=${rows} line=${page.promise && page.promise.recall} lineName="target" theme=${theme} />`;
  }

  function Labels({ page, theme, from }) {
    const labels = page.labels, s = labels.series, first = labels.metrics[0], common = { x: s.at, marks: page.marks, theme, from };
    const words = `${format.number(labels.queries)} queries of ${format.text(labels.path)}` + (labels.without_list ? `; ${format.number(labels.without_list)} labelled queries have no list` : "");
    const rows = labels.newest.map((row) => ({ ...row, colour: "--line-a", name: row.name.replace("_at_", "@").replace("_", " ") }));
    const leads = labels.rivals.map((row) => ({ ...row, name: row.name.replace("_at_", "@").replace("_", " "), colour: row.low > 0 ? "--ok" : row.high < 0 ? "--bad" : "--line-a" }));
    const slices = labels.slices.map((row) => ({ ...row, name: `${format.text(row.by)}: ${format.text(row.value)}`, colour: "--line-a", note: `${format.number(row.queries)} queries` }));
    const broken = labels.promises.filter((check) => !check.kept).map((check) => html`<p class="below" key=${check.metric}>Promise broken: ${check.metric} is ${format.number(check.value)}, and ${format.number(check.bound)} is promised.</p>`);
    return html`
      <${Lines} ...${common} title="Metrics by labels" floor=${0} ceiling=${1} height=${210} hint=${`Means over labelled queries, of the first with its 95% interval. Dashed: the promise for ${first}.`}
        lines=${[...labels.metrics.map((name, i) => line(name, s[name], i || !s[name + "_low"] ? {} : { band: [s[name + "_low"], s[name + "_high"]] })), line("promise", s.promise, { dash: [5, 4], colour: "--quiet", step: true })]} />
      <div class="stack"><${Rows} title=${"Snapshot " + format.version(labels.version)} hint=${words + ". 95% intervals."} rows=${rows} unit=${format.number} theme=${theme} />${broken}</div>
      ${leads.length > 0 && html`<${Rows} title="Lead over other lists" hint="Differences on the same queries, with 95% intervals. Green or red: beyond chance." rows=${leads} unit=${format.number} wide=${230} theme=${theme} />`}
      ${slices.length > 0 && html`<${Rows} title=${first + " by slice"} hint="Groups of labelled queries, with 95% intervals." rows=${slices} unit=${format.number} theme=${theme} />`}`;
  }

  function Distributions({ page, theme }) {
    const shapes = page.distributions;
    if (!shapes) return null;
    const then = shapes.then, rows = (of) => [["now", shapes.now, "--line-a"], ...(then ? [["before", then, "--line-b"]] : [])].flatMap(([word, shape, colour]) => of(shape).filter((row) => format.there(row.mid)).map((row) => ({ ...row, name: `${row.name}, ${word}`, colour })));
    const scores = rows((s) => [{ name: "all candidates", low: s.scores.score_p01, mid: s.scores.score_p50, high: s.scores.score_p99 }, { name: "best candidate", mid: s.scores.best_score_p50 }]);
    const norms = rows((s) => Object.entries(s.norms).map(([side, n]) => ({ name: side, low: n.p01, mid: n.p50, high: n.p99 })));
    const beside = then ? `Now is snapshot ${format.version(shapes.now.version)}; before is ${format.version(then.version)}, the last one without a problem.` : "There is no healthy snapshot before it to compare with.";
    const sorted = (list) => [...list].sort((a, b) => (a.name < b.name ? -1 : 1));
    return html`<${Rows} title="Scores" hint=${"Median, and from the lowest to the highest 1%. " + beside} rows=${sorted(scores)} unit=${format.number} theme=${theme} />
      <${Rows} title="Norms of vectors" hint="Median, and from the lowest to the highest 1%." rows=${sorted(norms)} unit=${format.number} theme=${theme} />`;
  }

  function Tuning({ page, theme }) {
    const frontier = page.frontier;
    if (!frontier) return null;
    return html`<${Frontier} frontier=${frontier} theme=${theme} />
      <div class="chart"><h3>The suggestion</h3><p>${format.text(frontier.reason)}</p><pre>${format.text(frontier.lines)}</pre></div>`;
  }

  function Funnel({ page, theme }) {
    const replay = page.replay;
    if (!replay) return null;
    const rows = replay.stages.flatMap((stage) => [["offline", "--line-a"], ["online", "--line-b"]].filter(([side]) => format.there(stage[side])).map(([side, colour]) => ({ name: `${format.text(stage.name)}, ${side}`, mid: stage[side], colour })));
    const rates = Object.entries(replay.hit_rate || {}).filter(([, v]) => format.there(v)).map(([side, v]) => `${side} ${format.share(v)}`).join(", ");
    return html`<${Rows} title="The last replay" hint=${`Candidates left after each stage, offline and online${format.there(replay.requests) ? `, of ${format.number(replay.requests)} requests` : ""}${rates ? `; hit rate ${rates}` : ""}.`} rows=${rows} unit=${format.number} bars=${true} theme=${theme} />`;
  }

  function Events({ page }) {
    const marks = [...page.marks].reverse();
    if (!marks.length) return null;
    const row = (mark, i) => html`<tr key=${i}><td class="nowrap">${format.when(mark.at)}</td><td><span class=${"kind " + mark.kind}>${KINDS[mark.kind]}</span></td><td>${format.reason(mark)}</td></tr>`;
    const telling = marks.filter((mark) => mark.kind !== "publish");
    return html`<div class="wide"><h3>What happened</h3>
      <table class="events"><thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col">Why</th></tr></thead>
        <tbody>${(telling.length ? telling : marks).slice(0, 12).map(row)}</tbody></table>
      ${marks.length > 12 || telling.length < marks.length ? html`<details><summary>All ${marks.length} events, publishes among them</summary><table class="events"><tbody>${marks.slice(0, 200).map(row)}</tbody></table></details>` : null}</div>`;
  }

  /* Anything as nested lists of names and values. */
  function Tree({ value, depth = 0 }) {
    if (value === null || typeof value !== "object") return html`<span class="leaf">${format.text(value)}</span>`;
    const entries = Object.entries(value);
    if (!entries.length) return html`<span class="leaf">none</span>`;
    if (Array.isArray(value) && value.every((part) => part === null || typeof part !== "object")) return html`<span class="leaf">${value.map(format.text).join(", ")}</span>`;
    return html`<dl>${entries.slice(0, 100).map(([name, part]) => html`<div key=${name}><dt>${name}</dt><dd>${depth > 0 && part && typeof part === "object" && Object.keys(part).length > 6 ? html`<details><summary>${Object.keys(part).length} entries</summary><${Tree} value=${part} depth=${depth + 1} /></details>` : html`<${Tree} value=${part} depth=${depth + 1} />`}</dd></div>`)}</dl>`;
  }
  function Manifest({ page }) {
    if (!page.manifest) return html`<p class="empty">The folder of the newest snapshot is not here.</p>`;
    return html`<div class="wide manifest">${Object.entries(page.manifest).map(([name, value]) => html`<details key=${name} open=${name === "promise" || name === "engine"}><summary>${name}</summary><${Tree} value=${value} /></details>`)}</div>`;
  }

  nearcast.panels = { Runs, Served, Updates, Labels, Changes, Slices, Distributions, Tuning, Funnel, Events, Manifest };
})();
