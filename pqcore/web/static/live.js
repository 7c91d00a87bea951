// Says how old the figures are, and "Live" only while they are young. Does not change the page under a selection.
"use strict";
(() => {
  const state = document.getElementById("state"), told = document.getElementById("age");
  const trouble = document.querySelector("[sse-swap=trouble]");
  let taken = Date.now() - 1000 * state.dataset.age; // when the figures that are shown were read
  let open = false, asked = false;
  const held = new Map(); // what has come for parts that are selected
  const words = (seconds) =>
    seconds < 90 ? Math.floor(seconds) + " s" : seconds < 5400 ? Math.floor(seconds / 60) + " min" : Math.floor(seconds / 3600) + " h";
  const write = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const show = () => {
    if (!asked) return;
    const age = Math.max(0, (Date.now() - taken) / 1000);
    const live = open && age < state.dataset.young && !trouble.textContent.trim();
    state.classList.toggle("on", live);
    state.classList.toggle("off", !live);
    write(state, live ? state.dataset.live : open ? state.dataset.old : state.dataset.lost);
    write(told, "Figures are " + words(age) + " old");
  };
  const selected = (element) => {
    const selection = window.getSelection();
    return selection && !selection.isCollapsed && element.contains(selection.anchorNode);
  };
  document.addEventListener("htmx:sseError", () => {
    open = false;
    asked = true;
    show();
  });
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    const { type, data } = event.detail;
    if (type === "figures") {
      event.preventDefault();
      open = asked = true;
      if (!held.size) taken = Date.now() - 1000 * JSON.parse(data).age;
      show();
    } else if (selected(event.target)) {
      event.preventDefault();
      held.set(event.target, data);
    } else {
      held.delete(event.target);
    }
  });
  document.addEventListener("htmx:sseMessage", show);
  document.addEventListener("selectionchange", () => {
    for (const [element, data] of held) {
      if (selected(element)) continue;
      held.delete(element);
      htmx.swap(element, data, { swapStyle: "innerHTML" });
    }
  });
  setInterval(show, 1000);
  setTimeout(() => {
    asked = true;
    show();
  }, 3000);
})();
