// Studies: claims of papers put to the test, and speed as ratios measured side by side.
const OUTCOME = { holds: "good", "does not hold": "bad", undecided: "muted", "not judged": "muted" };
const signed = (x) => `${x > 0 ? "+" : ""}${number(x)}`;
// Where an interval stands on a line that reaches as far as the widest end, zero (or one) in the middle.
const balance = (value, low, high, reach, middle = 0) => {
  const at = (x) => `${(50 + (50 * (x - middle)) / (reach || 1)).toFixed(1)}%`;
  const bar = h("i"), mark = h("b");
  bar.style.left = at(low ?? value);
  bar.style.width = `calc(${at(high ?? value)} - ${at(low ?? value)})`;
  mark.style.left = at(value);
  return h("span", { class: "balance", "aria-hidden": "true" }, bar, mark);
};
// A figure as leaderboards/study_figure.py draws it, in the page's width and colours.
const figureOf = ({ title, names, spec }) => {
  const card = room() / across(494, 3) - 120, longest = Math.max(...names.map((name) => name.length)), own = theme();
  const columns = Math.max(1, Math.floor(card / (7.2 * longest + 30)));
  const config = { ...own, numberFormat: ",.4~f", legend: { ...own.legend, columns, labelLimit: card - 20, symbolOpacity: 1 }, axisY: { labelLimit: card / 2 }, mark: { color: colour("s1") }, rule: { color: colour("s1") } };
  const layer = spec.layer.map(({ mark, encoding }) => {
    const dash = encoding.strokeDash, shown = ["name", ...(dash ? ["measure"] : []), "x", "y", ...(spec.layer.length > 1 ? ["low", "high"] : [])];
    return { mark, encoding: { ...encoding, ...(dash ? { strokeDash: { ...dash, legend: { ...dash.legend, symbolStrokeColor: colour("ink") } } } : {}), tooltip: shown.map((field) => ({ field })) } };
  });
  return h("figure", {}, h("figcaption", { class: "quiet" }, title), plot({ height: 220, ...spec, layer, config }, title));
};
const claimOf = (claim) => {
  const e = claim.effect, reach = e ? Math.max(Math.abs(e.low), Math.abs(e.high), e.smallest) : 1;
  return h("article", { class: "card claim", id: `claim-${claim.id}` },
    h("h4", {}, h("span", { class: `verdict-chip ${OUTCOME[claim.verdict]}` }, claim.verdict), " ", claim.remark ? h("span", { class: "quiet" }, `${claim.remark}: `) : null, claim.statement),
    h("p", { class: "quiet" }, `${claim.source.paper}, ${claim.source.where}`),
    h("p", {}, h("strong", {}, h("bdi", {}, claim.arms[0])), " minus ", h("strong", {}, h("bdi", {}, claim.arms[1])), claim.at === "equal updates" ? " (at equal updates)" : "", e ? [`: ${e.measure} `, h("strong", {}, signed(e.value)), `${e.unit ? ` ${e.unit}` : ""}, 95 % ${number(e.low)} to ${number(e.high)}; claimed to lie ${e.claimed} 0, and to matter from ${number(e.smallest)}.`] : "."),
    e ? balance(e.value, e.low, e.high, reach) : null,
    claim.figure ? figureOf(claim.figure) : null,
    h("p", { class: "quiet" }, `${claim.seeds.length}${claim.seeds.length < claim.seeds_needed ? ` of ${claim.seeds_needed}` : ""} seeds of training`, claim.prompts ? `, ${claim.prompts} prompts × ${claim.images_per_prompt} pictures` : e ? ", the interval covers these alone" : "", claim.iterations.length ? `, ${claim.iterations.map(plain).join(" and ")} iterations` : "", claim.power === null ? "; power unknown" : `; power ${Math.round(100 * claim.power)} % for a difference that matters`, claim.detectable === null ? "" : `, 80 % from about ${number(claim.detectable)} on`, claim.headline && claim.p !== null ? `; p ${number(claim.p)}${claim.p_holm === null ? "" : `, by Holm ${number(claim.p_holm)}`}` : "", claim.notes ? `. ${claim.notes}` : "."));
};
const levelOf = (level) => (level === null ? "–" : level.low === null ? level.value.toFixed(3) : `${level.value.toFixed(3)} ± ${((level.high - level.low) / 2).toFixed(3)}`);
const levelsOf = (study) => scroll(`Levels of the arms: ${study.title}`, h("table", {},
  h("thead", {}, h("tr", {}, heading("Arm"), [...study.measures, "seeds", "network passes", "iterations"].map((title) => heading(title, "col", { class: "num" })))),
  h("tbody", {}, study.arms.map((arm) => h("tr", {}, h("th", { scope: "row" }, h("bdi", {}, arm.title)), arm.levels.map((level) => h("td", { class: "num" }, levelOf(level))),
    [arm.seeds, arm.network_passes, arm.iterations].map((count) => h("td", { class: "num" }, arm.seeds ? plain(count) : "–")))))));
