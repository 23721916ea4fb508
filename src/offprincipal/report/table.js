
// The table of tensors: every word goes in as text, never as markup.
(function table() {
  const columns = page.table.columns;
  const head = document.querySelector("#table thead"), body = document.querySelector("#table tbody");
  const find = document.getElementById("find"), more = document.getElementById("more");
  const onlyRun = document.getElementById("only-run"), onlyKind = document.getElementById("only-kind");
  const column = (key) => columns.find((c) => c.key === key);
  const digits = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  let order = [...Array(page.table.rows).keys()], sorted = null, descending = false, limit = 100;

  const shown = {
    text: (v) => v, name: (v) => v,
    int: (v) => v.toLocaleString("en-US"),
    pct: (v) => `${(100 * v).toFixed(2)} %`,
    pts: (v) => `${v < 0 ? "−" : "+"}${Math.abs(100 * v).toFixed(2)}`,
    g: (v) => (Math.abs(v) >= 100 ? Math.round(v).toLocaleString("en-US") : v === 0 ? "0" : v.toPrecision(3)).replace("-", "−"),
    sci: (v) => {
      if (v === 0) return "0";
      if (Math.abs(v) >= 0.00995) return v.toPrecision(2);
      const [mantissa, exponent] = v.toExponential(1).split("e");
      return `${mantissa} × 10${[...exponent.replace("+", "")].map((d) => digits[d]).join("")}`;
    },
  };

  function element(tag, words, name) {
    const made = document.createElement(tag);
    made.textContent = words;
    if (name) made.className = name;
    return made;
  }

  function isWords(c) { return c.form === "text" || c.form === "name"; }

  const line = document.createElement("tr");
  columns.forEach((c) => {
    const cell = element("th", "", isWords(c) ? "text" : "");
    cell.scope = "col";
    const button = element("button", c.title);
    button.type = "button";
    if (c.hint) button.title = c.hint;
    button.addEventListener("click", () => {
      descending = sorted === c ? !descending : !isWords(c);
      sorted = c;
      [...line.children].forEach((th, i) => {
        th.removeAttribute("aria-sort");
        th.firstChild.textContent = columns[i].title;
      });
      cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      button.textContent = `${c.title} ${descending ? "↓" : "↑"}`;
      draw();
    });
    cell.append(button);
    line.append(cell);
  });
  head.append(line);

  for (const [select, key] of [[onlyRun, "run"], [onlyKind, "kind"]]) {
    for (const word of new Set(column(key).values)) select.add(new Option(word, word));
    select.addEventListener("change", restart);
  }
  find.addEventListener("input", restart);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += 400; draw(); });
  function restart() { limit = 100; draw(); }

  function compare(a, b) {
    const x = sorted.values[a], y = sorted.values[b];
    if (x === null || y === null) return (x === null) - (y === null) || a - b; // what is unknown comes last, both ways
    const way = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return (descending ? -way : way) || a - b;
  }

  function draw() {
    const needle = find.value.trim().toLowerCase();
    const names = column("tensor").values, runs = column("run").values, kinds = column("kind").values;
    const kept = order.filter((i) => (!needle || names[i].toLowerCase().includes(needle))
      && (!onlyRun.value || runs[i] === onlyRun.value) && (!onlyKind.value || kinds[i] === onlyKind.value));
    if (sorted) kept.sort(compare);
    body.replaceChildren(...kept.slice(0, limit).map((i) => {
      const row = document.createElement("tr");
      for (const c of columns) {
        const value = c.values[i];
        row.append(element("td", value === null ? "–" : shown[c.form](value), isWords(c) ? `text ${c.form}` : ""));
      }
      return row;
    }));
    more.hidden = kept.length <= limit;
    document.getElementById("matches").textContent =
      `${kept.length.toLocaleString("en-US")} of ${order.length.toLocaleString("en-US")} rows`;
  }
  draw();
})();
