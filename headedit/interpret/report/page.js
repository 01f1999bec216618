"use strict";
(() => {
  const table = document.getElementById("rows"), body = table.tBodies[0], tip = document.getElementById("tip");
  const headers = [...table.tHead.rows[0].cells];
  document.querySelectorAll(".script").forEach((element) => { element.hidden = false; });

  // Sorting: a button in every header, empty cells always last, ties in their previous order.
  const names = new Intl.Collator("en", { numeric: true });
  const sort = (column) => {
    const header = headers[column], words = ["text", "tokens"].includes(header.dataset.form);
    const first = words || header.dataset.form === "head" ? "ascending" : "descending";
    const now = header.getAttribute("aria-sort");
    const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const value = (row) => row.cells[column].dataset.order;
    const compare = (a, b) => (words ? names.compare(a, b) : a - b);
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(column));
    header.append(button);
  });

  // The table as CSV, which the link next to the button holds.
  const copied = document.getElementById("copied");
  document.getElementById("copy").addEventListener("click", async () => {
    const coded = atob(document.getElementById("csv").href.split(",")[1]);
    const text = new TextDecoder().decode(Uint8Array.from(coded, (letter) => letter.charCodeAt(0)));
    try {
      await navigator.clipboard.writeText(text);
      copied.textContent = `Copied ${body.rows.length} heads.`;
    } catch {
      copied.textContent = "The browser does not allow copying: download the file.";
    }
  });

  // Whether an area scrolls sideways, which phones do not show.
  const areas = [...document.querySelectorAll(".scroll")];
  const measureAreas = () => areas.forEach((area) => {
    area.classList.toggle("wide", area.scrollWidth > area.clientWidth + 1);
  });
  new ResizeObserver(measureAreas).observe(document.documentElement);
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", measureAreas));
  measureAreas();

  // The colours of the maps.
  const legends = [...document.querySelectorAll(".legend")], measure = document.getElementById("measure");
  const cells = [...document.querySelectorAll(".map td[data-styles]")];
  const paint = () => {
    const chosen = Number(measure.value);
    legends.forEach((legend, i) => { legend.hidden = i !== chosen; });
    cells.forEach((cell) => { cell.className = cell.dataset.styles.split(" ")[chosen]; });
  };
  measure.addEventListener("change", paint);
  paint(); // a browser may keep the choice over a reload

  // The numbers of a head, from its row, next to its cell.
  let link = null, row = null;
  const hide = () => {
    tip.hidden = true;
    row?.classList.remove("shown");
    link?.removeAttribute("aria-describedby");
    link = row = null;
  };
  const place = () => {
    if (link === null) return;
    tip.style.left = tip.style.top = "0"; // there it has its natural width
    const cell = link.getBoundingClientRect(), size = tip.getBoundingClientRect(), gap = 8;
    const room = document.documentElement.clientWidth - size.width - gap;
    const beside = cell.right + gap <= room ? cell.right + gap : cell.left - gap - size.width;
    const fits = beside >= gap;
    const below = cell.bottom + gap, above = cell.top - gap - size.height;
    const top = fits ? cell.top : below + size.height > innerHeight - gap && above >= gap ? above : below;
    tip.style.left = `${fits ? beside : Math.max(gap, Math.min(cell.left, room))}px`;
    tip.style.top = `${Math.max(gap, fits ? Math.min(top, innerHeight - gap - size.height) : top)}px`;
  };
  const show = (head) => {
    hide();
    link = head;
    row = document.getElementById(link.hash.slice(1));
    row.classList.add("shown");
    const title = document.createElement("b"), list = document.createElement("dl");
    title.textContent = row.cells[0].textContent;
    headers.forEach((header, column) => {
      if (header.dataset.form === "head" || row.cells[column].dataset.order === "") return;
      const what = document.createElement("dt"), found = document.createElement("dd");
      what.textContent = header.textContent;
      found.className = row.cells[column].classList.contains("tokens") ? "tokens" : "";
      found.append(...[...row.cells[column].childNodes].map((node) => node.cloneNode(true)));
      list.append(what, found);
    });
    tip.replaceChildren(title, list);
    tip.hidden = false;
    link.setAttribute("aria-describedby", "tip");
    place();
  };
  document.querySelectorAll(".map").forEach((map) => {
    const links = [...map.querySelectorAll("a")];
    links.forEach((other, i) => { other.removeAttribute("title"); other.tabIndex = i ? -1 : 0; });
    map.addEventListener("pointerover", (event) => {
      const head = event.target.closest("a");
      if (head) show(head); else hide();
    });
    map.addEventListener("pointerleave", hide);
    map.addEventListener("focusin", (event) => {
      links.forEach((other) => { other.tabIndex = other === event.target ? 0 : -1; });
      if (event.target.matches(":focus-visible")) show(event.target);
    });
    map.addEventListener("focusout", hide);
    map.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const grid = [...map.tBodies[0].rows];
      let cell = event.target.closest("td"), line = grid.indexOf(cell.parentElement), column = cell.cellIndex;
      do {
        line += step[0];
        column += step[1];
        cell = grid[line]?.cells[column];
      } while (cell && !cell.querySelector("a"));
      cell?.querySelector("a").focus({ focusVisible: true });
    });
  });
  addEventListener("scroll", place, { passive: true, capture: true });
  addEventListener("resize", hide);
})();
