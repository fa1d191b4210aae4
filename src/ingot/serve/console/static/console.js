// What pages do beyond their HTML: charts, relative times, the theme, copying. No page needs it.
"use strict";
(() => {
  const root = document.documentElement;
  const find = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // ---- times -------------------------------------------------------------------------------
  const UNITS = [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"], [Infinity, 86400, "d"]];

  function ago(seconds) {
    if (seconds < 1) return "now";
    const [, size, unit] = UNITS.find(([limit]) => seconds < limit);
    return `${Math.round(seconds / size)} ${unit} ago`;
  }

  function tellTimes() {
    for (const time of all("time[data-ago]")) {
      time.textContent = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
    }
  }

  // ---- theme -------------------------------------------------------------------------------
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches);

  function nameTheme() {
    const button = find("#theme");
    button.hidden = false;
    find("#theme-word").textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", isDark() ? "Use the light theme" : "Use the dark theme");
  }

  function turnTheme() {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("ingot-theme", root.dataset.theme);
    } catch {
      // storage may be forbidden: it lasts for this page
    }
    nameTheme();
    drawAll();
  }

  // ---- figures -----------------------------------------------------------------------------
  function figure(value, unit) {
    if (value === null || value === undefined) return "\u2013";
    if (unit === "ms") {
      if (value < 0.1) return `${+(value * 1000).toPrecision(3)} us`;
      return value < 1000 ? `${+value.toPrecision(3)} ms` : `${+(value / 1000).toPrecision(3)} s`;
    }
    const text = value >= 1000 ? `${+(value / 1000).toPrecision(3)} k` : `${+value.toPrecision(3)}`;
    return `${text} ${unit}`.trim();
  }

  // ---- charts ------------------------------------------------------------------------------
  const HOUR = 3600;
  const charts = new Map();
  const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];
  const DASHES = [[], [5, 3], [2, 3], []];

  function clock(seconds, isFine) {
    const parts = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if (isFine) parts.second = "2-digit";
    return new Date(seconds * 1000).toLocaleTimeString([], parts);
  }

  function colour(name) {
    const probe = document.createElement("span");
    probe.className = `ink-${name}`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function options(chart, width, height) {
    const line = colour("line"), muted = colour("muted");
    const isLatency = chart.unit === "ms"; // a median and its tail fit one axis only as logarithms
    const isCount = chart.unit === "" || chart.unit === "jobs";
    const fromZero = (_u, _low, top) => [0, top > 0 ? top * 1.08 : 1];
    // with one point alone uPlot would show a day
    const span = (_u, first, last) => (chart.times.length === 1 ? [first - 60, first + 1] : [first, last]);
    const font = "11.5px system-ui, sans-serif";
    const isDecade = (mark) => Math.abs(Math.log10(mark) - Math.round(Math.log10(mark))) < 1e-6;
    const decades = (_u, marks) => marks.map((mark) => (isDecade(mark) ? mark : null));
    const grid = { stroke: line, width: 1, ...(isLatency && { filter: decades }) };
    const axis = { stroke: muted, font, ticks: { show: false }, grid };
    return {
      width,
      height,
      cursor: { points: { size: 6 }, drag: { x: false, y: false }, sync: { key: "page" } },
      legend: { show: false },
      padding: [8, 18, 0, 0],
      scales: { x: { time: true, range: span }, y: isLatency ? { distr: 3 } : { range: fromZero } },
      axes: [
        { ...axis, grid: { show: false }, space: 74, size: 26,
          values: (_u, marks) => marks.map((mark) => clock(mark, marks[1] - marks[0] < 60)) },
        { ...axis, size: 58, space: 36, ...(isCount && { incrs: WHOLE }),
          values: (_u, marks) => marks.map(
            (mark) => (mark === null ? null : figure(mark, isLatency ? "ms" : ""))) },
      ],
      series: [{}, ...chart.lines.map((one, index) => ({
        label: one.label,
        stroke: colour(index + 1),
        width: 1.75,
        dash: DASHES[index],
        points: { show: () => chart.times.length === 1 },
        spanGaps: false,
        paths: chart.is_stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        fill: index === 0 && chart.lines.length === 1
          ? colour(1).replace("rgb(", "rgba(").replace(")", ", 0.10)") : undefined,
      }))],
      hooks: { setCursor: [(plot) => tellKeys(chart, plot.cursor.idx)] },
    };
  }

  function tellKeys(chart, index) {
    const at = index === null || index === undefined ? chart.times.length - 1 : index;
    for (const [number, line] of chart.lines.entries()) {
      const key = find(`[data-line="${number}"]`, chart.place);
      if (key) key.textContent = figure(line.values[at], chart.unit);
    }
  }

  function draw(chart) {
    const place = find(".plot", chart.place);
    if (!chart.times.length || typeof uPlot === "undefined") return;
    const style = getComputedStyle(place);
    const [width, height] = [place.clientWidth, parseFloat(style.height)];
    const data = [chart.times, ...chart.lines.map((line) => line.values)];
    chart.plot?.destroy();
    place.replaceChildren();
    chart.plot = new uPlot(options(chart, width, height), data, place);
    chart.width = width;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${find("h3", chart.place).textContent} over the last hour`);
    tellKeys(chart, null);
  }

  function drawAll() {
    charts.forEach(draw);
  }

  function append(news) {
    for (const part of news) {
      const chart = charts.get(part.id);
      if (!chart) continue;
      const last = chart.times.at(-1) ?? 0;
      const from = part.times.findIndex((time) => time > last);
      if (from < 0) continue;
      chart.times.push(...part.times.slice(from));
      const old = chart.times.findIndex((time) => time > chart.times.at(-1) - HOUR);
      chart.times.splice(0, old);
      chart.lines.forEach((line, index) => {
        line.values.push(...part.lines[index].values.slice(from));
        line.values.splice(0, old);
      });
      if (chart.plot) {
        chart.plot.setData([chart.times, ...chart.lines.map((line) => line.values)]);
        if (chart.plot.cursor.idx === null || chart.plot.cursor.left < 0) tellKeys(chart, null);
      } else {
        draw(chart);
      }
    }
  }

  async function loadCharts() {
    if (!find("[data-chart]")) return;
    const answer = await fetch(find(".foot a").href, { headers: { accept: "application/json" } });
    if (!answer.ok) return;
    for (const chart of (await answer.json()).charts) {
      chart.place = find(`[data-chart="${CSS.escape(chart.id)}"]`);
      if (!chart.place) continue;
      charts.set(chart.id, chart);
      draw(chart);
    }
    new ResizeObserver(() => {
      for (const chart of charts.values()) {
        const width = find(".plot", chart.place).clientWidth;
        if (chart.plot && width !== chart.width) {
          chart.width = width;
          chart.plot.setSize({ width, height: chart.plot.height });
        }
      }
    }).observe(find("#charts"));
  }

  // ---- what is live ------------------------------------------------------------------------
  let said = find("[data-say]")?.textContent;

  function sayNews() {
    const words = find("[data-say]")?.textContent;
    if (words && words !== said) {
      said = words;
      find("#said").textContent = words;
    }
  }

  function pulse(isOn, words) {
    const place = find("#pulse");
    if (!place) return;
    place.hidden = false;
    place.classList.toggle("on", isOn);
    find("#pulse-word").textContent = words;
  }

  document.addEventListener("charts", (event) => append(JSON.parse(event.detail.data)));
  document.addEventListener("over", () => location.reload());
  document.addEventListener("htmx:sse:after:connection", () => pulse(true, "live"));
  document.addEventListener("htmx:sse:before:connection", () => pulse(false, "connecting"));
  for (const name of ["htmx:error", "htmx:response:error", "htmx:sse:error"]) {
    document.addEventListener(name, () => pulse(false, "not connected"));
  }
  document.addEventListener("htmx:sse:close", () => pulse(false, "not connected"));
  document.addEventListener("htmx:sse:after:message", () => {
    tellTimes();
    sayNews();
    offerCopies();
  });

  // ---- copying -----------------------------------------------------------------------------
  function offerCopies() {
    if (!navigator.clipboard) return;
    for (const button of all("[data-copy]")) button.hidden = false;
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(find("code", button.parentElement).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  pulse(false, "connecting");
  find("#theme").addEventListener("click", turnTheme);
  systemIsDark.addEventListener("change", () => { nameTheme(); drawAll(); });
  nameTheme();
  offerCopies();
  tellTimes();
  setInterval(tellTimes, 5000);
  loadCharts();
})();
