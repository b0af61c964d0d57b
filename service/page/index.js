// The landing page: commands that can be copied, the theme, and whether the server is ready now.

import { addressOf } from "./api.js";
import { copyButton } from "./copy_button.js";
import { themeButton } from "./theme_button.js";

const LOOK_EVERY_MS = 10_000;

themeButton(document.getElementById("theme"));
for (const figure of document.querySelectorAll("figure")) {
  const block = figure.querySelector("pre");
  const what = block.getAttribute("aria-label").replace(/^C/, "the c");
  figure.querySelector("figcaption").append(copyButton(what, () => block.textContent));
}

async function look() {
  const node = document.getElementById("ready");
  let said;
  try {
    const answer = await fetch(addressOf("readyz"), { cache: "no-store" });
    said = answer.ok ? "ready" : ((await answer.json()).reason ?? "not ready");
  } catch {
    said = "no answer";
  }
  // A live region speaks whenever it is written, changed or not.
  if (node.textContent !== said) node.textContent = said;
}

setInterval(() => document.hidden || look(), LOOK_EVERY_MS);
