"use strict";
// The page works without this script: it adds charts, the dose switch, sorting, the list of trials, and copying.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const say = (text) => { one("#live").textContent = text; };
  all(".js").forEach((element) => { element.hidden = false; });

  // Theme: follows the system until somebody chooses.
  const themes = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("kvspec-theme"); } catch { return null; } };
  const themeButton = one("#theme");
  const setTheme = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    themeButton.textContent = `Theme: ${theme}`;
    try { localStorage.setItem("kvspec-theme", theme); } catch { /* a page without storage keeps the choice while open */ }
  };
  themeButton.hidden = false;
  let theme = themes.includes(stored()) ? stored() : "system";
  setTheme(theme);
  themeButton.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    setTheme(theme);
  });

  // Charts: compiled Vega, drawn as SVG when their box is first seen to have a width.
  const data = one("#charts");
  const charts = data ? JSON.parse(data.textContent) : {};
  const tip = one("#tip");
  const tooltip = (handler, event, item, value) => {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    tip.textContent = String(value);
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`;
  };
  const drawn = new Set();
  const draw = (box) => {
    const spec = charts[box.dataset.chart];
    if (!spec || drawn.has(box) || !box.clientWidth) return;
    drawn.add(box);
    const options = { mode: "vega", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip };
    window.kvspecEmbed(box, spec, options).then(
      () => {
        one("svg", box).setAttribute("aria-hidden", "true"); // its box says what it shows
        box.dataset.drawn = "yes";
      },
      (error) => { box.textContent = `This chart could not be drawn: ${error.message}`; console.error(error); },
    );
  };
  const drawAll = () => all(".chart").forEach(draw);

  // The dose switch.
  const chooseDose = () => {
    const chosen = one("input[name=dose]:checked");
    if (!chosen) return;
    all(".dose").forEach((part) => { part.hidden = part.dataset.dose !== chosen.value; });
    drawAll();
  };
  all("input[name=dose]").forEach((input) => input.addEventListener("change", chooseDose));
  chooseDose();
  drawAll();

  // Tables that are wider than the page say so: on some systems no scroll bar shows it.
  const wide = new ResizeObserver((seen) => {
    for (const { target } of seen) target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth + 2;
  });
  all(".scroll").forEach((box) => {
    const hint = document.createElement("p");
    hint.className = "hint sideways";
    hint.textContent = "Wider than the page: scrolls sideways \u2192";
    hint.setAttribute("aria-hidden", "true"); // a screen reader has all columns anyway
    hint.hidden = true;
    box.before(hint);
    wide.observe(box);
  });

  // Sorting and filtering of the table of cells.
  const table = one("#cell-table");
  if (table) {
    const body = table.tBodies[0];
    const key = (row, column) => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
    };
    all("thead th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      const name = head.firstChild.textContent.trim();
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b))) * (down ? -1 : 1));
        body.append(...rows.map(([, row]) => row));
        say(`Sorted by ${name}, ${down ? "descending" : "ascending"}`);
      });
    });
    const filter = one("#filter");
    filter?.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      let shown = 0;
      for (const row of body.rows) {
        row.hidden = ![0, 1].some((column) => row.cells[column].textContent.toLowerCase().includes(wanted));
        shown += !row.hidden;
      }
      one("#filter-count").textContent = wanted ? `${shown} of ${body.rows.length} cells` : "";
    });
  }

  // The trials: a list with one tab stop, arrow keys inside.
  const tabs = all("[role=tab]");
  if (tabs.length) {
    one(".viewer").classList.add("live");
    const panels = tabs.map((tab) => document.getElementById(tab.getAttribute("aria-controls")));
    panels.forEach((panel, number) => {
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tabs[number].id);
      panel.tabIndex = 0;
    });
    const choose = (number, focus) => {
      tabs.forEach((tab, other) => {
        tab.setAttribute("aria-selected", String(other === number));
        tab.tabIndex = other === number ? 0 : -1;
        panels[other].hidden = other !== number;
      });
      all(".text", panels[number]).forEach((text) => {
        if (text.scrollHeight > text.clientHeight) text.tabIndex = 0; // what scrolls can be reached by keyboard
      });
      if (focus) tabs[number].focus();
    };
    tabs.forEach((tab, number) => {
      tab.addEventListener("click", () => choose(number, true));
      tab.addEventListener("keydown", (event) => {
        const last = tabs.length - 1;
        const next = { ArrowDown: number + 1, ArrowRight: number + 1, ArrowUp: number - 1, ArrowLeft: number - 1, Home: 0, End: last }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        choose((next + tabs.length) % tabs.length, true);
      });
    });
    choose(0, false);
  }

  all(".copy").forEach((button) => button.addEventListener("click", async () => {
    const text = one("code", button.parentElement).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(one("code", button.parentElement));
      button.textContent = "Selected";
    }
    say(button.textContent);
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }));

  // Where the reader is.
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  all("main section").forEach((section) => seen.observe(section));

  addEventListener("error", () => { document.documentElement.dataset.broken = "yes"; });
  document.documentElement.dataset.ready = "yes";
})();
