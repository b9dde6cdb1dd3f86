// Navigation, theme, and drawing of the view that the address names.
const ORDER = ["table", "tradeoffs", "categories", "pictures", "prompts", "model", "claims", "speed", "metrics", "papers", "methods"];
let last = "", turn = 0;
const links = (id, items) => document.getElementById(id).replaceChildren(...items.map(([text, count, here, changes]) => h("li", {}, h("a", { href: state.address(changes), "aria-current": here ? "page" : null }, h("bdi", {}, text), count === null ? null : h("span", { class: "count" }, ` ${count}`)))));

const render = async () => {
  const now = state.read(), suite = suiteOf(now), view = fewstep.views[now.view] && (suite || fewstep.views[now.view].everywhere) ? now.view : suite ? "table" : "papers";
  const mine = ++turn, shown = fewstep.views[view];
  const clean = { sort: "", cols: "", q: "", method: "", nfe: "", verdict: "", models: "", metric: "", x: "", task: "", category: "", model: "", order: "", most: "", pq: "", psort: "", paper: "", state: "" };
  links("suites", BOARD.suites.map((one) => [one.suite, `${one.models.length} models`, suite === one && !shown.everywhere, { ...clean, suite: one.suite, view: shown.everywhere ? "table" : view === "model" ? "table" : view }]));
  links("tabs", ORDER.filter((name) => suite || fewstep.views[name].everywhere).map((name) => [fewstep.views[name].title, null, name === view, { view: name, most: "" }]));
  const tab = document.querySelector("#tabs [aria-current]"), tabs = document.getElementById("tabs");
  if (tab) tabs.scrollLeft = tab.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - tab.offsetWidth) / 2;
  document.documentElement.dataset.theme = now.theme ?? "system";
  document.getElementById("theme").textContent = `Theme: ${now.theme ?? "system"}`;
  const root = document.getElementById("view"), key = `${suite?.suite}/${view}`;
  const typing = document.activeElement?.closest?.(".tools.fixed") && key === last; // a toolbar in use is left as it is
  if (!typing) {
    const tools = shown.tools ? h("div", { class: "tools fixed" }, shown.tools(suite, now)) : null;
    const body = h("div", { id: "body" });
    if (key !== last) { root.replaceChildren(...[tools, body].filter(Boolean)); body.setAttribute("aria-busy", "true"); }
    else if (tools) root.querySelector(".tools.fixed").replaceWith(tools);
  }
  if (key !== last && last) document.getElementById("main").focus({ preventScroll: true });
  last = key;
  let parts;
  try { parts = await shown.show(suite, now); } catch (error) { parts = [failure(error)]; }
  if (mine !== turn) return; // the reader has moved on
  const body = document.getElementById("body");
  body.removeAttribute("aria-busy");
  body.replaceChildren(...parts.flat(Infinity).filter(Boolean));
};
document.getElementById("theme").addEventListener("click", () => {
  const order = ["system", "light", "dark"], now = state.read().theme ?? "system", next = order[(order.indexOf(now) + 1) % 3];
  state.set({ theme: next === "system" ? "" : next });
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the state
  document.getElementById("main").focus();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => render());
addEventListener("hashchange", () => render());
render();
