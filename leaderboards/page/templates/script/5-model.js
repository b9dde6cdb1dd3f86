// One model: what its reward did, how it was trained, what it costs, and how to recompute it all.
const term = (name, ...told) => [h("dt", {}, name), h("dd", {}, told)];
const settings = (table) => Object.entries(table).map(([key, value]) => h("span", { class: "setting" }, h("b", {}, words(key)), " ", typeof value === "object" ? JSON.stringify(value) : String(value)));
const ROLE = { "trained on": "trained", "held out": "held", diversity: "diverse" };
const reportOf = (report) => [
  h("h3", {}, "What the reward did"),
  h("p", {}, h("span", { class: `verdict-chip ${VERDICTS[report.verdict]}` }, report.verdict), " ", report.meaning, report.against ? [", against ", h("bdi", {}, report.against)] : null, "."),
  h("ul", {}, report.reasons.map((reason) => h("li", {}, reason))),
  report.changes.length ? scroll("Changes against the baseline", h("table", {},
    h("thead", {}, h("tr", {}, heading("Metric"), heading("Role"), heading("Better by", "col", { class: "num" }), heading("95 % interval", "col", { class: "num" }), heading("p (Holm)", "col", { class: "num" }), heading("Verdict"))),
    h("tbody", {}, report.changes.map((c) => h("tr", {}, h("th", { scope: "row" }, c.title), h("td", {}, h("span", { class: `chip ${ROLE[c.role]}` }, c.role)), h("td", { class: "num" }, number(c.by)),
      h("td", { class: "num" }, c.lo === null ? "–" : `${number(c.lo)} to ${number(c.hi)}`), h("td", { class: "num" }, c.p.toFixed(4)), h("td", { class: c.moved === "rose" ? "up" : c.moved === "fell" ? "down" : "" }, c.moved)))))) : null,
];
const curvesOf = (suite, told) => {
  const rewarded = (name) => told.training.rewards.some((r) => r.split(".")[0] === name.split(".")[0]);
  const titles = Object.fromEntries(suite.columns.map((c) => [c.metric, c.title]));
  const names = Object.keys(told.training.curves).sort((a, b) => rewarded(b) - rewarded(a) || (b in titles) - (a in titles) || a.localeCompare(b)).slice(0, 12);
  if (!names.length) return [];
  const values = names.flatMap((name) => told.training.curves[name].map(([iteration, value]) => ({ name: `${titles[name] ?? name}${rewarded(name) ? " †" : ""}`, iteration, value, role: rewarded(name) ? "trained on" : name in titles ? "held out" : "log" })));
  const spec = { data: { values }, columns: across(250, 4), width: undefined, autosize: undefined, facet: { field: "name", type: "nominal", sort: names.map((n) => `${titles[n] ?? n}${rewarded(n) ? " †" : ""}`) }, resolve: { scale: { y: "independent" } },
    spec: { width: wide(across(250, 4), 72), height: 110, mark: { type: "line", strokeWidth: 2, point: { size: 22, filled: true } }, encoding: { x: { field: "iteration", type: "quantitative", title: null, axis: { tickCount: 4, grid: false } }, y: { field: "value", type: "quantitative", title: null, scale: { zero: false }, axis: { tickCount: 4 } },
      color: { field: "role", title: null, scale: { domain: ["trained on", "held out", "log"], range: [colour("trained"), colour("held-out"), colour("muted")] } }, tooltip: [{ field: "iteration" }, { field: "value", format: ".4f" }] } } };
  return [h("h3", {}, "While training"), h("p", { class: "quiet" }, "A small fixed prompt set, scored as training goes on: a trained-on curve that rises while held-out ones fall is a reward being gamed."), h("figure", { class: "card" }, plot(spec, "Training curves"))];
};

