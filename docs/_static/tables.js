// Give each cell the title of its column, which pages.css shows on phones. With two columns, it goes without saying.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.docutils")) {
    const titles = [...table.querySelectorAll("thead th")].map((title) => title.textContent.trim());
    if (titles.length < 3) continue;
    for (const row of table.tBodies[0].rows) {
      for (const [index, cell] of [...row.cells].entries()) {
        if (index > 0 && titles[index] && cell.textContent.trim()) cell.dataset.title = titles[index];
      }
    }
  }
});
