// What the answer of POST /tokenize means for the model: which tokens are the prompt, and where a text is cut.

// A piece that says no more than "here a word begins".
export const BOUNDARY = "·";

/** The prompt that the server puts before a text of this role. info: the answer of GET /info. */
export function promptOf(info, role, instruction) {
  if (info.prompts.instruct && role === "query" && instruction) return `Instruct: ${instruction}\nQuery: `;
  return info.prompts[role];
}

/**
 * Tokens as they are shown, in order.
 * tokens: one text's list from POST /tokenize, never cut. limit: the most tokens the model reads. promptBytes: how many
 * bytes of the prompted text are its prompt.
 * Returns [{id, text, kind, gap, kept}]: kind is "special", "prompt" or "text"; gap, whether white space stands before
 * it; kept, whether the model reads it. The closing special token always stays, as the server's cut has it.
 */
export function pieces(tokens, limit, promptBytes) {
  const closing = tokens.length > 0 && tokens[tokens.length - 1].special ? 1 : 0;
  const reading = tokens.length > limit ? limit - closing : tokens.length;
  let stop = 0;
  return tokens.map((token, index) => {
    const kept = index < reading || (closing === 1 && index === tokens.length - 1);
    if (token.special) return { id: token.id, text: token.text, kind: "special", gap: false, kept };
    const next = tokens[index + 1];
    // A word boundary of its own has the place of the token that follows: it would be shown twice.
    const boundary = next !== undefined && !next.special && next.start === token.start;
    const gap = token.start > stop;
    stop = Math.max(stop, boundary ? token.start : token.stop);
    const kind = token.stop <= promptBytes ? "prompt" : "text";
    return { id: token.id, text: boundary ? BOUNDARY : token.text, kind, gap, kept };
  });
}

/** How many of the pieces are of each kind, how many there are, and how many the model reads. */
export function counted(shown) {
  const of = (kind) => shown.filter((piece) => piece.kind === kind).length;
  return {
    total: shown.length,
    special: of("special"),
    prompt: of("prompt"),
    text: of("text"),
    kept: shown.filter((piece) => piece.kept).length,
  };
}

/** Bytes of a text as UTF-8, in which /tokenize counts. */
export function byteLength(text) {
  return new TextEncoder().encode(text).length;
}
