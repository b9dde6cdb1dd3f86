// The papers' own tables: as printed, never ranked with measured rows, with what differs from our protocol.
const LIKENESS = { same: ["good", "same"], differs: ["bad", "differs"], unknown: ["muted", "unknown"] };
fewstep.views.papers = {
  title: "Papers",
  everywhere: true,
  async show(_, now) {
    const tables = await fewstep.load("papers"), table = tables.find((t) => t.id === now.paper) ?? tables.find((t) => t.id === "dmdr-v2-table2") ?? tables[0];
    const groups = [...new Set(table.rows.map((r) => r.group))], sort = now.psort ?? "", key = Math.abs(Number(sort)) - 1;
    const order = (rows) => (sort === "" ? rows : [...rows].sort((a, b) => { const [x, y] = [a.values[key], b.values[key]]; return x === null || y === null ? (x === null) - (y === null) : (Number(sort) < 0 ? -1 : 1) * (x - y); }));
    const head = (c, i) => {
      const current = sort === String(i + 1) ? "ascending" : sort === String(-i - 1) ? "descending" : null;
      return h("th", { scope: "col", class: "num", "aria-sort": current, title: c.unit }, h("button", { type: "button", "data-sort": `p${i}`, onclick: () => focusAfter(state.set({ psort: current === "descending" ? i + 1 : -(i + 1) }), `[data-sort="p${i}"]`) }, `${c.title} ${c.arrow}`, h("span", { class: "sorter", "aria-hidden": "true" }, current === "ascending" ? "▲" : current === "descending" ? "▼" : "⇅")));
    };
    const row = (r) => h("tr", { class: r.kind === "ours" ? "theirs" : null }, h("th", { scope: "row" }, h("bdi", {}, r.name), r.notes || r.confidence !== "high" ? h("details", { class: "note" }, h("summary", {}, r.confidence === "high" ? "note" : `${r.confidence} confidence`), r.notes) : null), r.cells.map((c) => h("td", { class: "num" }, c)));
    return [
      h("h2", {}, "What the papers report"),
      h("p", { class: "quiet" }, "As printed, not measured here, and never ranked with measured rows. Numbers of different papers under one name are often different measurements: see the match below each table."),
      h("div", { class: "tools" }, select("Table", table.id, tables.map((t) => [t.id, `${t.paper.toUpperCase()}, Table ${t.number}`]), (paper) => state.set({ paper, psort: "" }))),
      h("p", { class: "long" }, h("strong", {}, table.citation), `, Table ${table.number}${table.inferred ? " (number inferred from the order of tables)" : ""}. ${table.caption}`),
      scroll(`Table ${table.number} of ${table.paper}`, h("table", { class: "paper" },
        h("thead", {}, h("tr", {}, heading("System"), table.columns.map(head))),
        groups.map((g) => h("tbody", {}, g ? h("tr", {}, h("th", { class: "part", scope: "rowgroup", colspan: table.columns.length + 1 }, g)) : null, order(table.rows.filter((r) => r.group === g)).map(row))))),
      table.notes ? h("p", { class: "quiet" }, table.notes) : null,
      h("h3", {}, "Does its protocol match ours?"),
      h("p", { class: "quiet" }, table.measured ? `Ours: suite ${table.suite}, ${table.measured} results.` : `Nobody has run suite ${table.suite} here yet; what is not measured cannot match.`),
      scroll("Protocol match", h("table", { class: "match" }, h("thead", {}, h("tr", {}, heading("Aspect"), heading("Paper"), heading("Ours"), heading("Match"))),
        h("tbody", {}, table.match.map((m) => h("tr", {}, h("th", { scope: "row" }, m.name), h("td", {}, m.paper), h("td", {}, m.ours), h("td", {}, h("span", { class: `verdict-chip ${LIKENESS[m.verdict][0]}` }, LIKENESS[m.verdict][1]))))))),
      h("p", { class: "quiet" }, "For a paper of your own: ", h("code", {}, `python -m leaderboards table ${table.id} --format latex`)),
    ];
  },
};
