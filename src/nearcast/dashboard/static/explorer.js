"use strict";
/* The list explorer: a key, its candidates, removed items with the reason, and the same list in the snapshot before.

   The page of a service asks it (`ask`); a file holds a sample of queries. */
(function () {
  const { html, format, overview } = nearcast;
  const { useEffect, useMemo, useRef, useState } = preact;
  const PICTURE = /^data:image\/(png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]+$/;
  const name = (key, label) => (label ? `${format.text(key)} · ${label}` : format.text(key));

  /* A source of lists: {keys(text), list(key, before), explain(list, id) or null}, each giving a promise. */
  function sampled(page) {
    const queries = (page.explorer || { queries: [] }).queries;
    const holds = (query, typed) => name(query.key, query.label).toLowerCase().includes(typed.toLowerCase());
    return {
      keys: async (typed) => queries.filter((query) => holds(query, typed)).map(({ key, label, why }) => ({ key, label, why })),
      list: async (key) => {
        const query = queries.find((one) => String(one.key) === String(key));
        if (!query) throw new Error(`${format.text(key)} is not among the ${queries.length} queries of this file; nearcast serve has all of them.`);
        return query;
      },
      explain: null,
      title: (list) => (list && page.live && format.version(page.live.version) !== list.snapshot ? "Newest, not served" : "Now"),
      missing: "The newest snapshot has no such key.",
    };
  }
  function served(page, doc, ask) {
    const at = "dashboard/generators/" + encodeURIComponent(page.name);
    return {
      keys: async (typed) => (await ask(`${at}/keys?q=${encodeURIComponent(typed)}`)).keys,
      list: async (key, before) => ask(`${at}/list?key=${encodeURIComponent(key)}${before ? "&before=" + encodeURIComponent(before) : ""}`),
      explain: doc.explains ? async (key, id) => ask(`${at}/explain?key=${encodeURIComponent(key)}&item=${encodeURIComponent(id)}`) : null,
      versions: page.versions || [],
      title: () => "Now",
      missing: "The served version has no such key.",
    };
  }

  function Search({ source, onPick, picked }) {
    const [typed, setTyped] = useState(""), [found, setFound] = useState([]), [open, setOpen] = useState(false), [at, setAt] = useState(-1);
    const asked = useRef(0);
    useEffect(() => {
      const turn = ++asked.current;
      const timer = setTimeout(() => source.keys(typed).then((keys) => turn === asked.current && (setFound(keys.slice(0, 40)), setAt(-1)), () => turn === asked.current && setFound([])), typed ? 120 : 0);
      return () => clearTimeout(timer);
    }, [typed, source]);
    const pick = (key) => (setOpen(false), setTyped(String(key)), onPick(key));
    function press(event) {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (by && found.length) (event.preventDefault(), setOpen(true), setAt((at + by + found.length) % found.length));
      else if (event.key === "Enter" && (at >= 0 ? found[at] : typed)) (event.preventDefault(), pick(at >= 0 ? found[at].key : typed));
      else if (event.key === "Escape") setOpen(false);
    }
    return html`<div class="search"><label for="key">Key</label>
      <input id="key" type="text" autocomplete="off" spellcheck="false" placeholder="Type a key or a part of its name" value=${typed} role="combobox" aria-expanded=${open && found.length > 0} aria-controls="keys" aria-autocomplete="list" aria-activedescendant=${open && at >= 0 ? "key-" + at : undefined}
        onInput=${(event) => (setTyped(event.target.value), setOpen(true))} onFocus=${() => setOpen(true)} onClick=${() => setOpen(true)} onBlur=${() => setTimeout(() => setOpen(false), 150)} onKeyDown=${press} />
      <ul id="keys" role="listbox" aria-label="Keys that fit" hidden=${!open || !found.length}>${found.map((one, place) => html`<li key=${place} id=${"key-" + place} role="option" aria-selected=${place === at} onMouseDown=${(event) => (event.preventDefault(), pick(one.key))}>${name(one.key, one.label)}${one.why && html`<small>${one.why}</small>`}</li>`)}</ul>
    </div>`;
  }

  function Value({ value }) {
    if (typeof value === "string" && PICTURE.test(value)) return html`<img class="picture" src=${value} alt="" loading="lazy" />`;
    if (typeof value === "string" && nearcast.pictures.some((origin) => value.startsWith(origin + "/"))) return html`<img class="picture" src=${value} alt="" loading="lazy" referrerpolicy="no-referrer" />`;
    return typeof value === "number" ? format.number(value) : format.text(value);
  }

  function Why({ source, query, id }) {
    const [told, setTold] = useState(null);
    if (told) return html`<p class="why" role="status">${told.words}${format.there(told.rank) ? ` (rank ${told.rank})` : ""}</p>`;
    return html`<button class="small" onClick=${() => source.explain(query, id).then(setTold, (error) => setTold({ words: error.message }))}>why?</button>`;
  }

  function List({ title, list, columns, tags, source, query, note }) {
    if (!list) return html`<div class="list"><h3>${title}</h3><p class="empty">${note || "There is no list for this key."}</p></div>`;
    const scores = list.candidates.map((row) => row.score).filter(format.there), best = Math.max(...scores), least = Math.min(...scores);
    const digits = Math.max(Math.abs(best), Math.abs(least)) < 0.01 ? 6 : 4; // products of small vectors are small
    const width = (score) => (best > least ? 8 + 92 * ((score - least) / (best - least)) : 100);
    return html`<div class="list"><h3>${title} <small>snapshot ${list.snapshot}, ${list.candidates.length} candidates${list.reason ? `; short: ${list.reason.replaceAll("_", " ")}` : ""}</small></h3>
      <div class="scroll" tabindex="0" role="region" aria-label=${title + ", a table"}><table class="candidates"><thead><tr><th scope="col">Rank</th><th scope="col">Item</th>${columns.map((column) => html`<th scope="col" key=${column}>${column}</th>`)}<th scope="col">Score</th>${tags && html`<th scope="col">Change</th>`}${source && source.explain && html`<th scope="col">Why</th>`}</tr></thead>
      <tbody>${list.candidates.map((row, place) => html`<tr key=${place} class=${row.removed ? "removed" : ""}><td>${place + 1}</td><th scope="row">${format.text(row.id)}${row.removed && html`<small class="rule">${row.removed}</small>`}</th>
        ${columns.map((column) => html`<td key=${column}><${Value} value=${row.columns[column]} /></td>`)}
        <td class="score"><i style=${{ width: width(row.score) + "%" }}></i><span>${format.there(row.score) ? row.score.toFixed(digits) : "–"}</span></td>
        ${tags && html`<td><${Tag} tag=${tags.get(String(row.id))} /></td>`}
        ${source && source.explain && html`<td><${Why} source=${source} query=${query} id=${row.id} /></td>`}</tr>`)}</tbody></table></div></div>`;
  }

  function Tag({ tag }) {
    if (!tag) return html`<span class="tag same">same</span>`;
    return html`<span class=${"tag " + tag.kind}>${tag.text}</span>`;
  }

  function tagsOf(diff, side) {
    const tags = new Map();
    if (side === "now") for (const row of diff.came) tags.set(String(row.id), { kind: "came", text: "+ came" });
    else for (const row of diff.went) tags.set(String(row.id), { kind: "went", text: "− went" });
    for (const row of diff.moved) {
      const up = row.from > row.to, by = Math.abs(row.from - row.to);
      tags.set(String(row.id), { kind: "moved", text: side === "now" ? `${up ? "▲" : "▼"} from ${row.from}` : `${up ? "▲" : "▼"} to ${row.to}`, by });
    }
    return tags;
  }

  function Found({ query, columns, source }) {
    const diff = query.diff;
    const gone = query.now ? query.now.candidates.filter((row) => row.removed) : [];
    return html`<section class="card" aria-labelledby="found"><h2 id="found">${name(query.key, query.label)}</h2>
      ${query.why && html`<p class="hint">Chosen for this page: ${query.why}.</p>`}
      ${diff && html`<p class="summary"><b>${diff.kept}</b> kept, <span class="tag came">${diff.came.length} came</span> <span class="tag went">${diff.went.length} went</span> <span class="tag moved">${diff.moved.length} moved</span></p>`}
      ${gone.length > 0 && html`<p class="summary">${gone.length} of them ${gone.length === 1 ? "is" : "are"} removed when served; the reason is beside each.</p>`}
      <div class=${query.before ? "sides two" : "sides"}>
        ${query.before && html`<${List} title="Before" list=${query.before} columns=${columns} tags=${diff && tagsOf(diff, "before")} />`}
        <${List} title=${source.title(query.now)} list=${query.now} columns=${columns} tags=${diff && tagsOf(diff, "now")} source=${source} query=${query.key} note=${source.missing} />
      </div></section>`;
  }

  function Pair({ source, query }) {
    const [item, setItem] = useState(""), [told, setTold] = useState(null);
    const ask = (event) => (event.preventDefault(), item && source.explain(query, item).then(setTold, (error) => setTold({ words: error.message })));
    return html`<form class="pair card" onSubmit=${ask}><label for="item">Why is, or is not, an item in this list?</label><input id="item" type="text" value=${item} onInput=${(event) => setItem(event.target.value)} placeholder="Id of an item" /><button>Explain</button>${told && html`<p role="status">${told.words}</p>`}</form>`;
  }

  function Explorer({ doc, page, ask, picked }) {
    const source = useMemo(() => (ask ? served(page, doc, ask) : sampled(page)), [page.name, Boolean(ask)]);
    const [query, setQuery] = useState(null), [trouble, setTrouble] = useState(""), [before, setBefore] = useState("");
    const explorer = page.explorer || { queries: [], columns: [] };
    const go = (key) => { location.hash = `${overview.link(page.name)}/lists?key=${encodeURIComponent(key)}`; };
    useEffect(() => {
      if (picked === null) return;
      let current = true;
      source.list(picked, before).then((found) => current && (setQuery(found), setTrouble("")), (error) => current && (setQuery(null), setTrouble(error.message)));
      return () => { current = false; };
    }, [picked, before, source]);
    const groups = new Map();
    for (const one of explorer.queries) {
      const why = one.why.split(",")[0];
      groups.set(why, [...(groups.get(why) || []), one]);
    }
    const columns = (query && query.columns) || explorer.columns || [];
    const versions = source.versions || [];
    return html`<main id="main">
      <nav class="crumbs" aria-label="Where you are"><a href="#/">All generators</a> › <a href=${overview.link(page.name)}>${page.name}</a> › lists</nav>
      <header class="title"><h1>Lists of ${page.name}</h1></header>
      <div class="card"><${Search} source=${source} onPick=${go} />
        ${versions.length > 1 && html`<p class="beside"><label for="before">Compare with snapshot</label> <select id="before" value=${before} onChange=${(event) => setBefore(event.target.value)}><option value="">the one before</option>${versions.map((v) => html`<option key=${v} value=${v}>${format.version(v)}</option>`)}</select></p>`}
        ${!ask && html`<p class="hint">This file holds ${explorer.queries.length} sample queries; the page of <code>nearcast serve</code> has all of them.</p>`}
        ${[...groups].map(([why, queries]) => html`<p class="picks" key=${why}><b>${why}:</b> ${queries.map((one) => html`<a key=${String(one.key)} href=${`${overview.link(page.name)}/lists?key=${encodeURIComponent(one.key)}`} aria-current=${picked !== null && String(one.key) === picked ? "true" : undefined}>${name(one.key, one.label)}</a>`)}</p>`)}
      </div>
      ${trouble && html`<p class="card problem" role="alert">${trouble}</p>`}
      ${query && html`<${Found} query=${query} columns=${columns} source=${source} />`}
      ${query && source.explain && html`<${Pair} key=${String(query.key)} source=${source} query=${query.key} />`}
    </main>`;
  }

  nearcast.explorer = { Explorer };
})();
