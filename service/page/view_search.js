// A question against the passages of the list.

import { byId, el, replace } from "./dom.js";
import { scriptOf } from "./scripts.js";
import { dot, ranked } from "./similarity.js";

/** app: as in view_texts.js, with askSearch(). Returns {build, refresh}. */
export function searchView(app) {
  const field = byId("search");
  const instruction = byId("search-instruction");
  field.addEventListener("input", () => {
    app.state.search = field.value;
    app.searchChanged();
  });
  instruction.addEventListener("input", () => {
    app.state.searchInstruction = instruction.value.trim();
    app.searchChanged();
  });

  function build() {
    field.value = app.state.search;
    instruction.value = app.state.searchInstruction;
    field.lang = scriptOf(field.value).lang;
  }

  function refresh() {
    byId("search-instruction-row").hidden = !app.info?.prompts.instruct;
    const { searchVector: query, searchError: wrong } = app.results;
    byId("search-error").hidden = !wrong;
    byId("search-error").textContent = wrong;
    const passages = app.results.indices.filter((index) => app.state.texts[index].role === "passage");
    // Where nothing is marked as a passage, a list of titles or of sentences to compare is searched as it is.
    const searched = passages.length ? passages : app.results.indices;
    const found = query ? ranked(searched.map((index) => ({ index, score: dot(query, app.results.vectors[index]) }))) : [];
    byId("search-note").textContent = noteOf(passages.length, searched.length);
    const best = Math.max(...found.map(({ score }) => score), 0);
    replace(byId("found"), ...found.map((one) => entry(one, best)));
  }

  function noteOf(passages, searched) {
    if (!searched) return "";
    const what = passages ? `${passages} passages` : `No text has the role passage: all ${searched} texts`;
    return app.state.search.trim() ? `${what}, best first` : `${what}, to be ranked once something is asked`;
  }

  function entry({ index, score }, best) {
    const { text, lang } = app.state.texts[index];
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, el("span"));
    bar.firstChild.style.inlineSize = `${best > 0 ? Math.max(0, (100 * score) / best) : 0}%`;
    const button = el(
      "button",
      { type: "button", id: `found-${index + 1}`, "aria-pressed": String(index === app.state.selected) },
      el("span", { class: "score" }, score.toFixed(4)),
      bar,
      el("span", { class: "number" }, String(index + 1)),
      el("span", { class: "snippet", dir: "auto", lang: lang || scriptOf(text).lang }, text.slice(0, 300)),
    );
    button.addEventListener("click", () => app.select(index));
    return el("li", {}, button);
  }

  return { build, refresh };
}
