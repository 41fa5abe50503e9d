"use strict";
(() => {
  const form = document.querySelector("#filters");
  if (!form) return;
  const rows = [...document.querySelectorAll("#saes tbody tr")];
  const selects = [...form.querySelectorAll("select")];
  const [from, to] = ["#l0-from", "#l0-to"].map((id) => document.querySelector(id));
  function between(row) {
    if (!from.value && !to.value) return true;
    const l0 = Number.parseFloat(row.dataset.l0);
    return l0 >= (from.value || 0) && l0 <= (to.value || Infinity);
  }
  function show() {
    for (const row of rows) row.hidden = !(between(row) && selects.every((s) => !s.value || row.dataset[s.dataset.key] === s.value));
    document.querySelector("#count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} results`;
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
