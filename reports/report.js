"use strict";
// Draws the figures from the bins in #data, and fills the tables for the selected device, VM and time. What is selected
// was counted by intxtrace: here bins are added up for drawing, and nothing else is computed. Nothing in #data comes
// from a guest but numbers and the words of DESIGN; text goes into the page as text.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const STAGES = [["signal", "signal"], ["inject", "inject"], ["guest", "guest"], ["unmask", "unmask"], ["unsplit", "not split"]];
  const MEASURES = ["masked_ns", "signal_ns", "inject_ns", "guest_ns", "unmask_ns"];
  const MEASURE_WORDS = ["masked time", "signal", "inject", "guest", "unmask"];
  // Places in a row of statistics.
  const COUNT = 0, P50 = 1, P99 = 3, MAX = 6;
  const TABLE_ORDER = [1, 2, 3, 4, 5, 6, 7, 8];
  const PERCENTILES = [[1, 0.5, "p50"], [2, 0.9, "p90"], [3, 0.99, "p99"], [4, 0.999, "p99.9"], [5, 0.9999, "p99.99"]];
  const UNKNOWN = "–";
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], doubleClick: false };
  const plots = Array.from(document.querySelectorAll("[data-figure]"));
  const narrow = () => window.innerWidth < 600;
  const coarse = () => window.matchMedia("(pointer: coarse)").matches;
  const edges = data.recording.time ? data.recording.time.windows : [];
  const last = edges.length - 2;
  const chosen = { vm: "", device: "", from: 0, to: last };
  const isWhole = () => last < 1 || (chosen.from === 0 && chosen.to === last);

  // Numbers in words, as intxtrace/units.py writes them.

  function fixed(value, digits) {
    const scaled = value * Math.pow(2, digits + 1);
    if (Number.isInteger(scaled) && scaled % 2) {  // Exactly between two: to the even one, as Python.
      const below = Math.floor(value * Math.pow(10, digits));
      return ((below + below % 2) / Math.pow(10, digits)).toFixed(digits);
    }
    return value.toFixed(digits);
  }

  const threeDigits = (value) => fixed(value, value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
  const count = (value) => value === null ? UNKNOWN : value.toLocaleString("en");

  function duration(ns) {
    if (ns === null) return UNKNOWN;
    if (ns >= 3.6e12) {
      const minutes = Number(fixed(ns / 60e9, 0));
      return count(Math.floor(minutes / 60)) + " h " + String(minutes % 60).padStart(2, "0") + " min";
    }
    if (ns >= 60e9) {
      const seconds = Number(fixed(ns / 1e9, 0));
      return Math.floor(seconds / 60) + " min " + String(seconds % 60).padStart(2, "0") + " s";
    }
    for (const [scale, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
      if (ns >= scale * 0.9995) return threeDigits(ns / scale) + " " + unit;
    }
    return ns >= 0.9995 || Number.isInteger(ns) ? fixed(ns, 0) + " ns" : fixed(ns, 1) + " ns";
  }

  function rate(perSecond) {
    if (perSecond === null) return UNKNOWN;
    if (perSecond >= 100) return count(Number(fixed(perSecond, 0))) + "/s";
    const digits = perSecond ? Math.max(0, 2 - Math.floor(Math.log10(perSecond))) : 0;
    return Number(fixed(perSecond, digits)) + "/s";
  }

  function share(part, whole) {
    if (!whole) return UNKNOWN;
    const percent = 100 * part / whole;
    if (part === 0 || part === whole) return fixed(percent, 0) + " %";
    return fixed(Math.min(Math.max(percent, 0.1), 99.9), 1) + " %";
  }

  // What is selected, of one device.

  function added(bins) {
    return MEASURES.map((_, measure) => {
      const filled = bins.map((one) => one[measure]).filter(([, , counts]) => counts.length);
      if (!filled.length) return [1, 0, []];
      const first = Math.min(...filled.map(([, low]) => low));
      const end = Math.max(...filled.map(([, low, counts]) => low + counts.length));
      const sums = new Array(end - first).fill(0);
      for (const [, low, counts] of filled) counts.forEach((n, i) => { sums[low - first + i] += n; });
      return [filled[0][0], first, sums];
    });
  }

  function view(device) {
    const whole = isWhole();
    const [total, resignals, rows, perSecond, latency] = whole ? device.whole : device.spans[chosen.from + "-" + chosen.to];
    const windows = whole ? [device.bins] : device.windows.slice(chosen.from, chosen.to + 1);
    const bins = {};
    for (const [path] of latency) {
      const found = windows.filter((one) => path in one).map((one) => one[path]);
      if (found.length) bins[path] = added(found);
    }
    return { total, resignals, rows, perSecond, latency, bins, all: latency.length ? latency[latency.length - 1] : null };
  }

  function slowestOf(device) {
    if (isWhole()) return device.slowest_of_all;
    const rows = [].concat(...device.slowest.slice(chosen.from, chosen.to + 1));
    return rows.sort((a, b) => b[4] - a[4] || a[0] - b[0]).slice(0, device.slowest_most);
  }

  // Tables.

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children.map((child) => child instanceof Node ? child : String(child)));
    return made;
  }
  const cell = (text) => element("td", null, text);
  const head = (...children) => element("th", { scope: "row" }, ...children);
  const swatch = (path) => element("i", { class: "path-" + path });
  const statistics = (values) => TABLE_ORDER.map((place) => cell(duration(values[place])));

  function bar(parts, whole, style, word) {
    const made = element("div", { class: "bar" });
    for (const [name, value, text] of parts) {
      if (!value) continue;
      const span = element("span", { class: style + name, title: word(name) + ": " + text });
      span.style.width = 100 * value / whole + "%";
      made.append(span);
    }
    return made;
  }

  const fill = {
    latency: (seen) => seen.latency.map(([path, interrupts, complete, , , measures]) => {
      const row = element("tr", path === "all" ? { class: "sum" } : null, head(swatch(path), path), cell(count(interrupts)),
        cell(share(interrupts, seen.total)), cell(count(complete)), ...statistics(measures[0]));
      return row;
    }),
    stages: (seen) => [].concat(...seen.latency.map(([path, , , , , measures]) => measures.map((values, i) =>
      element("tr", null, head(path), cell(MEASURE_WORDS[i]), cell(count(values[COUNT])), ...statistics(values))))),
    counts: (seen) => seen.rows.map(([path, origin, outcome, n]) =>
      element("tr", null, element("td", null, swatch(path), path), cell(origin), cell(outcome), cell(count(n)), cell(share(n, seen.total)))),
    unmeasured: (seen) => [count(seen.all ? seen.all[3] : 0)],
    slowest: (seen, device) => slowestOf(device).map(([id, path, origin, at, masked, signal, inject, guest, unmask, proof]) => {
      const known = [signal, inject, guest, unmask];
      const values = [...known, masked - known.reduce((sum, value) => sum + (value || 0), 0)];
      const parts = bar(STAGES.map(([name], i) => [name, values[i], duration(values[i])]), masked, "stage-",
        (name) => STAGES.find(([key]) => key === name)[1]);
      parts.setAttribute("aria-hidden", "true");
      return element("tr", { id: "interrupt-" + id }, head(element("a", { href: "#interrupt-" + id }, id)),
        cell(duration(masked)), element("td", { class: "wide" }, parts), element("td", { class: "word" }, swatch(path), path),
        element("td", { class: "word" }, origin), cell(duration(at)), ...known.map((value) => cell(duration(value))), cell(proof || UNKNOWN));
    }),
  };

  const facts = {
    total: (seen) => [count(seen.total), seen.perSecond === null ? "no clock, no rate" : rate(seen.perSecond) + " in the mean"],
    masked: (seen) => [duration(seen.all && seen.all[5][0][P50]), "p99 " + duration(seen.all && seen.all[5][0][P99])],
    longest: (seen) => {
      const n = seen.all ? seen.all[5][0][COUNT] : 0;
      return [duration(seen.all && seen.all[5][0][MAX]), "of " + count(n) + " complete interrupt" + (n === 1 ? "" : "s")];
    },
    resignals: (seen) => [share(seen.resignals, seen.total), count(seen.resignals)],
    bursts: (seen, kept) => [kept[0].textContent, "in the whole recording"],
    "resignals-count": (seen) => [count(seen.resignals), share(seen.resignals, seen.total) + " of interrupts"],
  };

  const overview = {
    paths: (seen) => {
      const paths = seen.latency.filter(([path]) => path !== "all");
      const made = bar(paths.map(([path, n]) => [path, n, count(n) + ", " + share(n, seen.total)]), seen.total, "path-", (path) => path);
      made.setAttribute("role", "img");
      made.setAttribute("aria-label", paths.map(([path, n]) => path + " " + share(n, seen.total) + " ").join(""));
      return made;
    },
    total: (seen) => count(seen.total),
    rate: (seen) => rate(seen.perSecond),
    p50: (seen) => duration(seen.all && seen.all[5][0][P50]),
    p99: (seen) => duration(seen.all && seen.all[5][0][P99]),
    max: (seen) => duration(seen.all && seen.all[5][0][MAX]),
    resignals: (seen) => count(seen.resignals),
  };

  // The words of the whole recording are in the page; they come back as they were.
  const originals = new Map();
  for (const kept of document.querySelectorAll("[data-fill], [data-fact] dd, [data-cell]")) {
    originals.set(kept, Array.from(kept.childNodes));
  }

  function fillTables() {
    const whole = isWhole();
    for (const [kept, nodes] of originals) if (whole) kept.replaceChildren(...nodes);
    for (const note of document.querySelectorAll(".in-range")) note.hidden = whole;
    const begin = edges[chosen.from], end = edges[chosen.to + 1];
    for (const row of document.querySelectorAll("tr[data-from]")) {
      row.hidden = !whole && (Number(row.dataset.to) < begin || Number(row.dataset.from) > end);
    }
    if (whole) return;
    data.devices.forEach((device, index) => {
      const seen = view(device);
      for (const row of document.querySelectorAll('tr[data-device="' + index + '"] [data-cell]')) {
        if (row.dataset.cell in overview) row.replaceChildren(overview[row.dataset.cell](seen));
        else row.replaceChildren(UNKNOWN);
      }
      const section = document.getElementById("device-" + index);
      for (const body of section.querySelectorAll("[data-fill]")) {
        body.replaceChildren(...fill[body.dataset.fill](seen, device));
      }
      for (const fact of section.querySelectorAll("[data-fact]")) {
        const place = fact.querySelector("dd");
        const [value, note] = facts[fact.dataset.fact](seen, originals.get(place));
        place.replaceChildren(element("span", null, value), element("small", null, note));
      }
    });
    for (const row of document.querySelectorAll("tr[data-device]")) {
      // A device without a section has no figures of a window.
      if (Number(row.dataset.device) >= data.devices.length) {
        for (const place of row.querySelectorAll("[data-cell]")) place.replaceChildren(UNKNOWN);
      }
    }
  }

  // Figures.

  function color(name) {
    return getComputedStyle(root).getPropertyValue("--" + name).trim();
  }

  function fade(hex, alpha) {
    return hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
  }

  // An axis of durations from 10^low to 10^high ns, at least half a decade long.
  function logAxis(low, high, more) {
    const missing = Math.max(0, 0.5 - (high - low)) / 2;
    const range = [low - missing, high + missing];
    const decades = range[1] - range[0];
    const steps = decades > 2 ? [1] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    const tickvals = [], ticktext = [];
    for (let power = Math.floor(range[0]); power <= Math.ceil(range[1]); power++) {
      for (const step of steps) {
        tickvals.push(power + Math.log10(step));
        ticktext.push(duration(step * Math.pow(10, power)).replace(/\.0+ /, " ").replace(/(\.\d*?)0+ /, "$1 "));
      }
    }
    return axis(Object.assign({ range, tickvals, ticktext }, more));
  }

  function axis(more) {
    return Object.assign({
      gridcolor: color("line"), zeroline: false, linecolor: color("line"), tickcolor: color("line"),
      fixedrange: true, automargin: false, ticklabeloverflow: "allow",  // plotly.js measures text only where it must
    }, more);
  }

  function layout(more) {
    return Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { color: color("ink"), size: 12, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 72, r: 14, t: 8, b: 44 }, showlegend: false,
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("soft"), activecolor: color("link") },
    }, more);
  }

  const nothing = (text) => [[], layout({
    annotations: [{ text, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }], xaxis: { visible: false }, yaxis: { visible: false },
  })];

  function distribution(device, seen, choice) {
    const measure = MEASURES.indexOf(choice);
    const traces = [];
    let low = Infinity, high = -Infinity, top = 1;
    for (const [path, , , , , measures] of seen.latency) {
      if (!(path in seen.bins)) continue;
      const [perDecade, first, counts] = seen.bins[path][measure];
      const total = counts.reduce((sum, n) => sum + n, 0);
      if (!total) continue;
      const tint = color("path-" + path);
      // One empty bin on each side, so that the step line begins and ends on the axis.
      const padded = [0, ...counts, 0];
      const x = padded.map((_, i) => (first - 1 + i) / perDecade);
      low = Math.min(low, x[0]);
      high = Math.max(high, x[x.length - 1] + 1 / perDecade);
      traces.push({
        type: "scatter", mode: "lines", name: path, x, y: padded.map((n) => 100 * n / total),
        line: { shape: "hv", color: tint, width: 1.6 }, fill: "tozeroy", fillcolor: fade(tint, 0.16),
        text: padded.map((n, i) => duration(Math.pow(10, x[i])) + " to " + duration(Math.pow(10, x[i] + 1 / perDecade)) + ": " + count(n)),
        hovertemplate: "%{text} interrupts, %{y:.2f} %<extra>" + path + "</extra>",
      });
      // The percentiles: how many nines of the interrupts took at most so long.
      let below = 0;
      const curve = [[first / perDecade, 0], ...counts.map((n, i) => [(first + i + 1) / perDecade, (below += n)])].filter(([, n]) => n < total);
      traces.push({
        type: "scatter", mode: "lines", x: curve.map(([at]) => at), y: curve.map(([, n]) => -Math.log10(1 - n / total)),
        yaxis: "y2", line: { color: tint, width: 1.2 }, hoverinfo: "skip",
      });
      // Of few interrupts, a high percentile is the maximum under another name.
      const marks = PERCENTILES.filter(([place, q]) => measures[measure][place] !== null && total * (1 - q) > 0.999);
      top = Math.max(top, ...marks.map(([, q]) => -Math.log10(1 - q)));
      traces.push({
        type: "scatter", mode: "markers", x: marks.map(([place]) => Math.log10(Math.max(measures[measure][place], 1))),
        y: marks.map(([, q]) => -Math.log10(1 - q)), yaxis: "y2",
        marker: { color: tint, size: 7 }, text: marks.map(([place, , word]) => word + ": " + duration(measures[measure][place])),
        hovertemplate: "%{text}<extra>" + path + "</extra>",
      });
    }
    if (!traces.length) return nothing("no interrupt has this stage");
    return [traces, layout({
      xaxis: logAxis(low, high, { title: { text: "latency" }, anchor: "y2" }),
      yaxis: axis({ title: { text: "% of the path" }, rangemode: "tozero", domain: [0.47, 1] }),
      yaxis2: axis({
        domain: [0, 0.42], range: [0, top + 0.35], tickvals: PERCENTILES.map(([, q]) => -Math.log10(1 - q)), ticktext: PERCENTILES.map(([, , word]) => word),
      }),
    })];
  }

  function stages(device, seen, choice) {
    const rows = seen.latency.filter(([path, , , , parts]) => path !== "all" && parts).reverse().map(([path, , , , parts, measures]) => {
      const values = choice === "median" ? [...measures.slice(1).map((one) => one[P50]), null] : parts;
      return { path, values, sum: values.reduce((sum, value) => sum + (value || 0), 0) };
    });
    // The axis is in the unit of its longest bar.
    const longest = Math.max(1, ...rows.map((row) => row.sum));
    const [scale, unit] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([size]) => longest >= size);
    const inShares = choice === "share";
    const traces = STAGES.map(([key, word], i) => ({
      type: "bar", orientation: "h", name: word, y: rows.map((row) => row.path),
      x: rows.map(({ values, sum }) => values[i] === null ? null : inShares ? 100 * values[i] / (sum || 1) : values[i] / scale),
      marker: { color: color("stage-" + key) },
      text: rows.map(({ values, sum }) => !values[i] ? "" : inShares ? Math.round(100 * values[i] / sum) + " %" : duration(values[i])),
      textposition: "inside", insidetextanchor: "middle", textangle: 0,
      hovertemplate: "%{y}: %{text}<extra>" + word + "</extra>",
    })).filter((trace) => trace.x.some((value) => value));
    if (!traces.length) return nothing("no masked time is known");
    return [traces, layout({
      barmode: "stack", bargap: 0.3, uniformtext: { mode: "hide", minsize: 9 },
      xaxis: axis({ title: { text: inShares ? "% of the mean masked time" : choice + " masked time, " + unit }, rangemode: "tozero" }),
      yaxis: axis({ gridcolor: "rgba(0,0,0,0)" }),
    })];
  }

  function strip(name, row, from, to, tint, text) {
    return {
      type: "bar", orientation: "h", name, yaxis: "y3", y: from.map(() => row), width: 0.8,
      base: from.map((at) => at / 1e9), x: to.map((at, i) => (at - from[i]) / 1e9),
      marker: { color: tint, line: { color: tint, width: 1 } }, text, textposition: "none", hovertemplate: "%{text}<extra></extra>",
    };
  }

  function timeline(device) {
    const { time } = data.recording;
    const at = (bin) => (time.offset + bin * time.width) / 1e9, seconds = time.width / 1e9;
    const lefts = Array.from({ length: time.bins + 1 }, (_, bin) => at(bin));
    const traces = [];
    for (const [path, counts] of Object.entries(device.rate)) {
      const tint = color("path-" + path);
      traces.push({
        type: "scatter", mode: "lines", name: path, x: lefts, y: [...counts, 0].map((n) => n / seconds), yaxis: "y2", stackgroup: "rate",
        line: { shape: "hv", width: 0, color: tint }, fillcolor: tint, hovertemplate: "from %{x:.3~f} s: %{y:,.4~r}/s<extra>" + path + "</extra>",
      });
    }
    const cells = new Map();
    let low = Infinity, high = -Infinity;
    for (const density of Object.values(device.density)) {
      for (let i = 0; i < density.length; i += 3) {
        const key = density[i + 1] * time.bins + density[i];
        cells.set(key, (cells.get(key) || 0) + density[i + 2]);
        low = Math.min(low, density[i + 1]);
        high = Math.max(high, density[i + 1]);
      }
    }
    if (cells.size) {
      const z = [], text = [], y = [low / 10];  // edges
      for (let height = low; height <= high; height++) {
        y.push((height + 1) / 10);
        const row = new Array(time.bins).fill(null), words = new Array(time.bins).fill("");
        for (let bin = 0; bin < time.bins; bin++) {
          const n = cells.get(height * time.bins + bin);
          if (n) {
            row[bin] = Math.log10(n);
            words[bin] = count(n) + " of " + duration(Math.pow(10, height / 10)) + " to " + duration(Math.pow(10, (height + 1) / 10));
          }
        }
        z.push(row);
        text.push(words);
      }
      traces.push({
        type: "heatmap", x: lefts, y, z, text, zmin: 0, showscale: false, hoverongaps: false,
        colorscale: [[0, color("density-low")], [1, color("density-high")]],
        hovertemplate: "%{x:.3~f} s: %{text}<extra></extra>",
      });
    }
    const rows = [];
    for (const state of new Set(device.states.map(([name]) => name))) {
      const mine = device.states.filter(([name]) => name === state);
      rows.push("state");
      traces.push(strip("state " + state, "state", mine.map(([, from]) => from), mine.map(([, , to]) => to), color("path-" + state),
        mine.map(([, from, to, mapped]) => state + " for " + duration(to - from) + ", BARs " + (mapped === null ? "not known" : mapped ? "mapped" : "trapped"))));
    }
    for (const [row, found, text] of [
      ["slow", device.slow, ([, , n, slow]) => count(slow) + " of " + count(n) + " slow"],
      ["burst", device.bursts, ([from, to, n]) => "burst: " + count(n) + " in " + duration(to - from)],
    ]) {
      if (!found.length) continue;
      rows.push(row);
      traces.push(strip(row, row, found.map(([from]) => from), found.map(([, to]) => to), color(row), found.map(text)));
    }
    const order = ["burst", "slow", "state"].filter((row) => rows.includes(row));
    const end = data.recording.duration / 1e9;
    const range = isWhole() ? [0, Math.max(end, seconds / 10)] : [edges[chosen.from] / 1e9, Math.max(edges[chosen.to + 1] / 1e9, edges[chosen.from] / 1e9 + seconds / 10)];
    const bottom = 0.97 - 0.045 * order.length;
    return [traces, layout({
      barmode: "overlay", bargap: 0, dragmode: coarse() || last < 1 ? false : "zoom",
      shapes: device.slow.map(([from, to]) => ({
        type: "rect", x0: from / 1e9, x1: to / 1e9, y0: 0, y1: bottom - 0.04, yref: "paper", line: { width: 0 }, fillcolor: fade(color("slow"), 0.12), layer: "below",
      })),
      xaxis: axis({ title: { text: "seconds since the recording began" }, anchor: "y", range, fixedrange: coarse() || last < 1 }),
      yaxis: logAxis(cells.size ? low / 10 : 3, cells.size ? (high + 1) / 10 : 6, { title: { text: "masked time" }, domain: [0, 0.48] }),
      yaxis2: axis({ title: { text: narrow() ? "/s" : "interrupts/s" }, domain: [0.53, bottom - 0.04], rangemode: "tozero" }),
      yaxis3: axis({ domain: [bottom, 1], gridcolor: "rgba(0,0,0,0)", type: "category", categoryorder: "array", categoryarray: order, range: [-0.5, order.length - 0.5] }),
    })];
  }

  const kinds = { distribution, stages, timeline };
  const pending = new Set();
  let drawing = false, started = false;

  // plotly.js is as large as all else: the words come first.
  function start() {
    if (started) return;
    started = true;
    document.body.append(element("script", null, document.getElementById("plotly").textContent));
  }

  function draw(plot) {
    start();
    const choice = plot.closest("figure").querySelector("[aria-pressed=true]");
    const device = data.devices[plot.dataset.device];
    const [traces, form] = kinds[plot.dataset.figure](device, view(device), choice && choice.dataset.choice);
    const fresh = !plot.dataset.drawn;
    const done = Plotly.react(plot, traces, form, CONFIG);
    plot.dataset.drawn = String(traces.length);
    if (fresh && plot.dataset.figure === "timeline") {
      plot.on("plotly_relayout", (change) => {
        if ("xaxis.range[0]" in change) selectTime(change["xaxis.range[0]"] * 1e9, change["xaxis.range[1]"] * 1e9);
      });
      plot.on("plotly_doubleclick", () => choose({ from: 0, to: last }));
    }
    return done;
  }

  // One figure after the other, those in sight first; the page answers four times a second in between.
  async function drawAll() {
    plots.forEach((plot) => pending.add(plot));
    if (drawing) return;
    drawing = true;
    delete root.dataset.drawn;
    let answered = performance.now();
    while (true) {
      const shown = Array.from(pending).filter((plot) => plot.offsetParent !== null);
      if (!shown.length) break;
      const away = (plot) => {
        const box = plot.getBoundingClientRect();
        return Math.max(0, -box.bottom, box.top - window.innerHeight);
      };
      const next = shown.reduce((best, plot) => away(plot) < away(best) ? plot : best);
      pending.delete(next);
      await draw(next);
      if (performance.now() - answered < 250) continue;
      await new Promise((resolve) => setTimeout(resolve));
      answered = performance.now();
    }
    drawing = false;
    root.dataset.drawn = String(plots.filter((plot) => plot.dataset.drawn).length);
  }

  // Selection.

  const selection = document.getElementById("selection");
  const controls = { vm: "choose-vm", device: "choose-device", from: "choose-from", to: "choose-to" };
  for (const key of Object.keys(controls)) controls[key] = document.getElementById(controls[key]);
  const matches = (part) =>
    (chosen.vm === "" || part.dataset.vm === chosen.vm) && (chosen.device === "" || part.dataset.device === chosen.device);

  function say(more) {
    const text = (control) => control.options[control.selectedIndex].textContent;
    const words = [];
    if (chosen.vm !== "") words.push("VM " + text(controls.vm));
    if (chosen.device !== "") words.push(text(controls.device));
    if (!isWhole()) words.push(text(controls.from) + " to " + text(controls.to));
    document.getElementById("chosen").textContent =
      (more ? more + " " : "") + (words.length ? "Shown: " + words.join(", ") + "." : "Everything is shown.");
  }

  function choose(change, more) {
    const before = [chosen.from, chosen.to].join();
    Object.assign(chosen, change);
    if (chosen.to < chosen.from) chosen[("to" in change) && !("from" in change) ? "from" : "to"] = chosen["to" in change && !("from" in change) ? "to" : "from"];
    for (const option of controls.device.options) {
      option.hidden = option.disabled = option.value !== "" && chosen.vm !== "" && option.dataset.vm !== chosen.vm;
      if (option.disabled && option.value === chosen.device) chosen.device = "";
    }
    for (const [key, control] of Object.entries(controls)) if (control) control.value = String(chosen[key]);
    for (const part of document.querySelectorAll("[data-vm]:not(option)")) part.hidden = !matches(part);
    if ([chosen.from, chosen.to].join() !== before) fillTables();
    root.toggleAttribute("data-selected", chosen.vm !== "" || chosen.device !== "" || !isWhole());
    say(more);
    drawAll();
  }

  // The least run of windows that holds this time, in ns since the recording began.
  function selectTime(begin, end) {
    let from = 0, to = last;
    while (from < last && edges[from + 1] <= begin) from++;
    while (to > from && edges[to] >= end) to--;
    choose({ from, to });
  }

  selection.addEventListener("change", (event) => {
    const key = Object.keys(controls).find((name) => controls[name] === event.target);
    if (!key) return;
    choose({ [key]: key === "from" || key === "to" ? Number(event.target.value) : event.target.value });
  });
  document.getElementById("choose-all").addEventListener("click", () => choose({ vm: "", device: "", from: 0, to: last }));
  selection.hidden = !plots.length;

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-window]");
    if (button) choose({ from: Number(button.dataset.window), to: Number(button.dataset.window) });
  });

  // Links into the page: to what the selection hides, and to interrupts that are listed for a part of the time only.

  function findInterrupt(id) {
    if (data.devices.some((device) => device.slowest_of_all.some(([number]) => number === id))) return { from: 0, to: last };
    for (const device of data.devices) {
      const window = device.slowest.findIndex((rows) => rows.some(([number]) => number === id));
      if (window >= 0) return { from: window, to: window };
    }
    return null;
  }

  function follow() {
    const name = location.hash.slice(1);
    const number = /^interrupt-(\d{1,18})$/.exec(name);
    let target = name ? document.getElementById(name) : null;
    if (number && !target) {
      const found = findInterrupt(Number(number[1]));
      if (found) choose(Object.assign({ vm: "", device: "" }, found));
      else choose({}, "Interrupt " + number[1] + " is not among the slowest, which this page lists; see intxtrace interrupts.");
      target = document.getElementById(name);
    }
    for (const row of document.querySelectorAll(".found")) row.classList.remove("found");
    if (!target) return;
    if (target.closest("[hidden]")) choose({ vm: "", device: "" });
    for (let around = target.parentElement; around; around = around.parentElement) if (around.matches("details")) around.open = true;
    target.classList.add("found");
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", follow);

  for (const group of document.querySelectorAll(".tools")) {
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      draw(group.closest("figure").querySelector(".plot"));
    });
  }

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  function label() { theme.textContent = isDark() ? "Light" : "Dark"; }
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); drawAll(); });
  dark.addEventListener("change", () => { label(); drawAll(); });

  // Paper is light, and shows what is folded.
  let before = null;
  const redraw = () => plots.filter((plot) => plot.offsetParent !== null).forEach(draw);
  window.addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, closed: Array.from(document.querySelectorAll("details:not([open])")) };
    root.dataset.theme = "light";
    for (const details of before.closed) details.open = true;
    redraw();
  });
  window.addEventListener("afterprint", () => {
    if (!before) return;
    if (before.theme === undefined) delete root.dataset.theme; else root.dataset.theme = before.theme;
    for (const details of before.closed) details.open = false;
    before = null;
    redraw();
  });

  label();
  let begun = false;
  const begin = () => {
    if (begun) return;
    begun = true;
    if (location.hash) follow();
    drawAll();
  };
  requestAnimationFrame(() => setTimeout(begin));
  setTimeout(begin, 300);  // a page in the background has no animation frames
})();
