"use strict";
// Draws the figures from the bins in #data. Nothing here comes from a guest but numbers and the words of DESIGN.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const STAGES = [["signal", "signal"], ["inject", "inject"], ["guest", "guest"], ["unmask", "unmask"], ["unsplit", "not split"]];
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const plots = Array.from(document.querySelectorAll("[data-figure]"));
  const narrow = () => window.innerWidth < 600;

  function color(name) {
    return getComputedStyle(root).getPropertyValue("--" + name).trim();
  }

  function fade(hex, alpha) {
    return hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
  }

  function duration(ns) {
    for (const [scale, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
      if (ns >= scale * 0.9995) return Number((ns / scale).toPrecision(3)) + " " + unit;
    }
    return Math.round(ns) + " ns";
  }

  function logTicks(axis, low, high) {
    axis.tickvals = [];
    axis.ticktext = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      axis.tickvals.push(power);
      axis.ticktext.push(duration(Math.pow(10, power)));
    }
    return axis;
  }

  function axis(more) {
    return Object.assign({
      gridcolor: color("line"), zeroline: false, linecolor: color("line"), tickcolor: color("line"),
      automargin: true, fixedrange: false,
    }, more);
  }

  function layout(more) {
    return Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("ink"), size: 12, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 56, r: 12, t: 8, b: 42 }, showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("soft"), activecolor: color("link") },
    }, more);
  }

  function distribution(device, measure) {
    const traces = [], shapes = [];
    let low = Infinity, high = -Infinity;
    for (const found of device.paths) {
      const [perDecade, first, counts] = found.bins[measure];
      const total = counts.reduce((sum, n) => sum + n, 0);
      if (!total) continue;
      const tint = color("path-" + found.path);
      // One empty bin on each side, so that the step line begins and ends on the axis.
      const padded = [0, ...counts, 0];
      const x = padded.map((_, i) => (first - 1 + i) / perDecade);
      low = Math.min(low, x[0]);
      high = Math.max(high, x[x.length - 1] + 1 / perDecade);
      traces.push({
        type: "scatter", mode: "lines", name: found.path, x, y: padded.map((n) => 100 * n / total),
        line: { shape: "hv", color: tint, width: 1.6 }, fill: "tozeroy", fillcolor: fade(tint, 0.16),
        text: padded.map((n, i) => duration(Math.pow(10, x[i])) + " to " + duration(Math.pow(10, x[i] + 1 / perDecade)) + ": " + n.toLocaleString("en")),
        hovertemplate: "%{text} interrupts, %{y:.2f} %<extra>" + found.path + "</extra>",
      });
      found.marks[measure].forEach((value, i) => {
        if (value === null) return;
        const at = Math.log10(Math.max(value, 1));
        shapes.push({ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: tint, width: 1.2, dash: i ? "dot" : "dash" } });
      });
    }
    const empty = traces.length ? [] : [{ text: "no interrupt has this stage", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
    return [traces, layout({
      shapes, annotations: empty,
      xaxis: axis(logTicks({ title: { text: "latency" } }, Math.min(low, 99), Math.max(high, 0))),
      yaxis: axis({ title: { text: "% of the path" }, rangemode: "tozero" }),
    })];
  }

  function stages(device, choice) {
    const rows = device.paths.filter((found) => found.mean).reverse().map((found) => {
      const values = choice === "median" ? [...found.median, null] : found.mean;
      return { path: found.path, values, sum: values.reduce((sum, value) => sum + (value || 0), 0) };
    });
    // The axis is in the unit of its longest bar.
    const longest = Math.max(1, ...rows.map((row) => row.sum));
    const [scale, unit] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([size]) => longest >= size);
    const share = choice === "share";
    const traces = STAGES.map(([key, word], i) => ({
      type: "bar", orientation: "h", name: word, y: rows.map((row) => row.path),
      x: rows.map(({ values, sum }) => values[i] === null ? null : share ? 100 * values[i] / (sum || 1) : values[i] / scale),
      marker: { color: color("stage-" + key) },
      text: rows.map(({ values, sum }) => !values[i] ? "" : share ? Math.round(100 * values[i] / sum) + " %" : duration(values[i])),
      textposition: "inside", insidetextanchor: "middle",
      hovertemplate: "%{y}: %{text}<extra>" + word + "</extra>",
    })).filter((trace) => trace.x.some((value) => value));
    return [traces, layout({
      barmode: "stack", bargap: 0.3, uniformtext: { mode: "hide", minsize: 9 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
      xaxis: axis({ title: { text: share ? "% of the mean masked time" : choice + " masked time, " + unit } }),
      yaxis: axis({ gridcolor: "rgba(0,0,0,0)" }),
    })];
  }

  function timeline(device) {
    const time = data.recording.time;
    const seconds = time.width / 1e9, begin = time.offset / 1e9;
    const x = Array.from({ length: time.bins }, (_, i) => begin + (i + 0.5) * seconds);
    const traces = [];
    for (const found of device.paths) {
      traces.push({
        type: "bar", name: found.path, x, y: found.rate.map((n) => n / seconds), width: seconds, yaxis: "y2",
        marker: { color: color("path-" + found.path), line: { width: 0 } }, legendgroup: found.path,
        hovertemplate: "%{x:.3~f} s: %{y:,.4~r}/s<extra>" + found.path + "</extra>",
      });
    }
    const cells = new Map();
    let low = Infinity, high = -Infinity;
    for (const found of device.paths) {
      for (let i = 0; i < found.density.length; i += 3) {
        const key = found.density[i + 1] * time.bins + found.density[i];
        cells.set(key, (cells.get(key) || 0) + found.density[i + 2]);
        low = Math.min(low, found.density[i + 1]);
        high = Math.max(high, found.density[i + 1]);
      }
    }
    if (cells.size) {
      const z = [], text = [], y = [];
      for (let height = low; height <= high; height++) {
        y.push((height + 0.5) / 10);
        const row = new Array(time.bins).fill(null), words = new Array(time.bins).fill("");
        for (let bin = 0; bin < time.bins; bin++) {
          const n = cells.get(height * time.bins + bin);
          if (n) {
            row[bin] = Math.log10(n);
            words[bin] = n.toLocaleString("en") + " of " + duration(Math.pow(10, height / 10)) + " to " + duration(Math.pow(10, (height + 1) / 10));
          }
        }
        z.push(row);
        text.push(words);
      }
      traces.push({
        type: "heatmap", x, y, z, text, zmin: 0, showscale: false, hoverongaps: false,
        colorscale: [[0, color("density-low")], [1, color("density-high")]],
        hovertemplate: "%{x:.3~f} s: %{text}<extra></extra>",
      });
    }
    for (const state of [...new Set(device.states.map(([name]) => name))]) {
      const mine = device.states.filter(([name]) => name === state);
      traces.push({
        type: "bar", orientation: "h", name: state === "off" ? "off" : "state " + state, yaxis: "y3", y: mine.map(() => "state"), width: 1,
        base: mine.map(([, from]) => from / 1e9), x: mine.map(([, from, to]) => (to - from) / 1e9),
        marker: { color: color("path-" + state), line: { width: 0 } }, showlegend: state === "off",
        text: mine.map(([, from, to, mapped]) => state + " for " + duration(to - from) + ", BARs " + (mapped === null ? "not known" : mapped ? "mapped" : "trapped")),
        textposition: "none", hovertemplate: "%{text}<extra></extra>",
      });
    }
    const end = data.recording.duration / 1e9;
    return [traces, layout({
      barmode: "stack", bargap: 0, hovermode: "closest",
      xaxis: axis({ title: { text: "seconds since the recording began" }, anchor: "y", range: [0, Math.max(end, seconds / 10)] }),
      yaxis: axis(logTicks({ title: { text: "masked time" }, domain: [0, 0.52], range: cells.size ? [low / 10, (high + 1) / 10] : [3, 6] }, low / 10, high / 10)),
      yaxis2: axis({ title: { text: narrow() ? "/s" : "interrupts/s" }, domain: [0.58, 0.9], rangemode: "tozero" }),
      yaxis3: axis({ domain: [0.94, 1], fixedrange: true, gridcolor: "rgba(0,0,0,0)", range: [-0.5, 0.5] }),
    })];
  }

  const kinds = { distribution, stages, timeline };

  function draw(plot) {
    const choice = plot.closest("figure").querySelector("[aria-pressed=true]");
    const [traces, form] = kinds[plot.dataset.figure](data.devices[plot.dataset.device], choice && choice.dataset.choice);
    return Plotly.react(plot, traces, form, CONFIG).then(() => { plot.dataset.drawn = String(traces.length); });
  }

  // One figure after the other, so that the page answers in between.
  async function drawAll() {
    for (const plot of plots) {
      await draw(plot);
      await new Promise((resolve) => setTimeout(resolve));
    }
    root.dataset.drawn = String(plots.length);
  }

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
  window.addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, closed: Array.from(document.querySelectorAll("details:not([open])")) };
    root.dataset.theme = "light";
    for (const details of before.closed) details.open = true;
    plots.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    if (!before) return;
    if (before.theme === undefined) delete root.dataset.theme; else root.dataset.theme = before.theme;
    for (const details of before.closed) details.open = false;
    before = null;
    plots.forEach(draw);
  });

  label();
  drawAll();
})();
