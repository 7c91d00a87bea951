// Says whether the page is kept up to date, and does not change it under a selection.
"use strict";
(() => {
  const state = document.getElementById("state");
  const show = (live) => {
    const text = live ? state.dataset.live : state.dataset.lost;
    state.classList.toggle("on", live);
    state.classList.toggle("off", !live);
    if (state.textContent !== text) state.textContent = text;
  };
  document.addEventListener("htmx:sseOpen", () => show(true));
  document.addEventListener("htmx:sseError", () => show(false));
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    show(true);
    const selection = window.getSelection();
    if (selection && !selection.isCollapsed && event.target.contains(selection.anchorNode)) event.preventDefault();
  });
})();
