// Pictures of the same seeds side by side, and the prompt browser over the per-image evidence.
const unpack = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const grids = new WeakMap();
const gridOf = (evidence, index) => {
  if (!evidence || !(index in evidence)) return null;
  if (!grids.has(evidence)) grids.set(evidence, {});
  return (grids.get(evidence)[index] ??= unpack(evidence[index]));
};
const judgeOf = (suite, task, evidence) => suite.columns.findIndex((c, index) => c.task === task && c.aggregate === "categories"
  && evidence.some(Boolean) && evidence.every((e) => { const g = gridOf(e, index); return !g || g.every((v) => v === 0 || v === 1 || Number.isNaN(v)); }));
const valueAt = (told, evidence, index, id, seed) => {
  const grid = gridOf(evidence, index), row = told.ids.indexOf(id), column = told.seeds.indexOf(seed);
  const value = grid && row >= 0 && column >= 0 ? grid[row * told.seeds.length + column] : NaN;
  return Number.isNaN(value) ? null : value;
};
const stem = (name) => (/^[A-Za-z0-9][A-Za-z0-9._+=,@-]{0,119}$/.test(name) && !name.endsWith(".") ? name : BOARD.stems[name] ?? name);
const promptsOf = (suite, task) => fewstep.load(`${suite.stem}/${stem(task)}.prompts`);
const evidenceOf = (suite, models) => Promise.all(models.map((m) => (m.evidence ? chunkOf(suite, m, "evidence") : null)));

// What metrics saw in a picture: boxes over it (of one metric at a time), reasons, questions with their answers.
const titleOf = (suite, task, metric) => suite.columns.find((c) => c.task === task && c.metric === metric)?.title ?? metric;
const boxesOf = (boxes) => boxes.map(([label, left, top, width, height]) => {
  // A label stands above its box, inside it where there is no room above, and hangs to the left from a box on the right.
  const box = h("span", { class: `box${top < 9 ? " inside" : ""}${left > 55 ? " leftward" : ""}` }, h("bdi", {}, label));
  for (const [side, share] of Object.entries({ left, top, width, height })) box.style[side] = `${share}%`;
  return box;
});
const seenOf = (title, { boxes, weaker, reasons, table }) => [
  h("h3", {}, title),
  reasons.length ? h("ul", { class: "reasons" }, reasons.map((reason) => h("li", {}, reason))) : null,
  boxes.length ? h("p", { class: "quiet" }, "Saw: ", boxes.map(([label], i) => [i ? ", " : "", h("bdi", {}, label)]), weaker ? `, and ${weaker} weaker` : "", ".") : null,
  table.length ? scroll(`What ${title} asked and read`, h("table", { class: "answers" }, h("tbody", {}, table.map((line) => h("tr", {}, line.map((text) => h("td", {}, text))))))) : null,
];

