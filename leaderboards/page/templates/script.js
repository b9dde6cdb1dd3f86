"use strict";
// Sorting: a button in every heading; the state is aria-sort, read by people and by this script alike.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => {
    if (!heading.dataset.kind) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const first = heading.dataset.kind === "down" ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const text = heading.dataset.kind === "text";
      const key = (row) => row.cells[index].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what has no value stays at the end
        return sign * (text ? x.localeCompare(y) : Number(x) - Number(y));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// Gallery: a first screen of prompts, the rest on demand; a category shows all of its prompts.
for (const gallery of document.querySelectorAll(".gallery")) {
  const rows = [...gallery.querySelectorAll("tbody tr")];
  const more = gallery.querySelector(".more");
  const select = gallery.querySelector("select");
  let all = rows.length <= Number(gallery.dataset.shown);
  const show = () => {
    const category = select ? select.value : "";
    rows.forEach((row, index) => {
      row.hidden = category ? row.dataset.category !== category : !all && index >= Number(gallery.dataset.shown);
    });
    more.hidden = all || category !== "";
  };
  more.addEventListener("click", () => { all = true; show(); });
  if (select) select.addEventListener("change", show);
  show();
}
