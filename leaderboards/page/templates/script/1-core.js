// Chunks, state and the making of elements. Text of others reaches the page as text only, never as markup.
const fewstep = (window.fewstep = (() => {
  const chunks = new Map(), loading = new Map();
  const load = (key) => {
    if (chunks.has(key)) return Promise.resolve(chunks.get(key));
    if (!loading.has(key)) {
      loading.set(key, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${key.split("/").map(encodeURIComponent).join("/")}.js`;
        script.onload = () => resolve(chunks.get(key));
        script.onerror = () => reject(new Error(`data/${key}.js is missing: keep the folder data beside this page`));
        document.head.append(script);
      }));
    }
    return loading.get(key);
  };
  return { chunk: (key, data) => chunks.set(key, data), load, views: {} };
})());
const BOARD = JSON.parse(document.getElementById("board").textContent);

// h("td", {class: "num"}, "text", element, null): attributes are set as attributes, on… as listeners.
const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};
const number = (x) => (x === null || x === undefined ? "–" : Math.abs(x) < 1000 ? x.toFixed(3) : x.toPrecision(4)).replace("-", "−");
const plain = (x) => Number(x).toLocaleString("en", { maximumFractionDigits: 2 });
const words = (name) => name.replaceAll("_", " ");
const arrow = (column) => h("span", { class: "arrow" }, h("span", { "aria-hidden": "true" }, column.higher ? "↑" : "↓"),
  h("span", { class: "visually-hidden" }, column.higher ? " higher is better" : " lower is better"));

// The state of the page is its address: #suite=micro&view=table&sort=-0&…; what is at its default is left out.
const state = {
  read() {
    const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    return { suite: BOARD.suites.length ? BOARD.suites[0].suite : "", view: BOARD.suites.length ? "table" : "papers", ...found };
  },
  address(changes) {
    const next = new URLSearchParams();
    for (const [key, value] of Object.entries({ ...this.read(), ...changes })) if (value !== "" && value !== null) next.set(key, value);
    return `#${next}`;
  },
  // A change of settings replaces the address (the way back leads to the last view); `go` adds to the history.
  set(changes) { history.replaceState(null, "", this.address(changes)); return render(); },
  go(changes) { location.hash = this.address(changes); },
};
const suiteOf = (now) => BOARD.suites.find((one) => one.suite === now.suite) ?? BOARD.suites[0];
const chosen = (suite, now) => (now.models ? now.models.split(",") : []).map((stem) => suite.models.find((m) => m.stem === stem)).filter(Boolean);
const chunkOf = (suite, model, kind) => fewstep.load(`${suite.stem}/${model.stem}.${kind}`);
const focusAfter = (drawn, selector) => drawn.then(() => document.querySelector(selector)?.focus());
const say = (text) => { document.getElementById("status").textContent = text; };

const select = (label, value, options, change) => h("label", { class: "field" }, h("span", {}, label),
  h("select", { onchange: (event) => change(event.target.value) },
    options.map(([key, text]) => h("option", { value: key, selected: String(key) === String(value) }, text))));
const scroll = (label, table) => h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
const heading = (text, scope = "col", attributes = {}) => h("th", { scope, ...attributes }, text);
const failure = (error) => h("p", { class: "quiet", role: "alert" }, error.message);

// Up to four models to look at side by side: those picked in the table, else the first ones that have what is needed.
const company = (suite, now, has, most = 4) => {
  const picked = chosen(suite, now).filter(has);
  return (picked.length ? picked : suite.models.filter(has)).slice(0, most);
};
const modelPicker = (suite, now, has, most = 4) => {
  const shown = company(suite, now, has, most);
  const options = suite.models.filter(has);
  const slots = Array.from({ length: Math.min(most, Math.max(shown.length + 1, 2), options.length) }, (_, slot) => slot);
  return slots.map((slot) => select(`Model ${slot + 1}`, shown[slot]?.stem ?? "", [["", "–"], ...options.map((m) => [m.stem, m.name])],
    (stem) => {
      const stems = shown.map((m) => m.stem);
      if (stem) stems[slot] = stem; else stems.splice(slot, 1);
      state.set({ models: [...new Set(stems)].join(",") });
    }));
};
