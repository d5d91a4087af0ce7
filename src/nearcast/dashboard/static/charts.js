"use strict";
/* Charts: lines over time with marks, rows with intervals, small lines. Drawn by uPlot; colours come from the style sheet. */
(function () {
  const { html, format } = nearcast;
  const { useEffect, useRef, useState } = preact;
  const MARK = { publish: "--ok", rollback: "--warn", audit: "--bad", alert: "--bad" };
  const NEAR = 7; // pixels from a mark to be told its reason
  const AXIS_FONT = "12px system-ui, sans-serif";
  const COLOURS = ["--line-a", "--line-b", "--line-c", "--line-d", "--line-e", "--line-f", "--line-g", "--line-h"];
  const utc = (seconds) => uPlot.tzDate(new Date(1000 * seconds), "Etc/UTC");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function faint(name) {
    const hex = colour(name);
    return hex + "2e";
  }

  /* The width of an element, and whether it was on screen: a chart is drawn when it is first seen. */
  function useSeen(ref) {
    const [width, setWidth] = useState(0), observers = useRef(null);
    useEffect(() => {
      const node = ref.current;
      if (!node || observers.current) return; // nothing is drawn where there are no values, perhaps until the next run
      let seen = false;
      const sized = new ResizeObserver(() => seen && setWidth(node.clientWidth));
      const shown = new IntersectionObserver((entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        seen = true;
        shown.disconnect();
        setWidth(node.clientWidth);
      }, { rootMargin: "200px" });
      sized.observe(node);
      shown.observe(node);
      observers.current = [sized, shown];
    });
    useEffect(() => () => (observers.current || []).forEach((observer) => observer.disconnect()), []);
    return width;
  }

  /* Times of an axis: the day, and the hour only where the line is short. */
  function days(u, at) {
    const fine = at.length > 1 && at[1] - at[0] < format.DAY;
    return at.map((v, i) => {
      const [day, time] = format.short(v);
      return fine ? (i === 0 || time === "00:00" ? day : time) : day;
    });
  }
  /* Values of an axis with as many digits as tell them apart. */
  const values = (unit) => (u, at) => at.map((v) => (v === null ? "" : unit(v, at.length > 1 ? at[1] - at[0] : undefined)));

  function axes(unit, size) {
    const stroke = colour("--quiet"), grid = { stroke: colour("--rule"), width: 1 }, ticks = { show: false };
    return [
      { stroke, grid: { show: false }, ticks, font: AXIS_FONT, size: 26, gap: 4, space: 70, values: days },
      { stroke, grid, ticks, font: AXIS_FONT, size: size || 62, gap: 6, values: values(unit) },
    ];
  }

  function drawMarks(u, marks) {
    const { left, top, width, height } = u.bbox, pixel = devicePixelRatio || 1;
    u.ctx.save();
    for (const mark of marks) {
      const x = Math.round(u.valToPos(mark.at, "x", true));
      if (x < left || x > left + width) continue;
      u.ctx.strokeStyle = u.ctx.fillStyle = colour(MARK[mark.kind]);
      u.ctx.lineWidth = pixel;
      u.ctx.setLineDash(mark.kind === "rollback" ? [3 * pixel, 3 * pixel] : []);
      u.ctx.beginPath();
      if (mark.kind === "publish") {
        u.ctx.moveTo(x, top + height);
        u.ctx.lineTo(x, top + height - 6 * pixel);
        u.ctx.stroke();
      } else if (mark.kind === "alert") {
        u.ctx.moveTo(x - 5 * pixel, top);
        u.ctx.lineTo(x + 5 * pixel, top);
        u.ctx.lineTo(x, top + 8 * pixel);
        u.ctx.fill();
      } else {
        u.ctx.moveTo(x, top);
        u.ctx.lineTo(x, top + height);
        u.ctx.stroke();
      }
    }
    u.ctx.restore();
  }

  function nearestMark(u, marks, left) {
    let best = null, distance = NEAR;
    for (const mark of marks) {
      const gap = Math.abs(u.valToPos(mark.at, "x") - left);
      if (gap <= distance && (mark.kind !== "publish" || !best || gap < distance - 2)) [best, distance] = [mark, gap];
    }
    return best;
  }

  /* lines: [{name, values, colour, dash, band: [low, high]}] over x, in seconds. */
  function Lines(props) {
    const { title, hint, x, marks = [], unit = format.number, height = 170, floor, ceiling, from, now } = props;
    const lines = props.lines.filter((line) => line.values && line.values.some(format.there));
    const box = useRef(null), plot = useRef(null), width = useSeen(box);
    const [at, setAt] = useState(null), [mark, setMark] = useState(null);
    const theme = props.theme;

    useEffect(() => {
      if (!width || !lines.length) return undefined;
      const data = [x], series = [{}], bands = [];
      lines.forEach((line, place) => {
        const name = line.colour || COLOURS[place];
        const few = line.values.filter(format.there).length < 40;
        data.push(line.values);
        series.push({ stroke: colour(name), width: line.dash ? 1.25 : 1.75, dash: line.dash, spanGaps: true, paths: line.step ? uPlot.paths.stepped({ align: 1 }) : undefined, points: { show: few && !line.dash, size: 5, fill: colour(name) } });
        if (line.band) {
          const first = data.length;
          data.push(line.band[1], line.band[0]);
          for (const end of [0, 1]) series.push({ stroke: "transparent", width: 0, points: { show: false } });
          bands.push({ series: [first, first + 1], fill: faint(name) });
        }
      });
      const first = from && from > x[0] ? from : x[0], end = x[x.length - 1];
      const pad = Math.max(3600, (end - first) * 0.015);
      const options = {
        width, height, series, bands, tzDate: utc, axes: axes(unit, props.axis),
        legend: { show: false }, padding: [10, 10, 0, 0],
        cursor: { sync: { key: "time", setSeries: false }, y: false, points: { size: 7 }, drag: { x: false, y: false } },
        scales: {
          x: { time: true, range: () => [first - pad, end + pad] },
          y: { range: (u, low, high) => limits(low, high, floor, ceiling) },
        },
        hooks: {
          draw: [(u) => drawMarks(u, marks)],
          setCursor: [(u) => {
            const { idx, left } = u.cursor;
            setAt(left < 0 || idx === null || idx === undefined ? null : idx);
            setMark(left < 0 ? null : nearestMark(u, marks, left));
          }],
        },
      };
      plot.current = new uPlot(options, data, box.current);
      return () => plot.current.destroy();
    }, [width, theme, from, x, title]);

    function step(event) {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (!by || !plot.current) return;
      event.preventDefault();
      const here = at === null ? x.length : at;
      const next = Math.max(0, Math.min(x.length - 1, here + by));
      plot.current.setCursor({ left: plot.current.valToPos(x[next], "x"), top: 20 });
    }
    if (!lines.length) return null;
    const shown = at === null ? x.length - 1 : at;
    const told = (line) => {
      const value = at === null ? format.last(line.values) : line.values[shown];
      return unit(value) + (line.band && at !== null && format.there(line.band[0][shown]) ? ` (${unit(line.band[0][shown])} to ${unit(line.band[1][shown])})` : "");
    };
    const label = `${title}. ${lines.map((line) => `${line.name} ${unit(format.last(line.values))}`).join(", ")}; ${x.length} values from ${format.day(x[0])} to ${format.day(x[x.length - 1])}. Left and right arrows step through them.`;
    return html`<figure class="chart">
      <figcaption><h3>${title}</h3>${hint && html`<p class="hint">${hint}</p>`}</figcaption>
      <ul class="legend">${lines.map((line, place) => html`<li key=${line.name}><i class=${line.dash ? "swatch dashed" : "swatch"} style=${{ color: `var(${line.colour || COLOURS[place]})` }}></i>${line.name} <b>${told(line)}</b></li>`)}</ul>
      <div class="canvas" ref=${box} role="img" tabindex="0" aria-label=${label} onKeyDown=${step} style=${{ minHeight: height + "px" }}></div>
      <p class="readout" aria-live="polite">${mark ? html`<b>${format.when(mark.at)}</b> ${format.reason(mark)}` : at !== null ? format.when(x[shown]) : " "}</p>
    </figure>`;
  }

  /* A range that shows small changes but does not exaggerate noise. */
  function limits(low, high, floor, ceiling) {
    if (low === null || high === null) return [0, 1];
    const span = Math.max(high - low, Math.abs(high) * 0.02, 0.002);
    let bottom = low - 0.12 * span, top = high + 0.12 * span;
    if (floor !== undefined) bottom = Math.max(floor, bottom);
    if (low >= 0) bottom = Math.max(0, bottom);
    if (ceiling !== undefined) top = Math.min(Math.max(ceiling, high), top) + 0.02 * span;
    return [bottom, top];
  }

  /* A small line without axes; its last value is written beside it. */
  function Spark({ values, x, name = "--line-a", label, promise, theme, width = 110, height = 30 }) {
    const box = useRef(null), seen = useSeen(box);
    const known = (values || []).filter(format.there);
    useEffect(() => {
      if (!seen || known.length < 2) return undefined;
      const step = values.length <= 120 ? 1 : Math.ceil(values.length / 120);
      const keep = (row) => (step === 1 ? row : row.filter((_, i) => (row.length - 1 - i) % step === 0));
      const data = [keep(x), keep(values)], series = [{}, { stroke: colour(name), width: 1.5, spanGaps: true, points: { show: false } }];
      if (promise) (data.push(keep(promise)), series.push({ stroke: colour("--quiet"), width: 1, dash: [3, 3], points: { show: false } }));
      const options = {
        width, height, series, pxAlign: false, padding: [3, 4, 3, 2], legend: { show: false }, cursor: { show: false },
        axes: [{ show: false }, { show: false }],
        scales: { x: { time: false }, y: { range: (u, low, high) => limits(low, high) } },
        hooks: { draw: [(u) => {
          const i = data[0].length - 1;
          if (!format.there(data[1][i])) return;
          u.ctx.fillStyle = colour(name);
          u.ctx.beginPath();
          u.ctx.arc(u.valToPos(data[0][i], "x", true), u.valToPos(data[1][i], "y", true), 2.5 * (devicePixelRatio || 1), 0, 7);
          u.ctx.fill();
        }] },
      };
      const plot = new uPlot(options, data, box.current);
      return () => plot.destroy();
    }, [seen, theme, values]);
    const text = known.length < 2 ? label + ": too few values for a line" : label;
    return html`<div class="spark" ref=${box} role="img" aria-label=${text} style=${{ width: width + "px", height: height + "px" }}></div>`;
  }

  /* Rows: a value with its interval each, or a bar from zero; `line` is drawn across all. */
  function Rows({ title, hint, rows, line, lineName, unit = format.share, bars, theme, wide }) {
    const box = useRef(null), width = useSeen(box), [at, setAt] = useState(null);
    const names = Math.min(wide || 170, Math.max(60, Math.round(width * 0.36)));
    const height = 24 * rows.length + 36;
    useEffect(() => {
      if (!width || !rows.length) return undefined;
      const ends = rows.flatMap((row) => [row.low, row.mid, row.high]).concat(bars ? [0] : [], format.there(line) ? [line] : []).filter(format.there);
      const low = Math.min(...ends), high = Math.max(...ends), span = high - low || Math.abs(high) || 1;
      const range = [bars ? 0 : low - 0.04 * span, high + 0.06 * span];
      const size = Math.floor((names - 12) / 6.3);
      const short = (name) => (name.length > size ? name.slice(0, size - 1) + "…" : name);
      const options = {
        width, height, legend: { show: false }, padding: [4, 14, 0, 0],
        cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
        scales: { x: { time: false, ori: 1, dir: -1, range: () => [-0.6, rows.length - 0.4] }, y: { ori: 0, dir: 1, range: () => range } },
        axes: [
          { side: 3, stroke: colour("--ink"), grid: { show: false }, ticks: { show: false }, font: AXIS_FONT, size: names, gap: 8, splits: () => rows.map((_, i) => i), values: () => rows.map((row) => short(row.name)) },
          { side: 2, stroke: colour("--quiet"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false }, font: AXIS_FONT, size: 24, gap: 4, space: 70, values: values(unit) },
        ],
        series: [{}, { stroke: "transparent", paths: () => null, points: { show: false } }],
        hooks: {
          draw: [(u) => drawRows(u, rows, line, bars)],
          setCursor: [(u) => setAt(u.cursor.left < 0 || u.cursor.idx === undefined ? null : u.cursor.idx)],
        },
      };
      const plot = new uPlot(options, [rows.map((_, i) => i), rows.map((row) => row.mid)], box.current);
      return () => plot.destroy();
    }, [width, theme, rows]);
    if (!rows.length) return null;
    const told = (row) => `${row.name} ${unit(row.mid)}${format.there(row.low) && !bars ? ` (${unit(row.low)} to ${unit(row.high)})` : ""}${row.note ? ", " + row.note : ""}`;
    const label = `${title}: ${rows.map(told).join("; ")}`;
    return html`<figure class="chart">
      <figcaption><h3>${title}</h3>${hint && html`<p class="hint">${hint}</p>`}</figcaption>
      ${format.there(line) && html`<ul class="legend"><li><i class="swatch dashed" style=${{ color: "var(--quiet)" }}></i>${lineName} <b>${unit(line)}</b></li></ul>`}
      <div class="canvas" ref=${box} role="img" tabindex="0" aria-label=${label} style=${{ minHeight: height + "px" }}></div>
      <p class="readout">${at !== null && rows[at] ? told(rows[at]) : " "}</p>
    </figure>`;
  }

  function drawRows(u, rows, line, bars) {
    const pixel = devicePixelRatio || 1, ctx = u.ctx, at = (v) => u.valToPos(v, "y", true);
    ctx.save();
    if (format.there(line)) {
      ctx.strokeStyle = colour("--quiet");
      ctx.lineWidth = pixel;
      ctx.setLineDash([4 * pixel, 3 * pixel]);
      ctx.beginPath();
      ctx.moveTo(at(line), u.bbox.top);
      ctx.lineTo(at(line), u.bbox.top + u.bbox.height);
      ctx.stroke();
      ctx.setLineDash([]);
    }
    rows.forEach((row, place) => {
      const y = u.valToPos(place, "x", true);
      ctx.strokeStyle = ctx.fillStyle = colour(row.colour || "--line-a");
      if (bars) {
        ctx.fillRect(at(0), y - 7 * pixel, Math.max(pixel, at(row.mid) - at(0)), 14 * pixel);
        return;
      }
      if (format.there(row.low) && format.there(row.high)) {
        ctx.lineWidth = 3 * pixel;
        ctx.globalAlpha = 0.45;
        ctx.beginPath();
        ctx.moveTo(at(row.low), y);
        ctx.lineTo(at(row.high), y);
        ctx.stroke();
        ctx.globalAlpha = 1;
      }
      if (!format.there(row.mid)) return;
      ctx.beginPath();
      ctx.arc(at(row.mid), y, 4 * pixel, 0, 7);
      ctx.fill();
    });
    ctx.restore();
  }

  /* The seconds of the whole job by recall target, a line per point of the tuning; the chosen one is thick. */
  function Frontier({ frontier, theme }) {
    const box = useRef(null), width = useSeen(box), [at, setAt] = useState(null);
    const promises = [...new Set(frontier.points.flatMap((point) => Object.keys(point.costs).map(Number)))].sort((a, b) => a - b);
    const same = (point) => point.engine === frontier.chosen.engine && JSON.stringify(point.settings) === JSON.stringify(frontier.chosen.settings);
    const engines = [...new Set(frontier.points.map((point) => point.engine))];
    const tone = (point) => COLOURS[engines.indexOf(point.engine) % COLOURS.length];
    const name = (point) => `${format.text(point.engine)} ${format.settings(point.settings)}`.trim();
    useEffect(() => {
      if (!width || !promises.length) return undefined;
      const rows = frontier.points.map((point) => promises.map((p) => { const v = point.costs[String(p)]; return v > 0 ? v : null; }));
      const data = [promises.map((_, i) => i), ...rows];
      const series = frontier.points.map((point) => {
        const chosen = same(point);
        return { stroke: colour(tone(point)), width: chosen ? 3 : 1, alpha: chosen ? 1 : 0.75, points: { show: true, size: chosen ? 10 : 5, fill: chosen ? colour("--card") : colour(tone(point)), width: chosen ? 3 : 1 } };
      });
      const options = {
        width, height: 260, legend: { show: false }, padding: [10, 16, 0, 0], series: [{}, ...series],
        scales: { x: { time: false, range: () => [-0.3, promises.length - 0.7] }, y: { distr: 3 } },
        axes: (() => { const a = axes(format.stretch, 62); a[0].splits = () => promises.map((_, i) => i); a[0].values = () => promises.map((p) => format.share(p)); return a; })(),
        cursor: { y: false, focus: { prox: 30 }, drag: { x: false, y: false }, points: { size: 8 } },
        focus: { alpha: 0.25 },
        hooks: { setSeries: [(u, place) => setAt(place ? place - 1 : null)] },
      };
      const plot = new uPlot(options, data, box.current);
      return () => plot.destroy();
    }, [width, theme, frontier]);
    const pointed = at !== null ? frontier.points[at] : null;
    const told = (point) => name(point) + ": " + promises.filter((p) => point.costs[String(p)]).map((p) => `${format.share(p)} in ${format.stretch(point.costs[String(p)])}`).join(", ");
    return html`<figure class="chart">
      <figcaption><h3>What each recall costs</h3><p class="hint">Seconds of the whole job by recall target, with a line for each configuration; lower is cheaper.</p></figcaption>
      <ul class="legend">${engines.map((engine, i) => html`<li key=${engine}><i class="swatch" style=${{ color: `var(${COLOURS[i % COLOURS.length]})` }}></i>${format.text(engine)}</li>`)}<li><i class="swatch ring"></i>chosen: <b>${name(frontier.chosen)}</b></li></ul>
      <div class="canvas" ref=${box} role="img" tabindex="0" aria-label=${"What each recall costs. " + frontier.points.map(told).join("; ")} style=${{ minHeight: "260px" }}></div>
      <p class="readout">${pointed ? told(pointed) : " "}</p>
    </figure>`;
  }

  nearcast.charts = { Lines, Spark, Rows, Frontier };
})();
