// What of the papers is here: every method they name, with the reason where it is not.
const STATES = { implemented: "good", "reported only": "warn", "not implemented": "muted" };
fewstep.views.methods = {
  title: "Methods",
  everywhere: true,
  async show(_, now) {
    const all = await fewstep.load("methods"), wanted = now.state ?? "", kinds = [...new Set(all.map((m) => m.kind))];
    const shown = all.filter((m) => !wanted || m.state === wanted);
    say(`${shown.length} of ${all.length} methods`);
    return [
      h("h2", {}, "What of the papers is here"),
      h("p", { class: "quiet" }, "Every method that the papers name. Reported only: a paper's table has its numbers, nothing here trains or measures it."),
      h("div", { class: "tools" }, select("State", wanted, [["", "all"], ...Object.keys(STATES).map((s) => [s, `${s} (${all.filter((m) => m.state === s).length})`])], (to) => state.set({ state: to }))),
      scroll("Methods", h("table", { class: "methods" },
        h("thead", {}, h("tr", {}, heading("Method"), heading("State"), heading("Where, or why not"), heading("Named by"))),
        kinds.map((kind) => [kind, shown.filter((m) => m.kind === kind)]).filter(([, rows]) => rows.length).map(([kind, rows]) => h("tbody", {},
          h("tr", {}, h("th", { class: "part", scope: "rowgroup", colspan: 4 }, kind)),
          rows.map((m) => h("tr", {}, h("th", { scope: "row" }, m.name), h("td", {}, h("span", { class: `verdict-chip ${STATES[m.state]}` }, m.state)),
            h("td", {}, m.state === "implemented" ? m.files.map((f, i) => [i ? ", " : "", h("code", {}, f)]) : m.why), h("td", {}, m.named_by.join(", ")))))))),
    ];
  },
};
