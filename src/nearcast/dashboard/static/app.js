"use strict";
/* The start of the page: read the data from the file, or from the service with its token; show the view of the address. */
(function () {
  const { html, format, overview, generator, explorer } = nearcast;
  const { render, useEffect, useRef, useState } = preact;
  const EVERY = 60; // seconds between looks at the service
  const THEMES = ["auto", "light", "dark"];
  nearcast.pictures = [];

  function remembered(store, name, value) {
    try {
      if (value !== undefined) window[store].setItem("nearcast-" + name, value);
      return window[store].getItem("nearcast-" + name);
    } catch (error) {
      return null; // a file may not keep anything
    }
  }
  function setTheme(theme) {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
  }

  /* Read an embedded block of data; null on the page of a service. */
  async function piece(id) {
    const held = document.getElementById(id);
    if (!held) return null;
    const packed = Uint8Array.from(atob(held.textContent.trim()), (c) => c.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  function summed(steps) {
    let sum = 0;
    return steps.map((step) => (sum += step));
  }

  /* Read a generator from the file; its times are differences to the time before. */
  async function fromFile(place) {
    if (document.readyState === "loading") await new Promise((go) => document.addEventListener("DOMContentLoaded", go));
    const one = await piece("generator-" + place);
    for (const table of [one.runs, one.passes]) table.at = summed(table.at);
    summed(one.marks.map((mark) => mark.at)).forEach((at, place) => { one.marks[place].at = at; });
    return one;
  }

  let token = remembered("sessionStorage", "token") || "";
  async function ask(path) {
    const reply = await fetch("/" + path, { headers: token ? { Authorization: "Bearer " + token } : {}, cache: "no-store" });
    if (reply.status === 401) throw Object.assign(new Error("a token is needed"), { locked: true });
    const body = await reply.json();
    if (!reply.ok) throw new Error(body.error ? body.error.message : "the service has answered " + reply.status);
    return body;
  }

  /* The page of a generator, of which the overview holds a part; null until it is loaded. */
  function useWhole(doc, page, onTrouble) {
    const [whole, setWhole] = useState(null);
    useEffect(() => {
      let wanted = true;
      if (!page) return undefined;
      const found = doc.live ? ask(`dashboard/generators/${encodeURIComponent(page.name)}/page`) : fromFile(doc.generators.indexOf(page));
      found.then((one) => wanted && setWhole(one), (error) => wanted && onTrouble("not reached: " + error.message));
      return () => { wanted = false; };
    }, [page]);
    return whole && page && whole.name === page.name ? whole : null;
  }

  /* #/  #/g/NAME  #/g/NAME/lists?key=KEY */
  function place() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    const [kind, name, view] = path.split("/");
    try {
      if (kind === "g") return { name: decodeURIComponent(name), view: view || "", key: new URLSearchParams(query || "").get("key") };
    } catch (error) {
      return {}; // no address of ours
    }
    return {};
  }

  function Locked({ onToken, wrong }) {
    const [given, setGiven] = useState("");
    return html`<main id="main"><form class="card locked" onSubmit=${(event) => (event.preventDefault(), onToken(given))}><h1>A token is needed</h1>
      <p>This service requires its bearer token. The token stays in this tab and is sent to this service only.</p>
      <label for="token">Token</label><input id="token" type="password" autocomplete="off" value=${given} onInput=${(event) => setGiven(event.target.value)} /><button>Open</button>
      ${wrong && html`<p role="alert" class="below">The service does not know this token.</p>`}</form></main>`;
  }

  function Bar({ doc, theme, onTheme, trouble }) {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").querySelector("h1").focus())}>Skip to the content</a>
      <header class="bar"><a class="brand" href="#/">nearcast</a>
      <p class="made">${doc ? (doc.live ? `live, ${format.when(doc.now)}` : `as of ${format.when(doc.made)}`) : ""}${trouble ? html` <b class="below">${trouble}</b>` : ""}</p>
      <button onClick=${() => onTheme(next)} aria-label=${`Theme: ${theme}. Change to ${next}`}><span aria-hidden="true">${{ auto: "◐", light: "☀", dark: "☾" }[theme]}</span> ${theme}</button></header>`;
  }

  function App({ first }) {
    const [doc, setDoc] = useState(first), [locked, setLocked] = useState(false), [trouble, setTrouble] = useState("");
    const [where, setWhere] = useState(place()), [theme, setThemeName] = useState(remembered("localStorage", "theme") || "auto");
    const [dark, setDark] = useState(matchMedia("(prefers-color-scheme: dark)").matches);
    setTheme(theme);
    async function look() {
      try {
        const found = await ask("dashboard/data");
        nearcast.pictures = found.pictures || [];
        setDoc(found), setLocked(false), setTrouble("");
      } catch (error) {
        if (error.locked) setLocked(token ? "wrong" : "open");
        else setTrouble("not reached: " + error.message);
      }
    }
    useEffect(() => {
      const moved = () => (setWhere(place()), window.scrollTo(0, 0));
      addEventListener("hashchange", moved);
      const scheme = matchMedia("(prefers-color-scheme: dark)"), changed = () => setDark(scheme.matches);
      scheme.addEventListener("change", changed);
      return () => (removeEventListener("hashchange", moved), scheme.removeEventListener("change", changed));
    }, []);
    useEffect(() => {
      if (first) return undefined;
      look();
      const timer = setInterval(() => document.visibilityState === "visible" && look(), 1000 * EVERY);
      return () => clearInterval(timer);
    }, []);
    const page = doc && where.name !== undefined ? doc.generators.find((one) => one.name === where.name) : null;
    const whole = useWhole(doc, page, setTrouble), begun = useRef(where);
    useEffect(() => { document.title = page ? page.name + " · nearcast" : "nearcast"; const h1 = document.querySelector("main h1"); if (h1) h1.tabIndex = -1; });
    useEffect(() => { // another view: a screen reader goes on at its title
      const h1 = document.querySelector("main h1");
      if (begun.current !== where && h1 && !(where.view === "lists" && where.key !== null)) h1.focus({ preventScroll: true });
    }, [where, whole === null]);
    const shade = theme === "auto" ? (dark ? "dark" : "light") : theme;
    let view = html`<main id="main"><h1>${trouble ? "The service does not answer" : "Loading…"}</h1></main>`;
    if (locked) view = html`<${Locked} wrong=${locked === "wrong"} onToken=${(given) => { token = given; remembered("sessionStorage", "token", given); look(); }} />`;
    else if (doc && where.name !== undefined && !page) view = html`<main id="main"><h1>There is no generator of this name</h1><p><a href="#/">All generators</a></p></main>`;
    else if (page && !whole) view = html`<main id="main"><h1>${page.name}</h1><p class="loading">Loading…</p></main>`;
    else if (page && where.view === "lists") view = html`<${explorer.Explorer} key=${page.name} doc=${doc} page=${whole} ask=${doc.live ? ask : null} picked=${where.key} />`;
    else if (page) view = html`<${generator.Generator} key=${page.name} doc=${doc} page=${whole} theme=${shade} />`;
    else if (doc) view = html`<${overview.Overview} doc=${doc} theme=${shade} />`;
    return html`<${Bar} doc=${doc} theme=${theme} trouble=${trouble} onTheme=${(name) => (remembered("localStorage", "theme", name), setTheme(name), setThemeName(name))} />${view}
      <footer>${doc ? `nearcast ${doc.nearcast}. ` : ""}Shows the history and measures nothing. All times are UTC.</footer>`;
  }

  async function begin() {
    const first = await piece("data"), root = document.getElementById("page");
    if (first) nearcast.pictures = first.pictures || [];
    root.textContent = "";
    render(html`<${App} first=${first} />`, root);
    requestAnimationFrame(() => setTimeout(() => performance.mark("drawn"))); // when a person sees it
  }
  begin().catch((error) => { document.getElementById("page").textContent = "This page cannot be shown: " + error.message; });
})();
