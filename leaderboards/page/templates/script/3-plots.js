// Plots: Vega-Lite, loaded when a plot is looked at, in the colours of the style sheet.
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const theme = () => ({
  background: "transparent", font: getComputedStyle(document.body).fontFamily,
  view: { stroke: "transparent" },
  axis: { labelColor: colour("muted"), titleColor: colour("muted"), gridColor: colour("line"), domainColor: colour("line"), tickColor: colour("line"), labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: 500, gridOpacity: 0.8 },
  legend: { labelColor: colour("ink"), titleColor: colour("muted"), labelFontSize: 12.5, titleFontSize: 12, orient: "bottom", columns: 4, symbolStrokeWidth: 2 },
  header: { labelColor: colour("ink"), labelFontSize: 12.5, labelFontWeight: 600, title: null },
  range: { category: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => colour(`s${i}`)) },
});
const plot = (spec, label) => {
  const box = h("div", { class: "plot", role: "img", "aria-label": `${label}; the numbers are in the table` });
  fewstep.load("plots")
    .then(() => window.vegaEmbed(box, { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", autosize: { type: "fit-x", contains: "padding" }, config: theme(), ...spec }, { ast: true, actions: false, renderer: "svg", mode: "vega-lite" }))
    .catch((error) => box.replaceChildren(failure(error)));
  return box;
};

// Pareto front: best y at no more x (or at no less, where more of x is better too).
const front = (points, moreIsBetter, higher) => {
  const ordered = [...points].sort((a, b) => (moreIsBetter ? b.x - a.x : a.x - b.x) || (higher ? b.y - a.y : a.y - b.y));
  let best = null;
  return ordered.filter((point) => {
    if (best !== null && !(higher ? point.y > best : point.y < best)) return false;
    best = point.y;
    return true;
  });
};
// Models of equal cost would hide each other: they stand side by side around it, best first, as `at`.
const spread = (points, log, higher) => {
  const on = (x) => (log ? Math.log2(x) : x), off = (x) => (log ? 2 ** x : x);
  const places = [...new Set(points.map((p) => on(p.x)))].sort((a, b) => a - b);
  const span = places.at(-1) - places[0] || (log ? 2 : Math.abs(places[0]) || 1);
  const gap = Math.min(span, ...places.slice(1).map((x, i) => x - places[i]));
  for (const x of places) {
    const here = points.filter((p) => on(p.x) === x).sort((a, b) => (higher ? b.y - a.y : a.y - b.y));
    const step = Math.min(0.04 * span, (0.7 * gap) / here.length);
    here.forEach((p, i) => { p.at = off(x + (i - (here.length - 1) / 2) * step); });
  }
  const ends = points.map((p) => on(p.at)), middle = (Math.min(...ends) + Math.max(...ends)) / 2;
  for (const p of points) p.side = on(p.at) > middle ? "right" : "left"; // its label turns to the middle
  return (p) => (on(p.at) - Math.min(...ends)) / (Math.max(...ends) - Math.min(...ends) || 1);
};
// Labels that would lie on an earlier one are left to the tooltip and the table below.
const thin = (points, share, height) => {
  const ends = points.flatMap((p) => [p.lo ?? p.y, p.hi ?? p.y]), low = Math.min(...ends), high = Math.max(...ends);
  const kept = [];
  for (const p of points.filter((one) => one.label)) {
    const x = share(p) * (room() - 150), y = ((high - p.y) / (high - low || 1)) * height + (p.side === "left" ? 0 : 23), w = 7 * p.label.length + 9;
    const box = p.side === "left" ? [x, x + w, y] : [x - w, x, y];
    if (kept.some(([from, to, at]) => box[0] < to && from < box[1] && Math.abs(at - y) < 14)) p.label = "";
    else kept.push(box);
  }
};
const COSTS = [["nfe", "network passes per image (NFE)"], ["seconds", "seconds per image, as measured once"], ["memory", "peak memory in MiB, as measured once"], ["parameters", "parameters"]];
const costOf = (model, key) => (key === "nfe" ? model.nfe : key === "parameters" ? model.parameters : key === "seconds" ? model.measured.seconds_per_image : model.measured.peak_memory_mib);

fewstep.views.tradeoffs = {
  title: "Trade-offs",
  tools(suite, now) {
    const axes = [...COSTS.filter(([key]) => suite.models.some((m) => costOf(m, key) != null)), ...suite.columns.map((c, index) => [index, c.title])];
    return [
      select("Quality", now.metric ?? 0, suite.columns.map((c, index) => [index, c.title]), (metric) => state.set({ metric })),
      select("Against", now.x ?? axes[0][0], axes, (x) => state.set({ x })),
    ];
  },
  show(suite, now) {
    const index = Number(now.metric ?? 0), column = suite.columns[index], key = now.x ?? "nfe";
    const cost = COSTS.find(([name]) => name === key), other = cost ? null : suite.columns[Number(key)];
    if (!column || (!cost && !other)) return [h("p", { class: "empty" }, "Nothing to draw.")];
    const points = suite.models.filter((m) => m.status === "ranked").map((m) => ({
      model: m.name, method: m.method || "not trained here", x: cost ? costOf(m, key) : m.cells[key]?.v, y: m.cells[index]?.v,
      lo: m.cells[index]?.lo, hi: m.cells[index]?.hi, reward: m.cells[index]?.t ? "trained on this metric" : "held out",
    })).filter((p) => p.x != null && p.y !== undefined);
    if (!points.length) return [h("p", { class: "empty" }, "No ranked model has both numbers.")];
    const share = spread(points, key === "nfe", column.higher);
    const best = front(points, Boolean(other?.higher), column.higher), onFront = new Set(best);
    for (const p of points) p.label = points.length <= 14 || onFront.has(p) ? p.model.length > 28 ? `${p.model.slice(0, 27)}…` : p.model : "";
    thin([...best, ...points.filter((p) => !onFront.has(p))], share, 380);
    const x = { field: "at", type: "quantitative", title: other ? `${other.title} ${other.higher ? "↑" : "↓"}` : cost[1], scale: key === "nfe" ? { type: "log", base: 2, nice: false, padding: 30 } : { zero: false, padding: 30 }, axis: { grid: false, values: key === "nfe" ? [...new Set(points.map((p) => p.x))] : undefined, format: key === "nfe" ? "d" : undefined } };
    const y = { field: "y", type: "quantitative", title: `${column.title} ${column.higher ? "↑" : "↓"}`, scale: { zero: false, padding: 14 } };
    const label = (side) => ({ data: { values: points.filter((p) => p.side === side) }, mark: { type: "text", align: side, dx: side === "left" ? 9 : -9, dy: side === "left" ? -9 : 14, fontSize: 12, color: colour("ink") }, encoding: { x, y, text: { field: "label" } } });
    const spec = { height: 420, layer: [
      { data: { values: best }, mark: { type: "line", interpolate: other?.higher ? "step-before" : "step-after", strokeDash: [5, 4], color: colour("muted"), opacity: 0.7 }, encoding: { x, y, order: { field: "at" } } },
      { data: { values: points }, mark: { type: "rule", opacity: 0.55, strokeWidth: 1.6 }, encoding: { x, y: { ...y, field: "lo" }, y2: { field: "hi" }, color: { field: "method", title: "method" } } },
      { data: { values: points }, mark: { type: "point", filled: true, size: 95, strokeWidth: 2, opacity: 1 }, encoding: { x, y, color: { field: "method", title: "method" }, shape: { field: "reward", title: "this metric", scale: { domain: ["held out", "trained on this metric"], range: ["circle", "triangle-up"] } },
        tooltip: [{ field: "model" }, { field: "y", title: column.title, format: ".3f" }, { field: "lo", title: "from", format: ".3f" }, { field: "hi", title: "to", format: ".3f" }, { field: "x", title: "against" }] } },
      label("left"), label("right"),
    ] };
    return [
      h("p", { class: "quiet" }, "Ranked models. Dashed: the Pareto front, models that no other beats in both. Bars: 95 % interval. Models of equal cost stand side by side."),
      h("figure", { class: "card" }, plot(spec, `${column.title} against ${other ? other.title : cost[1]}`)),
      h("h2", { class: "sub" }, "On the front"),
      scroll("Pareto front", h("table", {}, h("thead", {}, h("tr", {}, heading("Model"), heading(column.title, "col", { class: "num" }), heading(other ? other.title : cost[1], "col", { class: "num" }))),
        h("tbody", {}, best.map((p) => h("tr", {}, h("th", { scope: "row" }, h("bdi", {}, p.model)), h("td", { class: "num" }, number(p.y)), h("td", { class: "num" }, other ? number(p.x) : plain(p.x))))))),
    ];
  },
};

// How many small multiples stand side by side, and how wide each may be; `aside` = what an axis takes.
const room = () => document.getElementById("view").clientWidth - 40;
const across = (least, most) => Math.max(1, Math.min(most, Math.floor(room() / least)));
const wide = (columns, aside) => Math.floor(room() / columns) - aside;
const detailsOf = (suite, models) => Promise.all(models.map((m) => chunkOf(suite, m, "details")));
fewstep.views.categories = {
  title: "Categories",
  tools(suite, now) {
    return [select("Metric", now.metric ?? 0, suite.columns.map((c, index) => [index, c.title]), (metric) => state.set({ metric })),
      ...modelPicker(suite, now, (m) => m.status !== "reported", 8)];
  },
  async show(suite, now) {
    const index = Number(now.metric ?? 0), column = suite.columns[index];
    const models = company(suite, now, (m) => m.cells[index]?.v !== undefined, 8);
    const parts = (await detailsOf(suite, models)).map((d) => d.parts[index] ?? { categories: {}, splits: {} });
    const names = (kind) => [...new Set(parts.flatMap((p) => Object.keys(p[kind])))].sort();
    const rows = models.flatMap((m, i) => ["categories", "splits"].flatMap((kind) => Object.entries(parts[i][kind]).map(([name, [v, lo, hi, n]]) => ({ model: m.name, part: words(name), v, lo, hi, n }))));
    if (!rows.length) return [h("p", { class: "empty" }, `${column.title} has no categories here.`)];
    const values = rows.map((r) => r.v), scale = [Math.min(...values), Math.max(...values)];
    const cell = (part) => {
      if (!part) return h("td", { class: "num none" }, "–");
      const share = scale[1] > scale[0] ? (part[0] - scale[0]) / (scale[1] - scale[0]) : 0.5;
      const td = h("td", { class: "num heat", title: `${part[3]} prompts${part[1] === null ? "" : `; 95 % ${number(part[1])} to ${number(part[2])}`}` }, number(part[0]));
      td.style.setProperty("--shade", `${Math.round(100 * (column.higher ? share : 1 - share))}%`);
      return td;
    };
    const told = rows.some((r) => r.lo !== null);
    const head = [...names("categories").map((n) => [n, "categories"]), ...names("splits").map((n) => [n, "splits"])];
    const spec = { data: { values: rows }, columns: across(250, 4), facet: { field: "part", type: "nominal" }, width: undefined, autosize: undefined,
      spec: { width: wide(across(250, 4), 34), height: { step: 22 }, layer: [
        ...(told ? [{ mark: { type: "rule", strokeWidth: 2, opacity: 0.6 }, encoding: { x: { field: "lo", type: "quantitative" }, x2: { field: "hi" }, y: { field: "model", sort: null, title: null, axis: { labels: false, ticks: false } }, color: { field: "model", sort: null, title: null } } }] : []),
        { mark: { type: "point", filled: true, size: 60, opacity: 1 }, encoding: { x: { field: "v", type: "quantitative", title: null, scale: { zero: false } }, y: { field: "model", sort: null }, color: { field: "model", sort: null, title: null }, tooltip: [{ field: "model" }, { field: "part" }, { field: "v", format: ".3f" }, { field: "lo", format: ".3f" }, { field: "hi", format: ".3f" }, { field: "n", title: "prompts" }] } },
      ] } };
    return [
      h("p", { class: "quiet" }, "Unseen: combinations held out of training. The stronger the colour, the better within this table."),
      scroll(`${column.title} by category`, h("table", { class: "heats" },
        h("thead", {}, h("tr", {}, heading("Model"), head.map(([n]) => heading(words(n), "col", { class: "num" })))),
        h("tbody", {}, models.map((m, i) => h("tr", {}, h("th", { scope: "row" }, h("bdi", {}, m.name)), head.map(([n, kind]) => cell(parts[i][kind][n]))))))),
      h("figure", { class: "card" }, plot(spec, `${column.title} by category, with intervals`)),
    ];
  },
};
