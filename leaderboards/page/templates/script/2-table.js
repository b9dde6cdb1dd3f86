// The table: sorted, filtered, with intervals and possible ranks.
const MOST_COLUMNS = 8;
const shownColumns = (suite, now) => {
  const all = suite.columns.map((_, index) => index);
  if (now.cols) return now.cols.split(",").map(Number).filter((index) => index in suite.columns);
  // The first columns are the most telling, but a reward belongs on every first screen.
  const rewards = all.filter((index) => suite.columns[index].rewarded).slice(0, 3);
  const others = all.filter((index) => !rewards.includes(index)).slice(0, MOST_COLUMNS - rewards.length);
  return [...others, ...rewards].sort((a, b) => a - b);
};
const scales = new Map();
const scaleOf = (suite, index) => {
  const key = `${suite.stem}/${index}`;
  if (!scales.has(key)) {
    const ends = suite.models.flatMap((m) => { const c = m.cells[index]; return c ? [c.v, c.lo, c.hi].filter((x) => x !== undefined) : []; });
    scales.set(key, [Math.min(...ends), Math.max(...ends)]);
  }
  return scales.get(key);
};
const place = ([low, high], value) => `${(high > low ? (100 * (value - low)) / (high - low) : 50).toFixed(1)}%`;
const bandText = ([first, last]) => (first === last ? `${first}` : `${first}–${last}`);

const cellOf = (suite, index, cell) => {
  if (!cell) return h("td", { class: "num none" }, "–");
  if (cell.v === undefined) return h("td", { class: "num none" }, h("span", { class: "status", title: cell.why }, cell.status), h("span", { class: "visually-hidden" }, `: ${cell.why}`));
  const scale = scaleOf(suite, index);
  const track = h("span", { class: "track", "aria-hidden": "true" });
  if (cell.lo !== undefined) {
    const bar = h("i");
    bar.style.left = place(scale, cell.lo);
    bar.style.width = `calc(${place(scale, cell.hi)} - ${place(scale, cell.lo)})`;
    track.append(bar);
  }
  const mark = h("b");
  mark.style.left = place(scale, cell.v);
  track.append(mark);
  return h("td", { class: cell.t ? "num trained" : "num" },
    h("span", { class: "value" }, number(cell.v), cell.t ? h("span", { class: "dagger", title: "trained on this metric" }, "†") : null),
    cell.band ? h("span", { class: cell.band[0] === 1 ? "band first" : "band" }, h("span", { class: "visually-hidden" }, "possible ranks "), bandText(cell.band)) : null,
    track,
    h("span", { class: "ci" }, cell.lo !== undefined ? `${number(cell.lo)} to ${number(cell.hi)}` : "no interval"));
};

const VERDICTS = { gamed: "bad", suspected: "warn", "carried over": "good", "not carried over": "warn", "no gain": "muted", "cannot tell": "muted" };
const verdictOf = (model) => (model.verdict ? h("span", { class: `verdict-chip ${VERDICTS[model.verdict] ?? "muted"}` }, `reward: ${model.verdict}`) : null);
const nameOf = (model) => [
  h("a", { class: "name", href: state.address({ view: "model", model: model.stem }) }, h("bdi", {}, model.name)),
  h("span", { class: "method" }, model.method || "not trained here", verdictOf(model) ? " " : null, verdictOf(model)),
];

const passes = (suite, now) => (model) => {
  const wanted = (now.q ?? "").toLowerCase();
  return (!wanted || `${model.name} ${model.method} ${model.base}`.toLowerCase().includes(wanted))
    && (!now.method || (model.method || "none") === now.method)
    && (!now.nfe || (model.nfe !== null && model.nfe <= Number(now.nfe)))
    && (!now.verdict || (now.verdict === "held" ? model.verdict !== "gamed" && model.verdict !== "suspected" : model.verdict === now.verdict));
};

const sorted = (suite, now, models) => {
  if (!now.sort) return models; // as built: best first
  const down = now.sort.startsWith("-"), key = now.sort.replace("-", "");
  const value = (m) => (key === "name" ? m.name : key === "nfe" ? m.nfe : m.cells[key]?.v);
  return [...models].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const [noX, noY] = [x === undefined || x === null, y === undefined || y === null];
    if (noX || noY) return noX - noY; // what has no value stays at the end
    return (down ? -1 : 1) * (key === "name" ? x.localeCompare(y) : x - y);
  });
};

const sortable = (now, key, first, label, attributes) => {
  const current = now.sort === key ? "ascending" : now.sort === `-${key}` ? "descending" : null;
  const next = current === null ? first : current === "ascending" ? `-${key}` : key;
  return h("th", { scope: "col", "aria-sort": current, ...attributes },
    h("button", { type: "button", "data-sort": key, onclick: () => focusAfter(state.set({ sort: next }), `[data-sort="${key}"]`) },
      label, h("span", { class: "sorter", "aria-hidden": "true" }, current === "ascending" ? "▲" : current === "descending" ? "▼" : "⇅")));
};

