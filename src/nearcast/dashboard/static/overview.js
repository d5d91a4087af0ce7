"use strict";
/* The overview: the problems with generator and time, then a row for each generator, the worst first. */
(function () {
  const { html, format, charts, GLYPH } = nearcast;
  const MOST_CARDS = 4;
  const link = (name) => "#/g/" + encodeURIComponent(name);
  const PERCENT = /recall|overlap|fill|coverage|repeats|moved|top1|dead|misses|fallbacks|removed/;
  const STALE = 2 * format.DAY;
  const EVIDENCE = {
    recall: "recall", overlap: "candidates that were in the lists before", repeats: "copies among the candidates", fill_rate: "slots filled", query_coverage: "queries with a list",
    items_vectors: "items", queries_vectors: "queries", items_norm_p50: "median norm of item vectors", queries_norm_p50: "median norm of query vectors",
    items_drift: "drift of item vectors", queries_drift: "drift of query vectors", items_moved: "items with another's vector", queries_moved: "queries with another's vector",
    items_shift: "shift of the mean item vector", queries_shift: "shift of the mean query vector", items_zeros: "zero item vectors", queries_zeros: "zero query vectors",
    score_p50: "median score", seconds: "seconds of a run", memory: "memory of a run", dead: "candidates that no longer exist", age: "age of the served version", misses: "keys not found", fallbacks: "answered by a fallback", removed: "candidates that the overlay removes",
  };
  function unitOf(series) {
    if (PERCENT.test(series)) return format.share;
    return { age: format.stretch, seconds: format.stretch, memory: format.bytes }[series] || format.number;
  }

  function Badge({ level, word }) {
    return html`<span class=${"badge " + level}><span aria-hidden="true">${GLYPH[level]}</span> ${word}</span>`;
  }

  function Since({ trouble, now }) {
    const of = format.there(trouble.version) ? `, snapshot ${format.version(trouble.version)}` : "";
    return html`<span class="since">since <b>${format.when(trouble.since)}</b> (${format.ago(trouble.since, now)}${of})</span>`;
  }

  function Evidence({ page, trouble, theme }) {
    const table = trouble.of === "passes" ? page.passes : page.runs, values = trouble.evidence && table[trouble.evidence];
    if (!values || values.filter(format.there).length < 2) return null;
    const unit = unitOf(trouble.evidence), name = EVIDENCE[trouble.evidence] || trouble.evidence;
    return html`<div class="evidence"><${charts.Spark} values=${values} x=${table.at} promise=${trouble.evidence === "recall" ? table.promise : undefined} name="--bad" label=${name + ", now " + unit(format.last(values))} theme=${theme} width=${190} height=${48} />
      <p>${name}: <b>${unit(format.last(values))}</b>${before(values, unit)}</p></div>`;
  }
  function before(values, unit) {
    const known = values.filter(format.there);
    return known.length > 1 ? `, before ${unit(known[known.length - 2])}` : "";
  }

  function Card({ page, now, theme }) {
    const [first, ...others] = page.state.troubles;
    return html`<article class=${"card trouble " + first.level}>
      <header><${Badge} level=${first.level} word=${page.state.word} /><h2><a href=${link(page.name)}>${page.name}</a></h2></header>
      <div class="split"><div>
        <p class="what">${first.title}</p>
        <p><${Since} trouble=${first} now=${now} /></p>
        <p class="text">${first.text}</p>
        <p class="seen"><b>Effect on users:</b> ${seenBy(page, first)}</p>
        ${page.state.unwatched && html`<p class="also">${page.state.watched}</p>`}
        ${others.length > 0 && html`<p class="also"><b>Also:</b> ${others.map((t) => t.title).join(" · ")}</p>`}
        ${first.follows.length > 0 && html`<p class="also"><b>Consequences:</b> ${first.follows.join(", ").replaceAll("_", " ")}</p>`}
      </div><${Evidence} page=${page} trouble=${first} theme=${theme} /></div>
    </article>`;
  }
  /* A problem reaches users only if its snapshot is served. */
  function seenBy(page, trouble) {
    const served = !page.live || trouble.of === "passes" || page.version === null || page.live.version >= (trouble.version || 0);
    return served && page.live ? `${trouble.effect} ${page.state.seen}` : `${page.live ? "No effect yet. " : ""}${page.state.seen}`;
  }

  function Row({ page, now, theme }) {
    const runs = page.runs, passes = page.passes, of = (name) => format.newest(runs[name]);
    const first = page.state.troubles[0], asked = page.asked ? page.asked.keys : format.newest(passes.lookups);
    const missed = page.asked ? (page.asked.keys ? page.asked.misses / page.asked.keys : null) : format.newest(passes.misses);
    const made = page.live && page.live.made ? page.live.made : null;
    const below = page.promise && !page.promise.kept;
    return html`<tr>
      <th scope="row"><a href=${link(page.name)}>${page.name}</a><${Badge} level=${page.state.level} word=${page.state.word} />
        ${first && html`<small>${first.title} · since ${format.day(first.since)}</small>`}
        ${!first && page.state.level === "unknown" && html`<small>${page.state.watched}</small>`}
        ${!first && page.state.level === "ok" && now - page.state.looked > STALE && html`<small>last monitor pass: ${format.ago(page.state.looked, now)}</small>`}</th>
      <td data-label="recall"><b class=${below ? "below" : ""}>${format.share(of("recall"))}</b>
        ${runs.recall_low && html` <small class="inline">${format.share(of("recall_low"))} to ${format.share(of("recall_high"))}</small>`}
        ${page.promise && html`<small>target ${format.share(page.promise.recall)}</small>`}</td>
      <td class="lines" data-label="recall over time"><${charts.Spark} values=${runs.recall} x=${runs.at} promise=${runs.promise} label=${page.name + ": recall over time"} theme=${theme} /></td>
      <td class="lines" data-label="lists kept"><${charts.Spark} values=${runs.overlap} x=${runs.at} name="--line-b" label=${page.name + ": overlap with the lists before, over time"} theme=${theme} /><small>${format.share(of("overlap"))}</small></td>
      <td data-label="slots filled">${format.share(of("fill_rate"))}</td>
      <td data-label="queries covered">${format.share(of("query_coverage"))}</td>
      <td data-label="age">${page.live ? html`${made ? format.stretch(now - made) : "–"}<small>${format.version(page.live.version)}</small>` : "not published"}</td>
      <td data-label="gone">${format.share(page.state.sees_served ? format.newest(passes.dead) : null)}</td>
      <td data-label="look-ups">${format.there(asked) && asked > 0 ? format.number(asked) : "–"}<small>${asked > 0 && format.there(missed) ? format.share(missed) + " missed" : ""}</small></td>
      <td data-label="last run">${format.stretch(of("seconds"))}<small>${format.bytes(of("memory"))}</small></td>
    </tr>`;
  }

  const HEAD = [
    ["Generator", "the worst first"], ["Recall", "with its interval"], ["Over time", "dashed: target"], ["Lists kept", "of the lists before"],
    ["Filled", "slots with a candidate"], ["Covered", "queries with a list"], ["Age", "of the served version"], ["Gone", "not among today’s items"], ["Look-ups", "and keys not found"], ["Last run", "time, memory"],
  ];

  function Overview({ doc, theme }) {
    const pages = doc.generators, now = doc.now || doc.made;
    const troubled = pages.filter((page) => page.state.level === "bad" || page.state.level === "warn");
    const cards = troubled.slice(0, MOST_CARDS);
    return html`<main id="main">
      <h1 class=${"headline " + doc.headline.level}>${doc.headline.text}</h1>
      ${cards.length > 0 && html`<section class="cards" aria-label="Problems">${cards.map((page) => html`<${Card} key=${page.name} page=${page} now=${now} theme=${theme} />`)}</section>`}
      ${troubled.length > cards.length && html`<p class="more">and ${troubled.length - cards.length} more in the table</p>`}
      <section class="card table" aria-labelledby="all"><h2 id="all">All generators</h2>
        <div class="scroll" tabindex="0" role="region" aria-label="All generators, a table"><table class="generators">
          <thead><tr>${HEAD.map(([name, note]) => html`<th scope="col" key=${name}><span class="nowrap">${name}</span><small>${note}</small></th>`)}</tr></thead>
          <tbody>${pages.map((page) => html`<${Row} key=${page.name} page=${page} now=${now} theme=${theme} />`)}</tbody>
        </table></div></section>
    </main>`;
  }

  nearcast.overview = { Overview, Badge, Since, Evidence, seenBy, link };
})();
