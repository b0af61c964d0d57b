// A button that copies, and says so to eyes and ears.

import { el } from "./dom.js";

const SAID_MS = 1600;

/** A button. what: named in its label, "Copy the command for the vectors".   text: a function that gives the text. */
export function copyButton(what, text, label = "Copy") {
  const button = el("button", { type: "button", class: "quiet", "aria-label": `${label} ${what}` }, label);
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.textContent = done ? "Copied" : "Can’t copy";
    announce(done ? `Copied ${what}` : "The browser refused to copy");
    setTimeout(() => (button.textContent = label), SAID_MS);
  });
  return button;
}

/** Say something in the page's live region. */
export function announce(sentence) {
  const region = document.getElementById("said");
  if (region) region.textContent = sentence;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text);
  }
}

// navigator.clipboard is for https and localhost alone; a gateway on another machine is often plain http.
function copiedBySelection(text) {
  const area = el("textarea", { class: "offscreen", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  const before = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}