fewstep.views.table = {
  title: "Leaderboard",
  tools(suite, now) {
    const methods = [...new Set(suite.models.map((m) => m.method || "none"))].sort();
    const budgets = [...new Set(suite.models.map((m) => m.nfe).filter((x) => x !== null))].sort((a, b) => a - b);
    const verdicts = [...new Set(suite.models.map((m) => m.verdict).filter(Boolean))].sort();
    const search = h("label", { class: "field grow" }, h("span", {}, "Search"),
      h("input", { type: "search", value: now.q ?? "", placeholder: "model, method or base", oninput: (event) => state.set({ q: event.target.value }) }));
    const picked = new Set(shownColumns(suite, now));
    const pick = h("details", { class: "picker" }, h("summary", {}, `Metrics: ${picked.size} of ${suite.columns.length}`),
      h("div", { class: "choices" }, suite.columns.map((column, index) => h("label", {},
        h("input", { type: "checkbox", checked: picked.has(index), onchange: (event) => {
          if (event.target.checked) picked.add(index); else picked.delete(index);
          event.target.closest("details").firstChild.textContent = `Metrics: ${picked.size} of ${suite.columns.length}`;
          state.set({ cols: [...picked].sort((a, b) => a - b).join(",") });
        } }), " ", column.title, " ", h("small", {}, column.rewarded ? "a reward of some model" : column.diversity ? "diversity" : "held out")))));
    return [search,
      methods.length > 1 ? select("Method", now.method ?? "", [["", "all"], ...methods.map((m) => [m, m === "none" ? "not trained here" : m])], (method) => state.set({ method })) : null,
      budgets.length > 1 ? select("Passes at most", now.nfe ?? "", [["", "any"], ...budgets.map((n) => [n, n])], (nfe) => state.set({ nfe })) : null,
      verdicts.length ? select("Reward", now.verdict ?? "", [["", "all"], ["held", "hide gamed"], ...verdicts.map((v) => [v, v])], (verdict) => state.set({ verdict })) : null,
      pick];
  },
  show(suite, now) {
    const columns = shownColumns(suite, now);
    const fits = suite.models.filter(passes(suite, now));
    const picked = new Set(chosen(suite, now).map((m) => m.stem));
    say(`${fits.length} of ${suite.models.length} models`);
    const row = (model) => h("tr", {},
      h("td", { class: "pick" }, h("input", { type: "checkbox", "aria-label": `Pick ${model.name}`, checked: picked.has(model.stem), onchange: (event) => {
        if (event.target.checked) picked.add(model.stem); else picked.delete(model.stem);
        history.replaceState(null, "", state.address({ models: [...picked].join(",") }));
        hint.replaceChildren(...hints());
      } })),
      h("th", { scope: "row" }, nameOf(model), model.status !== "ranked" ? h("span", { class: "why" }, model.why) : null),
      h("td", { class: "num nfe" }, model.nfe ?? "–"),
      columns.map((index) => cellOf(suite, index, model.cells[index])));
    const body = (title, status) => {
      const models = sorted(suite, now, fits.filter((m) => status.includes(m.status)));
      if (!models.length) return null;
      return h("tbody", {}, title ? h("tr", {}, h("th", { class: "part", scope: "rowgroup", colspan: columns.length + 3 }, title)) : null, models.map(row));
    };
    const hints = () => (picked.size
      ? [`${picked.size} picked: `, h("a", { href: state.address({ view: "pictures" }) }, "pictures side by side"), " · ", h("a", { href: state.address({ view: "prompts" }) }, "prompt by prompt"), " · ", h("code", {}, `python -m leaderboards compare ${[...picked].slice(0, 2).map((stem) => `${suite.stem}/${stem}`).join(" ")}`)]
      : ["Pick models to see their pictures and prompts side by side."]);
    const hint = h("p", { class: "quiet" }, hints());
    return [
      h("ul", { class: "legend" },
        h("li", {}, h("span", { class: "band first" }, "1–2"), " possible ranks: where two overlap, the models cannot be told apart"),
        h("li", {}, "Bars: 95 % interval, prompts drawn again"),
        h("li", {}, h("span", { class: "dagger" }, "†"), " trained on this metric; all others are held out")),
      fits.length ? scroll(`Models of ${suite.suite}`, h("table", { class: "board" },
        h("caption", { class: "visually-hidden" }, `${fits.length} models of suite ${suite.suite}`),
        h("thead", {}, h("tr", {}, h("td", { class: "pick" }), sortable(now, "name", "name", "Model", {}), sortable(now, "nfe", "nfe", "NFE", { class: "num nfe", title: "network passes per image" }),
          columns.map((index) => { const column = suite.columns[index]; return sortable(now, String(index), column.higher ? `-${index}` : String(index), [column.title, " ", arrow(column)], { class: "num", title: column.identity }); }))),
        body(null, ["ranked"]), body("Not ranked", ["partial", "synthetic"]), body("Reported by papers, not measured here", ["reported"])))
        : h("p", { class: "empty" }, "No model fits. ", h("a", { href: state.address({ q: "", method: "", nfe: "", verdict: "" }) }, "Show all")),
      hint];
  },
};
