// Runs before the page is drawn, so that no light page flashes in a dark room. Not a module: modules run too late.
"use strict";

(() => {
  const root = document.documentElement;
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("sagittal.theme") || "auto";
  } catch {
    // Storage may be switched off; the system's scheme holds then.
  }
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    // Images are read in the dark: their page is dark unless a person chose otherwise.
    const dark = chosen === "dark" || (chosen === "auto" && (root.dataset.page === "study" || system.matches));
    root.dataset.theme = dark ? "dark" : "light";
  };
  apply();
  system.addEventListener("change", apply);
})();