const studyHead = (study) => [h("h2", {}, study.title), h("p", { class: "quiet" }, `${study.about} Made by `, h("code", {}, study.command), ".")];

fewstep.views.claims = {
  title: "Claims",
  everywhere: true,
  async show(_, now) {
    const { claims: studies, reading } = await fewstep.load("studies");
    if (!studies.length) return [h("h2", {}, "Claims of the papers"), h("p", { class: "empty" }, "No study has been committed yet: leaderboards/studies/ holds none.")];
    const wanted = now.verdict ?? "", chosen = ({ claims }) => claims.filter((c) => !wanted || c.verdict === wanted);
    const counts = (study) => Object.keys(OUTCOME).map((v) => [v, study.sections.flatMap(({ claims }) => claims).filter((c) => c.verdict === v).length]).filter(([, n]) => n);
    return [
      h("div", { class: "tools" }, select("Verdict", wanted, [["", "all"], ...Object.keys(OUTCOME).map((v) => [v, v])], (verdict) => state.set({ verdict }))),
      studies.map((study) => [studyHead(study),
        h("p", {}, counts(study).map(([v, n]) => [h("span", { class: `verdict-chip ${OUTCOME[v]}` }, `${v}: ${n}`), " "])),
        study.sections.filter((section) => chosen(section).length).map((section) => [h("h3", {}, section.title), h("div", { class: "cards wide" }, chosen(section).map(claimOf))]),
        wanted || !study.arms.length ? null : [h("h3", {}, "Levels of the arms"), levelsOf(study)],
        wanted || !study.changes.length ? null : [h("h3", {}, "Changes of the plan after runs were known"), h("ul", {}, study.changes.map((change) => h("li", {}, `${change.date}: ${change.what}`)))],
        wanted || !study.figures.length ? null : [h("h3", {}, "Figures"), h("div", { class: "cards wide" }, study.figures.map((figure) => h("article", { class: "card" }, figureOf(figure))))]]),
      h("p", { class: "quiet" }, reading),
    ];
  },
};

fewstep.views.speed = {
  title: "Speed",
  everywhere: true,
  async show() {
    const { speed: studies, measurements = [] } = await fewstep.load("studies");
    if (!studies.length && !measurements.length) return [h("h2", {}, "Speed"), h("p", { class: "empty" }, "No measurement has been committed yet: leaderboards/studies/ holds none.")];
    const figures = measurements.map((study) => [studyHead(study),
      scroll(study.title, h("table", {},
        h("thead", {}, h("tr", {}, heading("What"), heading("Measured", "col", { class: "num" }), heading("Beside it"), heading("Repetitions", "col", { class: "num" }), heading("Setting"), heading("Versions"))),
        h("tbody", {}, study.rows.map((r) => h("tr", {}, h("th", { scope: "row" }, r.what), h("td", { class: "num" }, `${Number(r.value.toPrecision(4))} ${r.unit}`),
          h("td", {}, r.beside.length ? r.beside.map((b) => h("div", {}, `${Number(b.value.toPrecision(4))}: ${b.what} (${b.source})`, b.notes ? h("details", { class: "note" }, h("summary", {}, "note"), b.notes) : null)) : "–"),
          h("td", { class: "num" }, r.repetitions), h("td", {}, r.setting), h("td", {}, Object.entries(r.versions).map((pair) => pair.join(" ")).join(", ")))))))]);
    return studies.map((study) => {
      const reach = Math.max(...study.rows.map((r) => Math.abs(Math.log2(r.ratio))), 1);
      return [studyHead(study),
        scroll(study.title, h("table", {},
          h("thead", {}, h("tr", {}, heading("What"), heading("Ours"), heading("Against"), heading("Ratio", "col", { class: "num" }), heading("Equal in the middle, doublings"), heading("95 % interval", "col", { class: "num" }), heading("Bar", "col", { class: "num" }), heading("Repetitions", "col", { class: "num" }), heading("Setting"))),
          h("tbody", {}, study.rows.map((r) => h("tr", {}, h("th", { scope: "row" }, r.what), h("td", {}, r.ours), h("td", {}, r.other),
            h("td", { class: `num ${r.wanted === null ? "" : r.ratio >= r.wanted ? "up" : "down"}` }, `${r.ratio.toFixed(2)} ${r.unit}`),
            h("td", {}, balance(Math.log2(r.ratio), r.low === null ? null : Math.log2(r.low), r.high === null ? null : Math.log2(r.high), reach)),
            h("td", { class: "num" }, r.low === null ? "–" : `${r.low.toFixed(2)} to ${r.high.toFixed(2)}`), h("td", { class: "num" }, r.wanted === null ? "–" : `≥ ${r.wanted}`), h("td", { class: "num" }, r.repetitions), h("td", {}, r.setting))))))];
    }).concat(figures);
  },
};