const zoom = (suite, model, picture, told, evidence) => {
  const dialog = document.getElementById("zoom");
  const scores = suite.columns.map((c, index) => (c.task === picture.task ? [c, valueAt(told, evidence, index, picture.id, picture.seed)] : null)).filter((pair) => pair && pair[1] !== null);
  const seen = Object.entries(picture.seen).map(([metric, one]) => [titleOf(suite, picture.task, metric), one]);
  const boxed = seen.filter(([, one]) => one.boxes.length), overlay = h("div", { class: "boxes", "aria-hidden": "true" });
  const draw = (which) => overlay.replaceChildren(...(which === "" ? [] : boxesOf(boxed[which][1].boxes)));
  if (boxed.length) draw(0);
  dialog.replaceChildren(...[
    h("div", { class: "zoom-head" }, h("h2", { id: "zoom-title" }, h("bdi", {}, model.name)), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    h("div", { class: "stage" }, h("img", { src: picture.uri, alt: `${picture.text}, by ${model.name}, seed ${picture.seed}` }), overlay),
    boxed.length ? h("div", { class: "tools" }, select("Boxes", 0, [...boxed.map(([title], i) => [i, title]), ["", "none"]], draw)) : null,
    h("p", { dir: "auto" }, picture.text), h("p", { class: "quiet" }, `${words(picture.category)}${picture.split ? `, ${picture.split}` : ""}, image ${picture.seed}, `, h("code", {}, picture.id)),
    h("table", { class: "evidence" }, h("caption", {}, "Evidence of this picture"), h("tbody", {}, scores.map(([c, v]) => h("tr", {}, h("th", { scope: "row" }, c.title), h("td", { class: "num" }, number(v)))))),
    ...seen.flatMap(([title, one]) => seenOf(title, one)),
  ].filter(Boolean));
  dialog.showModal();
  dialog.scrollTop = 0;
};
const pictureOf = (suite, model, picture, told, evidence, judge) => {
  const verdict = judge >= 0 ? valueAt(told, evidence, judge, picture.id, picture.seed) : null;
  return h("button", { type: "button", class: "picture", title: "Scores of this picture", onclick: () => zoom(suite, model, picture, told, evidence) },
    h("img", { src: picture.uri, alt: `${picture.text}, by ${model.name}, seed ${picture.seed}`, loading: "lazy" }),
    verdict === null ? null : h("span", { class: verdict > 0.5 ? "mark right" : "mark wrong" }, h("span", { "aria-hidden": "true" }, verdict > 0.5 ? "✓" : "✗"), h("span", { class: "visually-hidden" }, verdict > 0.5 ? "right" : "wrong")));
};

fewstep.views.pictures = {
  title: "Pictures",
  tools: (suite, now) => modelPicker(suite, now, (m) => m.pictures),
  async show(suite, now) {
    const models = company(suite, now, (m) => m.pictures);
    if (!models.length) return [h("p", { class: "empty" }, "No result of this suite has pictures.")];
    const [galleries, evidence] = await Promise.all([Promise.all(models.map((m) => chunkOf(suite, m, "pictures"))), evidenceOf(suite, models)]);
    const tasks = [...new Set(galleries.flat().map((p) => p.task))], task = now.task ?? tasks[0];
    const told = await promptsOf(suite, task), judge = judgeOf(suite, task, evidence);
    const all = new Map(galleries.flat().filter((p) => p.task === task).map((p) => [p.id, p]));
    const categories = [...new Set([...all.values()].map((p) => p.category))].filter(Boolean).sort();
    // Each category in turn, so that the first screen shows all of them.
    const turn = {}, ordered = [...all.values()].map((p) => [(turn[p.category] = (turn[p.category] ?? -1) + 1), p]).sort((a, b) => a[0] - b[0] || a[1].category.localeCompare(b[1].category)).map(([, p]) => p);
    const fits = ordered.filter((p) => !now.category || p.category === now.category), most = Number(now.most ?? 12);
    return [
      h("div", { class: "tools" }, tasks.length > 1 ? select("Task", task, tasks.map((t) => [t, t]), (to) => state.set({ task: to })) : null,
        categories.length > 1 ? select("Category", now.category ?? "", [["", "all"], ...categories.map((c) => [c, words(c)])], (category) => state.set({ category })) : null),
      h("p", { class: "quiet" }, "A row is a prompt, a column a model; pictures in the same place of a row start from the same noise. ", judge >= 0 ? ["✓ right and ✗ wrong by ", suite.columns[judge].title, "."] : null),
      scroll("Sample pictures", h("table", { class: "samples" },
        h("thead", {}, h("tr", {}, heading("Prompt"), models.map((m) => h("th", { scope: "col" }, h("bdi", {}, m.name))))),
        h("tbody", {}, fits.slice(0, most).map((prompt) => h("tr", {},
          h("th", { scope: "row" }, h("span", { class: "prompt", dir: "auto" }, prompt.text), h("span", { class: "tags" }, words(prompt.category), prompt.split === "unseen" ? " · unseen" : "")),
          models.map((m, i) => h("td", {}, h("div", { class: "pair" }, galleries[i].filter((p) => p.task === task && p.id === prompt.id).map((p) => pictureOf(suite, m, p, told, evidence[i], judge)))))))))),
      fits.length > most ? h("button", { type: "button", class: "more", onclick: () => state.set({ most: fits.length }) }, `Show all ${fits.length} prompts`) : null,
    ];
  },
};

const meansOf = (told, grid) => told.ids.map((_, row) => {
  let sum = 0, n = 0;
  for (let i = row * told.seeds.length; i < (row + 1) * told.seeds.length; i++) if (!Number.isNaN(grid[i])) { sum += grid[i]; n++; }
  return n ? sum / n : NaN;
});
fewstep.views.prompts = {
  title: "Prompts",
  tools(suite, now) {
    return [select("Metric", now.metric ?? 0, suite.columns.map((c, index) => [index, c.title]), (metric) => state.set({ metric })),
      ...modelPicker(suite, now, (m) => m.evidence, 2),
      h("label", { class: "field grow" }, h("span", {}, "Search"), h("input", { type: "search", value: now.pq ?? "", placeholder: "prompt, id or category", oninput: (event) => state.set({ pq: event.target.value }) }))];
  },
  async show(suite, now) {
    const index = Number(now.metric ?? 0), column = suite.columns[index];
    const models = company(suite, now, (m) => m.evidence, 2);
    if (!models.length || !column) return [h("p", { class: "empty" }, "No result of this suite has evidence.")];
    const [told, evidence, galleries] = await Promise.all([promptsOf(suite, column.task), evidenceOf(suite, models), Promise.all(models.map((m) => (m.pictures ? chunkOf(suite, m, "pictures") : [])))]);
    const sheets = evidence.map((e) => gridOf(e, index));
    if (sheets.some((g) => !g)) return [h("p", { class: "empty" }, `Not all of these have evidence of ${column.title}.`)];
    const means = sheets.map((g) => meansOf(told, g)), wanted = (now.pq ?? "").toLowerCase();
    const rows = told.ids.map((id, row) => ({ id, row, text: told.texts[row], category: told.categories[row], split: told.splits[row], a: means[0][row], b: means[1]?.[row], d: means[1] ? means[0][row] - means[1][row] : means[0][row] }))
      .filter((r) => !Number.isNaN(r.d) && (!wanted || `${r.id} ${r.text} ${r.category}`.toLowerCase().includes(wanted)));
    const order = now.order ?? (models.length > 1 ? "changed" : column.higher ? "up" : "down");
    rows.sort((a, b) => (order === "changed" ? Math.abs(b.d) - Math.abs(a.d) : order === "up" ? a.d - b.d : b.d - a.d) || a.row - b.row);
    say(`${rows.length} prompts`);
    const most = Number(now.most ?? 30), images = (g, row) => told.seeds.map((_, s) => g[row * told.seeds.length + s]).filter((v) => !Number.isNaN(v)).map((v) => h("span", { class: "score" }, Number.isInteger(v) ? String(v) : number(v)));
    const pictures = (i, id) => galleries[i].filter((p) => p.task === column.task && p.id === id).map((p) => pictureOf(suite, models[i], p, told, evidence[i], -1));
    const mean = rows.reduce((sum, r) => sum + r.d, 0) / (rows.length || 1);
    return [
      h("div", { class: "tools" }, select("Order", order, models.length > 1 ? [["changed", "changed most"], ["down", `${models[0].name} ahead`], ["up", `${models[1].name} ahead`]] : [["up", "lowest first"], ["down", "highest first"]], (to) => state.set({ order: to }))),
      h("p", { class: "quiet" }, models.length > 1 ? [h("bdi", {}, models[0].name), " − ", h("bdi", {}, models[1].name), ` over ${rows.length} prompts shown: ${number(mean)} on average. Interval and p: `, h("code", {}, `python -m leaderboards compare ${suite.stem}/${models[0].stem} ${suite.stem}/${models[1].stem}`)] : `${rows.length} prompts, ${told.seeds.length} images each.`),
      scroll("Prompts", h("table", { class: "samples" },
        h("thead", {}, h("tr", {}, heading("Prompt"), models.map((m) => h("th", { scope: "col" }, h("bdi", {}, m.name))), models.length > 1 ? heading("Difference", "col", { class: "num" }) : null)),
        h("tbody", {}, rows.slice(0, most).map((r) => h("tr", {},
          h("th", { scope: "row" }, h("span", { class: "prompt", dir: "auto" }, r.text || r.id), h("span", { class: "tags" }, words(r.category), r.split === "unseen" ? " · unseen" : "", " · ", h("code", {}, r.id))),
          models.map((m, i) => h("td", {}, h("strong", {}, number(i ? r.b : r.a)), h("div", { class: "scores" }, images(sheets[i], r.row)), h("div", { class: "pair" }, pictures(i, r.id)))),
          models.length > 1 ? h("td", { class: `num ${r.d === 0 ? "" : r.d > 0 === column.higher ? "up" : "down"}` }, `${r.d > 0 ? "+" : ""}${number(r.d)}`) : null))))),
      rows.length > most ? h("button", { type: "button", class: "more", onclick: () => state.set({ most: most + 100 }) }, `Show more of ${rows.length} prompts`) : null,
    ];
  },
};
