// The requests behind what is shown, as commands.

import { addressOf, embedBody, groupsOf, tokenizeBody } from "./api.js";
import { copyButton } from "./copy_button.js";
import { curlLine } from "./curl.js";
import { byId, el } from "./dom.js";

/** app: as in view_texts.js, with key(). Returns {refresh}. */
export function curlView(app) {
  function refresh() {
    byId("commands").replaceChildren(...commandsOf(app.state).map(figure));
  }

  function figure({ title, route, body }) {
    const line = curlLine(addressOf(route), body, Boolean(app.key()));
    return el(
      "figure",
      {},
      el("figcaption", {}, el("span", {}, title), copyButton(`the command for ${title}`, () => line)),
      el("pre", { tabindex: "0", role: "region", "aria-label": `Command for ${title}` }, el("code", {}, line)),
    );
  }

  return { refresh };
}

/** Each request that the page makes for this state: [{title, route, body}]. */
export function commandsOf(state) {
  const groups = groupsOf(state.texts);
  const nameOf = ({ role, instruction, inputs }) =>
    `${inputs.length} ${role === "query" ? (inputs.length === 1 ? "query" : "queries") : inputs.length === 1 ? "passage" : "passages"}` +
    (instruction ? ` with “${instruction.slice(0, 40)}”` : "");
  const commands = groups.map((group) => ({
    title: `the vectors of ${nameOf(group)}`,
    route: "embed",
    body: embedBody(group, state.truncate),
  }));
  const [search] = groupsOf([searchText(state)]);
  if (search) commands.push({ title: "the vector of the search", route: "embed", body: embedBody(search, state.truncate) });
  const selected = state.texts[state.selected];
  const [tokens] = selected ? groupsOf([selected]) : [];
  if (tokens) commands.push({ title: "the tokens of the selected text", route: "tokenize", body: tokenizeBody(tokens) });
  return commands;
}

/** The search as one more text: always a query. */
export function searchText(state) {
  return { text: state.search, role: "query", instruction: state.searchInstruction };
}
