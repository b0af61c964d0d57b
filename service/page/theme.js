// The chosen theme, before anything is painted; loaded as a plain script, since modules run after the first paint.
(() => {
  const chosen = () => {
    try {
      return localStorage.getItem("me5-theme");
    } catch {
      // Storage is switched off: the system's theme it is.
      return null;
    }
  };
  const theme = chosen();
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
