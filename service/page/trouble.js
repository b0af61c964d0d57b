// What is wrong with the server, in its own words, and when it is asked again.

import { byId, el } from "./dom.js";

const RETRY_S = 5;
const RETRY_MAX_S = 60;
const HEADS = {
  0: "No answer",
  401: "This server wants a key",
  403: "The key is not accepted",
  429: "The server is busy",
  503: "The server is not ready",
};

let timer = 0;

/** Show a RequestFailed, or with null that all is well. What may pass is tried again by `retry`. */
export function showTrouble(error, retry) {
  clearTimeout(timer);
  const box = byId("trouble");
  const keyWrong = error?.status === 401 || error?.status === 403;
  document.body.classList.toggle("stale", Boolean(error));
  byId("key").setAttribute("aria-invalid", String(keyWrong));
  box.hidden = !error;
  if (!error) {
    box.replaceChildren();
    return;
  }
  let then = "";
  if (error.passing) {
    const seconds = Math.min(error.retryAfterS ?? RETRY_S, RETRY_MAX_S);
    timer = setTimeout(retry, 1000 * seconds);
    then = ` Trying again in ${seconds} s.`;
  } else if (keyWrong) {
    byId("key-box").open = true;
    then = " Put it into the field “API key”.";
  }
  const again = el("button", { type: "button" }, "Try now");
  again.addEventListener("click", retry);
  const head = `${HEADS[error.status] ?? "The server refused"}${error.status ? ` (${error.status})` : ""}`;
  box.replaceChildren(el("p", {}, el("strong", {}, head), ` ${error.message}${then}`), again);
}
