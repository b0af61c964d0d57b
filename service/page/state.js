// What the page shows, and its form in the address's fragment, which no server sees.

export const ROLES = ["query", "passage"];
// A matrix of more is not read any more.
export const TEXTS_MAX = 40;
// Beyond this length browsers and chat programs cut addresses.
const FRAGMENT_CHARS_MAX = 60_000;

/**
 * The state as a fragment without its "#": the example's name where nothing was changed, else everything in base64url.
 * state: {example, texts: [{text, role, instruction, lang}], search, searchInstruction, truncate, selected}.
 */
export function encode(state) {
  if (state.example) return `example=${state.example}`;
  const texts = state.texts.map(({ text, role, instruction, lang }) => [
    text,
    ROLES.indexOf(role),
    instruction || "",
    lang || "",
  ]);
  const packed = { t: texts, q: state.search, i: state.searchInstruction, c: Number(state.truncate), s: state.selected };
  const fragment = `state=${base64url(JSON.stringify(packed))}`;
  return fragment.length <= FRAGMENT_CHARS_MAX ? fragment : "";
}

/** The state in a fragment; null for one that holds none, or one that somebody made up. */
export function decode(fragment) {
  const found = /^#?state=([\w-]+)$/.exec(fragment);
  if (!found) return null;
  try {
    return checked(JSON.parse(fromBase64url(found[1])));
  } catch {
    return null;
  }
}

/** The name of the example that a fragment asks for, or "". */
export function exampleIn(fragment) {
  return /^#?example=([\w-]+)$/.exec(fragment)?.[1] ?? "";
}

function checked(packed) {
  const string = (value) => (typeof value === "string" ? value : "");
  const texts = packed.t.slice(0, TEXTS_MAX).map(([text, role, instruction, lang]) => ({
    text: string(text),
    role: ROLES[role] ?? ROLES[0],
    instruction: string(instruction),
    lang: /^[a-z]{2,3}$/.test(lang) ? lang : "",
  }));
  const selected = Number.isInteger(packed.s) ? Math.min(Math.max(packed.s, 0), Math.max(texts.length - 1, 0)) : 0;
  return {
    example: "",
    texts,
    search: string(packed.q),
    searchInstruction: string(packed.i),
    truncate: packed.c !== 0,
    selected,
  };
}

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  // In pieces: the spread of a long array is too many arguments.
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromBase64url(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(binary, (char) => char.charCodeAt(0)));
}
