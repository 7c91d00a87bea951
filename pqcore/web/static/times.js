// Keeps times up to date, as in "3 min ago"; by the server's clock, and with the same words as rendering.py.
"use strict";
(() => {
  const ahead = Date.parse(document.body.dataset.now) - Date.now();
  const units = [["y", 31557600], ["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const update = () => {
    const now = Date.now() + ahead;
    for (const element of document.querySelectorAll("time")) {
      const seconds = (now - Date.parse(element.dateTime)) / 1000, size = Math.abs(seconds);
      if (Number.isNaN(seconds)) continue;
      const [unit, part] = units.find(([, part]) => size >= part) || units[4];
      const length = Math.floor(size / part) + " " + unit;
      const text = seconds < 0 ? "in " + length : length + " ago";
      if (element.textContent !== text) element.textContent = text;
    }
  };
  update();
  setInterval(update, 1000);
  document.addEventListener("htmx:sseMessage", update);
})();
