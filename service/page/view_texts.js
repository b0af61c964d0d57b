// The list of texts: what each says, its role, its instruction, its length, and what the server had against it.

import { byId, el } from "./dom.js";
import { labelOf, scriptOf } from "./scripts.js";
import { ROLES, TEXTS_MAX } from "./state.js";

/** app: {state, info, results, changed(), rebuilt(), select(index)}. Returns {build, refresh}. */
export function textsView(app) {
  const list = byId("texts");
  let rows = [];

  function build() {
    rows = app.state.texts.map((item, index) => row(item, index));
    list.replaceChildren(...rows.map(({ node }) => node));
    byId("add").disabled = app.state.texts.length >= TEXTS_MAX;
    refresh();
  }

  function row(item, index) {
    const number = index + 1;
    const area = el("textarea", { id: `text-${number}`, rows: 1, dir: "auto", spellcheck: "false" });
    area.value = item.text;
    area.setAttribute("aria-label", `Text ${number}`);
    area.setAttribute("aria-describedby", `about-${number} error-${number}`);
    area.addEventListener("focus", () => app.select(index));
    area.addEventListener("input", () => {
      item.text = area.value;
      item.lang = "";
      fit(area);
      app.changed();
    });
    const role = el(
      "select",
      { id: `role-${number}`, "aria-label": `Role of text ${number}` },
      ...ROLES.map((name) => el("option", { value: name }, name)),
    );
    role.value = item.role;
    role.addEventListener("change", () => {
      item.role = role.value;
      app.changed();
    });
    const remove = el("button", { type: "button", class: "quiet icon", "aria-label": `Remove text ${number}` }, "×");
    remove.addEventListener("click", () => app.remove(index));
    const about = el("span", { class: "about", id: `about-${number}` });
    const error = el("p", { class: "error", id: `error-${number}`, hidden: true });
    const instruction = instructionOf(item, number);
    const mark = el("span", { class: "number", "aria-hidden": "true" }, String(number));
    const node = el(
      "li",
      {},
      el("div", { class: "line" }, mark, role, about, remove),
      area,
      instruction,
      error,
    );
    return { node, area, about, error, instruction };
  }

  function instructionOf(item, number) {
    const field = el("input", { type: "text", class: "instruction", "aria-label": `Instruction of text ${number}` });
    field.value = item.instruction;
    field.addEventListener("input", () => {
      item.instruction = field.value.trim();
      app.changed();
    });
    return field;
  }

  /** Everything but what the user types, in place: the focus stays where it is. */
  function refresh() {
    rows.forEach(({ node, area, about, error, instruction }, index) => {
      const item = app.state.texts[index];
      node.dataset.role = item.role;
      node.classList.toggle("selected", index === app.state.selected);
      area.lang = item.lang || scriptOf(item.text).lang;
      about.textContent = aboutOf(item, app.results.tokens[index]);
      about.classList.toggle("cut", isCut(app.results.tokens[index]));
      instruction.hidden = !(app.info?.prompts.instruct && item.role === "query");
      instruction.placeholder = app.info?.prompts.query.replace(/^Instruct: |\nQuery: $/g, "") ?? "";
      const wrong = app.results.errors.get(index) ?? "";
      error.hidden = !wrong;
      error.textContent = wrong;
      area.setAttribute("aria-invalid", String(Boolean(wrong)));
      fit(area);
    });
    byId("count").textContent = `${app.state.texts.length} of at most ${TEXTS_MAX}`;
  }

  function isCut(shown) {
    return Boolean(shown?.some((piece) => !piece.kept));
  }

  function aboutOf(item, shown) {
    if (!item.text.trim()) return "empty, left out";
    const label = labelOf(item.text, item.lang);
    if (!shown) return label;
    const limit = app.info?.max_input_length;
    return isCut(shown) ? `${label} · ${shown.length} tokens, cut at ${limit}` : `${label} · ${shown.length} tokens`;
  }

  return { build, refresh };
}

// As high as its text, up to what CSS allows; where the browser does it by itself (field-sizing), nothing is to do.
function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
