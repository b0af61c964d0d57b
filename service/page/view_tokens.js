// The tokens of the selected text, and where the model stops reading.

import { byId, el } from "./dom.js";
import { labelOf, scriptOf } from "./scripts.js";
import { BOUNDARY, counted } from "./tokens.js";

// How far down in its box the cut stands when it is scrolled to.
const CUT_AT = 0.6;

/** app: as in view_texts.js. Returns {refresh}. */
export function tokensView(app) {
  function refresh() {
    const index = app.state.selected;
    const item = app.state.texts[index];
    const shown = app.results.tokens[index];
    const limit = app.info?.max_input_length;
    byId("tokens-of").textContent = item ? `Text ${index + 1}, ${labelOf(item.text, item.lang)}, as ${item.role}` : "";
    const box = byId("tokens");
    if (!item || !shown || !limit) {
      box.replaceChildren();
      byId("tokens-note").textContent = item && !item.text.trim() ? "An empty text has no tokens worth showing." : "";
      byId("ids").textContent = "";
      byId("meter").hidden = true;
      return;
    }
    const counts = counted(shown);
    byId("tokens-note").textContent = noteOf(counts, item.text, limit);
    meter(counts, limit);
    // White space between tokens takes the direction of the whole text.
    box.lang = item.lang || scriptOf(item.text).lang;
    box.replaceChildren(...drawn(shown, limit));
    const cut = box.querySelector(".scissors");
    box.scrollTop = cut ? cut.offsetTop - box.offsetTop - CUT_AT * box.clientHeight : 0;
    byId("ids").textContent = shown.map((piece) => piece.id).join(", ");
  }

  function noteOf(counts, text, limit) {
    const each = `${counts.total} tokens: ${counts.text} of the text, ${counts.prompt} of the prompt, ${counts.special} special.`;
    if (counts.kept < counts.total) {
      return `${each} The model reads ${limit}; the last ${counts.total - counts.kept} of the text are cut off.`;
    }
    const rate = counts.text ? ` ${([...text].length / counts.text).toFixed(1)} characters a token.` : "";
    return `${each}${rate} The model reads all of them; the limit is ${limit}.`;
  }

  function meter(counts, limit) {
    const node = byId("meter");
    node.hidden = false;
    node.setAttribute("aria-valuemax", String(limit));
    node.setAttribute("aria-valuenow", String(Math.min(counts.total, limit)));
    node.setAttribute("aria-valuetext", `${counts.total} tokens, limit ${limit}`);
    const whole = Math.max(counts.total, limit);
    const [read, lost] = node.children;
    read.style.inlineSize = `${(100 * counts.kept) / whole}%`;
    lost.style.inlineSize = `${(100 * (counts.total - counts.kept)) / whole}%`;
  }

  function drawn(shown, limit) {
    const nodes = [];
    let cutShown = false;
    shown.forEach((piece, number) => {
      if (!piece.kept && !cutShown) {
        cutShown = true;
        nodes.push(el("strong", { class: "scissors" }, `cut after ${limit} tokens, the closing one among them`));
      }
      if (piece.gap) nodes.push(" ");
      const kind = piece.kind === "text" ? (number % 2 ? "odd" : "even") : piece.kind;
      const boundary = piece.text === BOUNDARY && piece.kind === "text" ? " boundary" : "";
      const title = `token ${number + 1}, id ${piece.id}${piece.kept ? "" : ", cut off"}`;
      nodes.push(el("span", { class: `token ${kind}${boundary}${piece.kept ? "" : " lost"}`, title }, piece.text));
    });
    return nodes;
  }

  return { refresh };
}
