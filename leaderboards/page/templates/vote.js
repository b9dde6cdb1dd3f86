// A blind vote: pairs in the order of the page, one answer per pair and question, saved as CSV.
const TOLD = JSON.parse(document.getElementById("told").textContent);
const answers = new Map(); // "question/pair" → choice
const kept = `fewstep-vote-${TOLD.ballot}`;
const get = (id) => document.getElementById(id);
const make = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
let at = 0, question = 0;

const keep = () => {
  try { localStorage.setItem(kept, JSON.stringify({ voter: get("voter").value, answers: [...answers] })); }
  catch { get("said").textContent = "This browser keeps nothing: save the answers before you leave."; }
};
const recall = () => {
  let told = null;
  try { told = JSON.parse(localStorage.getItem(kept)); } catch { return; } // a browser without storage starts afresh
  if (!told) return;
  get("voter").value = told.voter;
  for (const [key, choice] of told.answers) answers.set(key, choice);
};
const firstOpen = () => {
  const open = TOLD.pairs.findIndex((_, pair) => !answers.has(`${question}/${pair}`));
  return open < 0 ? TOLD.pairs.length : open;
};
const answer = (choice) => {
  if (at >= TOLD.pairs.length) return;
  answers.set(`${question}/${at}`, choice);
  at += 1;
  keep();
  draw();
};
const side = (name, text) => {
  const pair = TOLD.pairs[at], pressed = answers.get(`${question}/${at}`) === name;
  const button = make("button", { type: "button", id: name, "aria-pressed": String(pressed) }, make("img", { src: pair[name], alt: `${name} picture` }), text);
  button.addEventListener("click", () => answer(name));
  return button;
};
const draw = () => {
  const done = TOLD.pairs.filter((_, pair) => answers.has(`${question}/${pair}`)).length;
  get("progress").value = done;
  get("count").textContent = `${done} of ${TOLD.pairs.length} answered`;
  if (at >= TOLD.pairs.length) {
    get("pair").replaceChildren(make("p", { class: "asked" }, question + 1 < TOLD.questions.length ? "Done with this question: choose the next one above, or save." : "Done. Save your answers."));
    return;
  }
  const tie = make("button", { type: "button", class: "more", id: "tie", "aria-pressed": String(answers.get(`${question}/${at}`) === "tie") }, "No difference");
  tie.addEventListener("click", () => answer("tie"));
  get("pair").replaceChildren(make("p", { class: "quiet" }, `Pair ${at + 1}`), make("p", { class: "asked", dir: "auto" }, TOLD.pairs[at].text),
    make("div", { class: "ballot" }, side("left", "Left"), side("right", "Right")), make("p", {}, tie));
};
const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const table = () => [TOLD.header, ...[...answers].map(([key, choice]) => {
  const [asked, pair] = key.split("/");
  return [TOLD.ballot, get("voter").value.trim() || "somebody", pair, asked, choice];
})].map((line) => line.map(cell).join(",")).join("\n") + "\n";

TOLD.questions.forEach((text, number) => get("question").append(make("option", { value: number }, text)));
get("question").addEventListener("change", (event) => { question = Number(event.target.value); at = firstOpen(); draw(); });
get("voter").addEventListener("input", keep);
get("save").addEventListener("click", () => {
  const link = make("a", { href: URL.createObjectURL(new Blob([table()], { type: "text/csv" })), download: `votes-${TOLD.ballot.slice(0, 8)}.csv` });
  link.click();
  get("said").textContent = `${answers.size} answers saved`;
});
addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, summary, .done") || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Backspace") { at = Math.max(0, at - 1); draw(); event.preventDefault(); return; }
  const choice = { ArrowLeft: "left", ArrowRight: "right", " ": "tie" }[event.key];
  if (!choice || (choice === "tie" && event.target.closest("button"))) return; // space presses a button in focus
  event.preventDefault();
  answer(choice);
});
recall();
at = firstOpen();
draw();