fewstep.views.model = {
  title: "Model",
  tools: (suite, now) => [select("Model", now.model ?? suite.models[0]?.stem, suite.models.map((m) => [m.stem, m.name]), (model) => state.set({ model }))],
  async show(suite, now) {
    const model = suite.models.find((m) => m.stem === now.model) ?? suite.models[0];
    const told = await chunkOf(suite, model, "details"), t = told.training;
    return [
      h("h2", { class: "long" }, h("bdi", {}, model.name)), h("p", { class: "quiet" }, model.method || "not trained here", model.base ? [", made from ", h("bdi", {}, model.base)] : null, model.why ? [" · ", model.why] : null),
      told.report ? reportOf(told.report) : null,
      t ? curvesOf(suite, told) : null,
      h("h3", {}, "All metrics"),
      scroll("All metrics", h("table", {}, h("thead", {}, h("tr", {}, heading("Metric"), heading("Task"), heading("Value", "col", { class: "num" }))),
        h("tbody", {}, suite.columns.map((c, index) => h("tr", {}, h("th", { scope: "row" }, c.title, " ", arrow(c)), h("td", {}, c.task), cellOf(suite, index, model.cells[index])))))),
      h("h3", {}, "Cost, origin, and how to recompute"),
      h("dl", {},
        term("Recompute", h("code", {}, `python -m leaderboards validate ${told.file}`)),
        term("Network passes per image", model.nfe ?? "unknown: pictures made elsewhere"),
        term("Parameters", model.parameters === null ? "unknown" : plain(model.parameters)),
        term("Weights", h("code", {}, told.weights)),
        told.source ? term("Source", told.source) : null,
        t ? [term("Trained by", `${t.method}, seed ${t.seed}, ${plain(t.passes)} network passes${t.image_free ? ", without pictures" : ""}`), term("Rewards", t.rewards.join(", ") || "none"),
          term("Training config", h("details", {}, h("summary", {}, `${Object.keys(t.config).length} entries`), h("pre", {}, h("code", {}, JSON.stringify(t.config, null, 1)))))] : null,
        told.tasks.map((task) => [
          task.status !== "ok" ? term(["Task ", h("bdi", {}, task.name)], `${task.status}: ${task.reason}`) : null,
          term(["Protocol of ", h("bdi", {}, task.name)], `${task.n_prompts} prompts of ${task.prompts}${task.n_trained ? `, ${task.n_trained} of which it was trained on` : ""}, ${task.images} images each. `, settings(task.protocol)),
          Object.entries(task.missing).map(([name, why]) => term(name, why))]),
        told.digest ? term("Evidence", `${plain(told.rows)} rows, sha256 `, h("code", {}, told.digest)) : null,
        term("Versions", settings(told.provenance)),
        Object.keys(told.measured).length ? term("Measured once", settings(told.measured)) : null),
    ];
  },
};

fewstep.views.metrics = {
  title: "Metrics",
  show: (suite) => [
    h("p", { class: "quiet" }, "Two numbers share a column only where id, version, variant, perceiver, task and weights agree. ", h("code", {}, "python -m metrics card ID"), " shows a metric's whole card."),
    h("div", { class: "cards" }, suite.columns.map((c) => h("article", { class: "card" }, h("h2", { class: "sub" }, c.title, " ", arrow(c)),
      h("p", {}, h("span", { class: `chip ${c.rewarded ? "trained" : c.diversity ? "diverse" : "held"}` }, c.rewarded ? "a reward of some model" : c.diversity ? "diversity" : "held out")),
      c.notes ? h("p", {}, c.notes.description) : null,
      h("dl", {}, term("Id", h("code", {}, c.metric)), term("Version, variant", `${c.version}, ${c.variant}`), c.perceiver ? term("Perceiver", c.perceiver) : null, term("Unit", c.unit), term("Mean over", c.aggregate), term("Task", c.task), c.weights ? term("Weights", h("code", {}, c.weights.slice(0, 16))) : null),
      Object.entries({ comparable: "When two numbers may be compared", fooled_by: "What fools it", source: "Source" }).map(([key, title]) =>
        c.notes?.[key] ? h("details", {}, h("summary", {}, title), h("p", {}, c.notes[key])) : null)))),
  ],
};
