// Filters a listing as you type. Everything else works without a script.
"use strict";

const filter = document.getElementById("filter");
if (filter) {
  const rows = Array.from(document.querySelectorAll("#entries tbody tr"));
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of rows) {
      row.hidden = !row.querySelector(".name").textContent.toLowerCase().includes(wanted);
    }
  });
}
