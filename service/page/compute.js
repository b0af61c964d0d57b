// From the texts of the page to their vectors and tokens, by the gateway.

import { ask, embedBody, groupsOf, tokenizeBody } from "./api.js";
import { byteLength, pieces, promptOf } from "./tokens.js";

/**
 * Results by the text's place in the list. vectors, tokens: arrays with holes; indices: places that have a vector;
 * errors: what the server had against a text, by its place.
 */
export function nothing() {
  return { vectors: [], tokens: [], indices: [], errors: new Map(), searchVector: null, searchError: "" };
}

/**
 * Vectors and tokens of all texts, one request a role and route.
 * texts: [{text, role, instruction}]; info: of GET /info; options: {truncate, key, signal}. What the server refuses for
 * the sake of one text is in `errors`; anything else raises RequestFailed.
 */
export async function resultsOf(texts, info, options) {
  const found = nothing();
  await Promise.all(groupsOf(texts).map((group) => answersOf(group, info, options, found)));
  found.indices = texts.map((_, index) => index).filter((index) => found.vectors[index]);
  return found;
}

/** The vector of one query; null for a blank one. */
export async function vectorOf(item, { truncate, key, signal }) {
  const [group] = groupsOf([item]);
  return group ? (await ask("embed", { key, signal, body: embedBody(group, truncate) }))[0] : null;
}

async function answersOf(group, info, options, found) {
  const { truncate, key, signal } = options;
  const [vectors, tokens] = await Promise.allSettled([
    ask("embed", { key, signal, body: embedBody(group, truncate) }),
    ask("tokenize", { key, signal, body: tokenizeBody(group) }),
  ]);
  for (const { reason } of [vectors, tokens]) {
    if (reason) blame(reason, group, found.errors);
  }
  const promptBytes = byteLength(promptOf(info, group.role, group.instruction));
  group.indices.forEach((index, place) => {
    if (vectors.value) found.vectors[index] = vectors.value[place];
    if (tokens.value) found.tokens[index] = pieces(tokens.value[place], info.max_input_length, promptBytes);
  });
  // One text that is refused takes its whole request along; the others are asked for without it.
  const rest = group.indices.map((_, place) => place).filter((place) => !found.errors.has(group.indices[place]));
  if (vectors.reason && rest.length && rest.length < group.indices.length) {
    const of = (values) => rest.map((place) => values[place]);
    await answersOf({ ...group, indices: of(group.indices), inputs: of(group.inputs) }, info, options, found);
  }
}

/** Write a refusal beside the texts it is about, or raise it where it is about none. */
function blame(reason, group, errors) {
  const named = (reason.inputs ?? []).filter((place) => place < group.indices.length);
  if (!named.length && reason.status !== 413 && reason.status !== 422) throw reason;
  for (const place of named.length ? named : group.indices.keys()) {
    errors.set(group.indices[place], `${reason.status}: ${reason.message}`);
  }
}
