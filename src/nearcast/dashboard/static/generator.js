"use strict";
/* One generator: its status, its charts over time, and all its records. */
(function () {
  const { html, format, panels, overview, charts } = nearcast;
  const { useState } = preact;
  const { Badge, Since, Evidence, seenBy } = overview;
  const SPANS = [["30 days", 30], ["90 days", 90], ["a year", 366], ["all", 0]];

  function Figure({ name, value, note, bad }) {
    return html`<div class="figure"><dt>${name}</dt><dd><b class=${bad ? "below" : ""}>${value}</b>${note && html`<small>${note}</small>`}</dd></div>`;
  }

  function Figures({ page, now }) {
    const r = page.runs, p = page.passes, of = (name) => format.newest(r[name]), promise = page.promise;
    const interval = r.recall_low ? `${format.share(of("recall_low"))} to ${format.share(of("recall_high"))}` : "";
    const asked = format.newest(p.lookups), beside = page.compared_with;
    return html`<dl class="figures">
      <${Figure} name="Recall" value=${format.share(of("recall"))} bad=${promise && !promise.kept} note=${promise ? `target ${format.share(promise.recall)} · ${interval}` : interval} />
      <${Figure} name="Filled" value=${format.share(of("fill_rate"))} note=${page.k ? `of ${page.k} slots a list` : ""} />
      <${Figure} name="Covered" value=${format.share(of("query_coverage"))} note="queries with a list" />
      <${Figure} name="Kept" value=${format.share(of("overlap"))} note=${beside ? `of ${format.version(beside.version)}${beside.served ? ", served then" : ", not served"}` : "of the run before"} />
      <${Figure} name="Age" value=${page.live && page.live.made ? format.stretch(now - page.live.made) : "–"} note=${page.live ? `snapshot ${format.version(page.live.version)} is served` : "nothing is published"} />
      <${Figure} name="Gone" value=${format.share(page.state.sees_served ? format.newest(p.dead) : null)} note=${page.state.sees_served ? "served, but not among today’s items" : "no monitor pass since the served version was published"} />
      <${Figure} name="Look-ups" value=${asked ? format.number(asked) : "–"} note=${!asked ? "none were sampled" : format.there(format.newest(p.misses)) ? format.share(format.newest(p.misses)) + " missed" : ""} />
      <${Figure} name="Last run" value=${format.stretch(of("seconds"))} note=${`${format.bytes(of("memory"))} · ${page.engine ? format.text(page.engine.name) : ""}`} />
    </dl>`;
  }

  function Troubles({ page, now, theme }) {
    const { level, seen, became, watched, looked } = page.state;
    const well = level !== "ok" ? "" : looked !== null && now - looked > 2 * format.DAY ? ` The last monitor pass, ${format.ago(looked, now)}, found no problem.` : " Nothing is wrong.";
    const any = page.state.troubles.length > 0, status = html`<p class="seen">${any ? "" : seen} ${became}${well} ${watched}</p>`;
    if (!any) return status;
    return html`${status}<ul class="troubles">${page.state.troubles.map((trouble) => html`<li key=${trouble.check} class=${"card trouble " + trouble.level}>
      <div class="split"><div><p class="what">${trouble.title}</p><p><${Since} trouble=${trouble} now=${now} /></p><p class="text">${trouble.text}</p>
        <p class="seen"><b>Effect on users:</b> ${seenBy(page, trouble)}</p>
        ${(trouble.owner || trouble.handled) && html`<p class="also">${trouble.owner && html`<b>Owner:</b> ${format.text(trouble.owner)} `}${format.text(trouble.handled)}</p>`}
        ${/^https?:\/\//.test(trouble.runbook || "") && html`<p class="also"><a href=${trouble.runbook} rel="noreferrer">Runbook</a></p>`}
        ${trouble.follows.length > 0 && html`<p class="also"><b>Consequences:</b> ${trouble.follows.join(", ").replaceAll("_", " ")}</p>`}</div>
        <${Evidence} page=${page} trouble=${trouble} theme=${theme} /></div></li>`)}</ul>`;
  }

  function Section({ id, title, hint, children }) {
    return html`<section class="card" aria-labelledby=${id}><h2 id=${id}>${title}</h2>${hint && html`<p class="hint">${hint}</p>`}<div class="grid">${children}</div></section>`;
  }

  function Generator({ doc, page, theme }) {
    const now = doc.now || doc.made, [span, setSpan] = useState(90);
    const newest = Math.max(0, ...page.runs.at, ...page.passes.at), from = span ? newest - span * format.DAY : 0;
    const given = { page, theme, from };
    return html`<main id="main">
      <nav class="crumbs" aria-label="Where you are"><a href="#/">All generators</a> › ${page.name}</nav>
      <header class="title"><h1>${page.name}</h1><${Badge} level=${page.state.level} word=${page.state.word} />
        <a class="button" href=${overview.link(page.name) + "/lists"}>Look into lists</a></header>
      <${Troubles} page=${page} now=${now} theme=${theme} />
      <${Figures} page=${page} now=${now} />
      <div class="spans" role="group" aria-label="Time range of the charts">${SPANS.map(([name, days]) => html`<button key=${name} aria-pressed=${span === days} onClick=${() => setSpan(days)}>${name}</button>`)}
        <p class="key"><span class="kind publish">▏published</span> <span class="kind rollback">┊ rolled back</span> <span class="kind audit">│ refused by the audit</span> <span class="kind alert">▼ alert</span> — hover, or use the arrow keys, for values and reasons</p></div>
      <${Section} id="runs" title="Runs">${page.runs.at.length ? html`<${panels.Runs} ...${given} />` : html`<p class="empty">No run is in the history.</p>`}</${Section}>
      ${page.changes && html`<${Section} id="changes" title="Why the figures moved" hint=${`Percentage points by cause, on ${format.number(page.changes.queries)} queries of both snapshots. The causes add up to the change.`}><${panels.Changes} changes=${page.changes} /></${Section}>`}
      <${Section} id="served" title="Served version"><${panels.Served} ...${given} /></${Section}>
      ${page.updates && html`<${Section} id="updates" title="Live updates"><${panels.Updates} updates=${page.updates} now=${now} /></${Section}>`}
      ${page.labels && html`<${Section} id="labels" title="By labels"><${panels.Labels} ...${given} /></${Section}>`}
      ${(page.slices.length > 0 || page.distributions) && html`<${Section} id="shape" title="Newest run"><${panels.Slices} ...${given} /><div class="stack"><${panels.Distributions} ...${given} /></div></${Section}>`}
      ${page.frontier && html`<${Section} id="tuning" title="Tuning"><${panels.Tuning} ...${given} /></${Section}>`}
      ${page.replay && html`<${Section} id="replay" title="Replay"><${panels.Funnel} ...${given} /></${Section}>`}
      ${page.marks.length > 0 && html`<${Section} id="events" title="Events"><${panels.Events} page=${page} /></${Section}>`}
      <${Section} id="manifest" title="Manifest of the newest snapshot"><${panels.Manifest} page=${page} /></${Section}>
    </main>`;
  }

  nearcast.generator = { Generator };
})();
