// The similarity matrix: a table, coloured.

import { css, heat, inkOn } from "./colour.js";
import { byId, el, replace } from "./dom.js";
import { labelOf, scriptOf } from "./scripts.js";
import { cosines, neighbours, offDiagonalRange } from "./similarity.js";
import { shownTheme } from "./theme_button.js";

const LEGEND_STEPS = 48;

/** app: as in view_texts.js. Returns {refresh}. */
export function matrixView(app) {
  const pair = byId("pair");
  const table = byId("matrix");
  table.addEventListener("pointerover", ({ target }) => point(target.closest("td")));
  table.addEventListener("pointerleave", () => point(null));

  function refresh() {
    const shown = app.results.indices;
    const matrix = cosines(shown.map((index) => app.results.vectors[index]));
    const range = offDiagonalRange(matrix);
    const head = el("tr", {}, el("td", { class: "corner" }), ...shown.map(columnHead));
    const rows = matrix.map((row, i) =>
      el("tr", { class: selected(shown[i]) }, rowHead(shown[i]), ...row.map((value, j) => cell(value, i, j, range, shown))),
    );
    table.style.setProperty("--columns", String(shown.length));
    replace(table, caption(shown.length), el("thead", {}, head), el("tbody", {}, ...rows));
    byId("legend").replaceChildren(...legend(range));
    nearest(matrix, shown);
  }

  function caption(count) {
    return el("caption", {}, `Cosine similarity of ${count} texts, each with each`);
  }

  function columnHead(index) {
    const { role } = app.state.texts[index];
    return el(
      "th",
      { scope: "col", class: selected(index), "aria-label": `${index + 1}, ${role}` },
      el("span", { class: `mark ${role}`, "aria-hidden": "true" }),
      String(index + 1),
    );
  }

  function rowHead(index) {
    const { text, role, lang } = app.state.texts[index];
    const button = el(
      "button",
      {
        type: "button",
        id: `row-${index + 1}`,
        "aria-pressed": String(index === app.state.selected),
        title: text.slice(0, 300),
      },
      el("span", { class: `mark ${role}`, "aria-hidden": "true" }),
      el("span", { class: "number" }, String(index + 1)),
      el("span", { class: "snippet", dir: "auto", lang: lang || scriptOf(text).lang }, text.slice(0, 80)),
    );
    button.addEventListener("click", () => app.select(index));
    return el("th", { scope: "row" }, button);
  }

  function cell(value, i, j, [low, high], shown) {
    if (i === j) return el("td", { class: "same", "data-pair": `${i} ${j}` }, "1");
    const colour = heat(high > low ? (value - low) / (high - low) : 0.5, shownTheme());
    const node = el("td", { "data-pair": `${i} ${j}`, "data-texts": `${shown[i]} ${shown[j]}` }, value.toFixed(2));
    node.style.backgroundColor = css(colour);
    node.style.color = css(inkOn(colour));
    return node;
  }

  function legend([low, high]) {
    const bar = el("span", { class: "bar", "aria-hidden": "true" });
    for (let step = 0; step < LEGEND_STEPS; step++) {
      const part = el("span");
      part.style.backgroundColor = css(heat(step / (LEGEND_STEPS - 1), shownTheme()));
      bar.append(part);
    }
    return [el("span", {}, low.toFixed(2)), bar, el("span", {}, high.toFixed(2)), " lowest and highest of these pairs"];
  }

  function nearest(matrix, shown) {
    const at = shown.indexOf(app.state.selected);
    const best = at < 0 ? [] : neighbours(matrix, at).slice(0, 3);
    pair.dataset.nearest = best.length
      ? `Nearest to ${app.state.selected + 1}: ${best.map((one) => `${shown[one.index] + 1} (${one.score.toFixed(4)})`).join(", ")}`
      : "";
    pair.textContent = pair.dataset.nearest;
  }

  function point(target) {
    for (const node of table.querySelectorAll(".pointed")) node.classList.remove("pointed");
    if (!target?.dataset.texts) {
      pair.textContent = pair.dataset.nearest ?? "";
      return;
    }
    const [i, j] = target.dataset.pair.split(" ").map(Number);
    table.rows[0].cells[j + 1].classList.add("pointed");
    table.rows[i + 1].cells[0].classList.add("pointed");
    const [a, b] = target.dataset.texts.split(" ").map(Number);
    const [one, other] = [a, b].map((index) => app.state.texts[index]);
    const score = cosines([app.results.vectors[a], app.results.vectors[b]])[0][1];
    pair.textContent =
      `${a + 1} (${labelOf(one.text, one.lang)}, ${one.role}) and ${b + 1} (${labelOf(other.text, other.lang)}, ` +
      `${other.role}): ${score.toFixed(4)}`;
  }

  function selected(index) {
    return index === app.state.selected ? "selected" : null;
  }

  return { refresh };
}
