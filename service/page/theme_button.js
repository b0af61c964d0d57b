// The button that goes through the themes: the system's, light, dark.

const NAMES = ["auto", "light", "dark"];

/** The theme that is shown: "light" or "dark". */
export function shownTheme() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

/** Make the button work. onChange: called whenever another theme is shown, by the button or by the system. */
export function themeButton(button, onChange = () => {}) {
  const show = () => {
    button.textContent = `Theme: ${document.documentElement.dataset.theme ?? "auto"}`;
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    keep(NAMES[(NAMES.indexOf(now) + 1) % NAMES.length]);
    show();
    onChange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  show();
}

function keep(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem("me5-theme", name);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
}
