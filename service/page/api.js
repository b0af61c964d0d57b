// The gateway's routes as the page asks them: texts grouped by role, answers, and errors that name their texts.

/** What went wrong, in the server's words. inputs: the places in the request that the message names. */
export class RequestFailed extends Error {
  constructor(status, message, { retryAfterS = null, inputs = [] } = {}) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.inputs = inputs;
  }

  /** Whether the same request may succeed a little later. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

/**
 * Texts that go into one request: those of one role and instruction. Blank ones stay out.
 * texts: [{text, role, instruction}]. Returns [{role, instruction, indices, inputs}].
 */
export function groupsOf(texts) {
  const groups = new Map();
  texts.forEach(({ text, role, instruction }, index) => {
    if (!text.trim()) return;
    const given = role === "query" ? instruction || "" : "";
    const name = JSON.stringify([role, given]);
    if (!groups.has(name)) groups.set(name, { role, instruction: given, indices: [], inputs: [] });
    const group = groups.get(name);
    group.indices.push(index);
    group.inputs.push(text);
  });
  return [...groups.values()];
}

/** The body of POST /embed for a group. */
export function embedBody({ inputs, role, instruction }, truncate = true) {
  const body = { inputs, input_type: role };
  if (instruction) body.instruction = instruction;
  if (!truncate) body.truncate = false;
  return body;
}

/** The body of POST /tokenize, which takes no instruction: it is written into the texts. */
export function tokenizeBody({ inputs, role, instruction }) {
  const prompt = instruction ? `Instruct: ${instruction}\nQuery: ` : "";
  return { inputs: inputs.map((text) => prompt + text), input_type: role };
}

/** The inputs that an error message names, as in "(inputs 0, 2-5)". */
export function namedInputs(message) {
  const found = /\binputs? (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)/.exec(message);
  if (!found) return [];
  return found[1].split(", ").flatMap((part) => {
    const [first, last = first] = part.split("-").map(Number);
    return Array.from({ length: Math.min(last - first, 9999) + 1 }, (_, k) => first + k);
  });
}

/** The route's address beside the page's own, wherever a proxy has put it. */
export function addressOf(route) {
  return new URL(route, document.baseURI).href;
}

/** JSON from the server, or RequestFailed. body: sent by POST where there is one. */
export async function ask(route, { body, key, signal } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, cache: "no-store", credentials: "same-origin" };
  if (body) options.body = JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(addressOf(route), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestFailed(0, "No answer: the server is away, or the network is.");
  }
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  const message = messageOf(text) || answer.statusText || "no message";
  const seconds = Number(answer.headers.get("retry-after") || NaN);
  throw new RequestFailed(answer.status, message, {
    retryAfterS: Number.isFinite(seconds) ? seconds : null,
    inputs: namedInputs(message),
  });
}

function messageOf(text) {
  try {
    const { error } = JSON.parse(text);
    return typeof error === "string" ? error : error.message;
  } catch {
    return "";
  }
}
