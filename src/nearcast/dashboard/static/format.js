"use strict";
/* Numbers, times and names as text. Takes data and gives text, never HTML. */
var nearcast = {};
(function () {
  const DAY = 86400;
  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const there = (value) => typeof value === "number" && isFinite(value);

  /* by: the step between values on an axis, which says how many digits are of use; left out elsewhere. */
  const digits = (by) => Math.max(0, Math.min(6, Math.ceil(-Math.log10(by) - 1e-9)));
  function share(value, by) {
    if (!there(value)) return "–";
    const percent = 100 * value;
    const places = by ? digits(100 * by) : percent === 0 || percent >= 99.995 ? 0 : percent > 99 || percent < 1 ? 2 : 1;
    const text = percent.toFixed(places);
    return (by || !text.includes(".") ? text : text.replace(/\.?0+$/, "")) + "%";
  }
  function number(value, by) {
    if (!there(value)) return "–";
    if (by && by < 1) return value.toFixed(digits(by));
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-GB");
    return String(+value.toPrecision(size >= 1 || size === 0 ? 4 : 3));
  }
  function bytes(value) {
    if (!there(value)) return "–";
    for (const [unit, step] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (value >= step) return +(value / step).toPrecision(3) + " " + unit;
    return value + " B";
  }
  function stretch(seconds) {
    if (!there(seconds)) return "–";
    const s = Math.abs(seconds);
    if (s < 1) return s.toFixed(2) + " s";
    if (s < 10) return +s.toFixed(1) + " s";
    if (s < 120) return Math.round(s) + " s";
    if (s < 7200) return Math.round(s / 60) + " min";
    if (s < 2 * DAY) return Math.round(s / 3600) + " h";
    return Math.round(s / DAY) + " days";
  }
  const two = (n) => String(n).padStart(2, "0");
  function day(seconds) {
    if (!there(seconds)) return "–";
    const t = new Date(1000 * seconds);
    return t.getUTCDate() + " " + MONTHS[t.getUTCMonth()] + " " + t.getUTCFullYear();
  }
  function short(seconds) {
    const t = new Date(1000 * seconds);
    return [t.getUTCDate() + " " + MONTHS[t.getUTCMonth()], two(t.getUTCHours()) + ":" + two(t.getUTCMinutes())];
  }
  function when(seconds) {
    if (!there(seconds)) return "–";
    const t = new Date(1000 * seconds);
    return day(seconds) + ", " + two(t.getUTCHours()) + ":" + two(t.getUTCMinutes()) + " UTC";
  }
  /* A time in the future comes from another clock. */
  const ago = (seconds, now) => (now - seconds < -60 ? stretch(seconds - now) + " ahead of this clock" : now - seconds < 60 ? "just now" : stretch(now - seconds) + " ago");
  const version = (n) => (there(n) ? String(n).padStart(6, "0") : "–");
  /* Any value as text: data may have any type, and is never used as markup. */
  function text(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "object") return JSON.stringify(value);
    return String(value);
  }
  function last(values) {
    for (let i = (values || []).length - 1; i >= 0; i--) if (there(values[i])) return values[i];
    return null;
  }
  /* The value of the newest run or pass; null if it has none. */
  const newest = (values) => { const value = (values || [])[(values || []).length - 1]; return there(value) ? value : null; };
  const reason = (mark) => mark.text || "published " + version(mark.version);
  const settings = (given) => Object.entries(given || {}).map(([k, v]) => k + " " + text(v)).join(", ");

  nearcast.format = { share, number, bytes, stretch, day, short, when, ago, version, text, last, newest, reason, settings, there, DAY };
  nearcast.html = preact.html;
  nearcast.GLYPH = { bad: "✕", warn: "!", ok: "✓", idle: "–", unknown: "?" };
})();
