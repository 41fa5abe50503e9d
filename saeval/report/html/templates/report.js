"use strict";
// The script of all pages of a report. Text from models and corpora becomes only text nodes and attribute values.
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const SVG = "http://www.w3.org/2000/svg";

  /** Make invisible characters visible, as the pages themselves do. */
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
  const escape = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
  const visible = (text) => String(text).replace(HIDDEN, (c) => (c === "\n" || c === "\t" ? c : escape(c)));
  const visibleToken = (text) => String(text).replace(HIDDEN, (c) => (c === "\n" ? "↵" : c === "\t" ? "⇥" : escape(c)));

  /** Make an element; strings among the children become text. */
  function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in element && key !== "list") element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children.filter((c) => c !== null && c !== undefined));
    return element;
  }
  function draw(name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }
  /** Format a number as the server does: a tie (an odd multiple of a power of 1/2) becomes even, and zero has no minus. */
  function fixed(value, digits) {
    const text = value.toFixed(digits);
    const up = Math.abs(value * 2 ** (digits + 1)) % 2 === 1 && Number(text.at(-1)) % 2 === 1;
    return (up ? (value - Math.sign(value) * 10 ** (-digits - 1)).toFixed(digits) : text).replace(/^-(?=[0.]+$)/, "");
  }
  const shown = (value, digits = 3) => (value === null || value === undefined ? "–" : fixed(value, digits));
  function brief(value) {
    if (value === null) return "–";
    const digits = 3 - Number(value.toExponential().split("e")[1]); // of four significant ones, those after the point
    return String(Number(digits < 0 ? value.toPrecision(4) : fixed(value, Math.min(digits, 100))));
  }

  const FIRST = 0x4000; // characters from here on encode 15 bits each; a digit before them is the number of surplus bytes
  /** Return the bytes of a text that is base64 or such characters. */
  function decoded(text) {
    if (!(text.charCodeAt(1) >= FIRST)) return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const bytes = new Uint8Array(Math.floor((15 * (text.length - 1)) / 8) - Number(text[0]));
    let held = 0;
    let bits = 0; // number of bits in `held` that are not in `bytes` yet
    let next = 0;
    for (let k = 1; k < text.length; k++) {
      held = ((held & 255) << 15) | (text.charCodeAt(k) - FIRST);
      for (bits += 15; bits >= 8; bits -= 8) bytes[next++] = held >> (bits - 8);
    }
    return bytes;
  }
  const inflated = (format, ...bytes) => new Response(new Blob(bytes).stream().pipeThrough(new DecompressionStream(format))).arrayBuffer();
  const bytesOf = async (text) => new Uint8Array(await inflated("gzip", decoded(text)));
  /** Return text that was packed as gzip in base64. */
  const unpacked = async (text) => new TextDecoder().decode(await bytesOf(text));
  /** Return text that zlib packed with a dictionary. Browsers support none, so it is prepended as an uncompressed block. */
  async function unpackedAfter(known, bytes) {
    if (!(bytes[1] & 32)) return new TextDecoder().decode(await inflated("deflate", bytes));
    const size = [known.length & 255, known.length >> 8];
    const header = new Uint8Array([0, ...size, ...size.map((byte) => byte ^ 255)]); // header of an uncompressed block
    const all = await inflated("deflate-raw", header, known, bytes.subarray(6, -4));
    return new TextDecoder().decode(new Uint8Array(all, known.length));
  }

  // --- a report in one file contains its other pages and their data, by name ---

  const bundle = find("#bundle") ? JSON.parse(find("#bundle").textContent) : {};
  let turned = ""; // page of latents shown instead of the first page
  let alive = new AbortController(); // removes the page's event listeners when another page is shown
  const listen = (target, event, act) => target.addEventListener(event, act, { signal: alive.signal });

  /** Load a script of the report: a file beside the page, since pages from disk may load nothing else, or one of the bundle. */
  async function load(path, failed) {
    const text = bundle[turned ? `latents/${path}` : path];
    const script = make("script", { src: text ? URL.createObjectURL(new Blob([await unpacked(text)], { type: "text/javascript" })) : path });
    script.addEventListener("error", () => failed(new Error(`${path} is not beside this page`)));
    document.head.append(script);
  }
  /** Return the address of a page: in a bundle, a state of this one. */
  function addressOf(link) {
    const [, name, state] = link.match(/^(?:\.\.\/|latents\/)?([\w.-]+)\.html(?:#(.*))?$/) || [];
    if (name === "index" && turned) return `#${state || ""}`;
    return bundle[`latents/${name}.html`] ? `#in=${name}${state ? `&${state}` : ""}` : link;
  }
  /** Show the pages of a bundle in place of each other. */
  function turnPages() {
    const fixed = [...document.body.children].filter((e) => e.id === "bundle" || (e.localName === "script" && !e.type));
    const first = [...document.body.childNodes].filter((node) => !fixed.includes(node)).map((node) => node.cloneNode(true));
    const title = document.title;
    async function turn() {
      const wanted = read().get("in") || "";
      const page = bundle[`latents/${wanted}.html`];
      if (wanted === turned || (wanted && !page)) return;
      const nodes = wanted ? [...new DOMParser().parseFromString(await unpacked(page), "text/html").body.childNodes] : first.map((node) => node.cloneNode(true));
      if ((read().get("in") || "") !== wanted) return;
      alive.abort();
      alive = new AbortController();
      turned = wanted;
      document.title = title;
      document.body.replaceChildren(...nodes, ...fixed);
      scrollTo(0, 0);
      start();
    }
    for (const event of ["click", "auxclick"]) {
      document.addEventListener(event, ({ target }) => {
        const link = target.closest?.("a[href]");
        if (link) link.setAttribute("href", addressOf(link.getAttribute("href")));
      }, true);
    }
    addEventListener("hashchange", turn);
    turn();
  }

  // --- large cells come in parts: lines of the list, columns, and an index of the words of explanations ---

  const parts = new Map();
  const waited = new Map();
  window.saevalPart = (name, packed) => waited.get(name)?.(packed);
  /** Return a part of a page of latents. `folder` is that page's folder relative to this page. */
  function part(folder, name) {
    const path = `${folder}${name}.js`;
    if (!parts.has(path)) {
      parts.set(path, new Promise((resolve, reject) => {
        waited.set(name, resolve);
        load(path, (error) => { parts.delete(path); reject(error); });
      }).then(unpacked).then(JSON.parse));
    }
    return parts.get(path);
  }
  /** Return the places of latents whose explanations contain all terms. A term has no space, so it is part of a word. */
  async function placesOf(folder, page, terms) {
    const { count, words, begins } = await part(folder, `${page}/words`);
    let common = null;
    for (const term of terms) {
      const own = new Uint8Array(count);
      const files = new Map();
      let file = 0;
      words.forEach((word, k) => {
        if (!word.includes(term)) return;
        while (begins[file + 1] <= k) file += 1;
        files.set(file, [...(files.get(file) || []), k - begins[file]]);
      });
      await Promise.all([...files].map(async ([n, some]) => {
        const steps = await part(folder, `${page}/index/${n}`);
        for (const k of some) {
          let place = 0;
          for (const step of steps[k]) own[place += step] = 1;
        }
      }));
      common = common ? common.map((v, k) => v & own[k]) : own;
    }
    const found = [];
    common.forEach((v, k) => { if (v) found.push(k); });
    return found;
  }
  /** Return the lines of some latents, by the file they are in. */
  const FOLDER = 256;
  const rowsAt = (folder, page, places, size) => Promise.all([...new Set(places.map((k) => Math.floor(k / size)))].map(
    async (n) => [n * size, await part(folder, `${page}/rows/${Math.floor(n / FOLDER)}/${n}`)]));

  // --- state: kept in the address, after the # ---

  const read = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  /** Change the state. `move` adds a step to the browser's history. */
  function change(changes, move = false) {
    const state = read();
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "" || value === undefined) state.delete(key);
      else state.set(key, value);
    }
    const hash = `#${state}`;
    if (hash === (location.hash || "#")) return;
    if (move) location.hash = hash;
    else location.replace(hash);
  }

  const NUMBER = "[-+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:e[-+]?\\d+)?";
  const [whole, between, beyond] = [`(${NUMBER})`, `(${NUMBER})\\s*\\.\\.\\s*(${NUMBER})`, `([<>]=?)\\s*(${NUMBER})`].map((s) => new RegExp(`^${s}$`, "i"));
  /** Compare values: numbers by size, then texts by letter; missing values come last in both directions. */
  function comparison(direction) {
    const sign = direction === "desc" ? -1 : 1;
    const kind = (v) => (v === null || v === undefined || v === "" ? 2 : typeof v === "number" || whole.test(v) ? 0 : 1);
    return (a, b) => {
      const [x, y] = [kind(a), kind(b)];
      if (x !== y) return x === 2 || y === 2 ? x - y : sign * (x - y);
      return x === 2 ? 0 : sign * (x ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b);
    };
  }
  /** Return whether any number from `low` to `high` passes a filter (`>0.5`, `<=3`, `0.4..0.6`), or the text has its words. */
  function passes(filter, [low, high], text) {
    const wanted = filter.trim();
    const known = low !== "" && low !== null;
    const [range, compared] = [wanted.match(between), wanted.match(beyond)];
    if (range) return known && Number(high) >= Number(range[1]) && Number(low) <= Number(range[2]);
    if (!compared) return text.toLowerCase().includes(wanted.toLowerCase());
    const limit = Number(compared[2]);
    return known && { "<": low < limit, "<=": low <= limit, ">": high > limit, ">=": high >= limit }[compared[1]];
  }
  /** Turn column heads into buttons that sort. */
  function sortable(head, first) {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const state = read();
      const again = state.get("sort") === head.dataset.key;
      const other = { asc: "desc", desc: "asc" };
      change({ sort: head.dataset.key, dir: again ? other[state.get("dir")] : first, page: null });
    });
  }
  function markSorted(heads, key, direction) {
    for (const head of heads) {
      if (head.dataset.key === key) head.setAttribute("aria-sort", direction === "desc" ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  // --- the first page ---

  function board() {
    const table = find("#board");
    const body = find("tbody", table);
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const [filter, baselines, toggle] = ["#board-filter", "#board-baselines", "#board-columns"].map((s) => find(s));
    heads.forEach((head) => sortable(head, head.dataset.kind === "number" ? "desc" : "asc"));
    const inputs = heads.map((head) =>
      make("input", { type: "text", "aria-label": `Filter ${head.dataset.key}`, placeholder: head.dataset.kind === "number" ? "> 0.5" : "", autocomplete: "off" }),
    );
    const line = make("tr", { className: "filters", hidden: true }, ...inputs.map((i) => make("td", {}, i)));
    table.tHead.append(line);
    find("#board-tools").hidden = false;
    find("#board-tools").addEventListener("submit", (event) => event.preventDefault());

    filter.addEventListener("input", () => change({ q: filter.value }));
    baselines.addEventListener("change", () => change({ base: baselines.checked ? null : "0" }));
    toggle.addEventListener("click", () => change({ columns: line.hidden ? "1" : null }));
    inputs.forEach((input, k) => input.addEventListener("input", () => change({ [`f.${heads[k].dataset.key}`]: input.value })));

    /** The value of a cell as both ends of a range; only ranks have two. */
    const ends = (row, k) => { const { value, to = value } = row.cells[k].dataset; return [value, to]; };
    function render() {
      const state = read();
      const set = (input, text) => { if (input.value !== text) input.value = text; };
      set(filter, state.get("q") || "");
      baselines.checked = state.get("base") !== "0";
      const filters = heads.map((head) => state.get(`f.${head.dataset.key}`) || "");
      filters.forEach((text, k) => set(inputs[k], text));
      line.hidden = state.get("columns") !== "1" && !filters.some(Boolean);
      toggle.setAttribute("aria-expanded", String(!line.hidden));
      const k = heads.findIndex((head) => head.dataset.key === state.get("sort"));
      const compare = comparison(state.get("dir"));
      const sorted = k < 0 ? rows : [...rows].sort((a, b) => {
        const [[low, high], [least, most]] = [ends(a, k), ends(b, k)];
        return compare(low, least) || compare(high, most);
      });
      let count = 0;
      for (const row of sorted) {
        const fits =
          (baselines.checked || !row.classList.contains("baseline")) &&
          passes(state.get("q") || "", [null, null], row.textContent) &&
          filters.every((text, c) => !text || passes(text, ends(row, c), row.cells[c].textContent));
        row.hidden = !fits;
        count += fits;
      }
      if (sorted.some((row, at) => body.rows[at] !== row)) body.append(...sorted);
      markSorted(heads, k < 0 ? null : state.get("sort"), state.get("dir"));
      find("#board-count").textContent = `${count} of ${rows.length} cells`;
    }
    function goTo() {
      const place = document.getElementById(read().get("at") || "");
      if (place) { place.scrollIntoView(); place.focus({ preventScroll: true }); }
    }
    for (const link of document.querySelectorAll("nav a")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        change({ at: link.hash.slice(1) });
        goTo();
      });
    }
    listen(document, "click", (event) => {
      const point = event.target.closest("[data-go]");
      if (point) location.href = addressOf(point.dataset.go);
    });
    listen(window, "hashchange", render);
    render();
    goTo();
  }

  /** Search the explanations of all cells, from files beside the pages of latents that are loaded on the first keystroke.
   * A source is the folder of those pages, and the name of their run if there are several. */
  function search(sources) {
    const words = find("#search-words");
    const MOST = 100;
    let cells = null;
    const cellsOf = ([folder, run]) => new Promise((resolve, reject) => {
      window.saevalSearch = (found) => resolve(found.map(([cell, page, latents]) => [run ? `${run}:${cell}` : cell, folder + page, latents || (async (terms) => {
        const places = await placesOf(folder, page, terms);
        const { rows: size } = await part(folder, `${page}/words`);
        const lines = new Map((await rowsAt(folder, page, places.slice(0, MOST), size)).map(([begin, rows]) => [begin, rows]));
        return places.map((k, n) => {
          if (n >= MOST) return null;
          const [rows, at] = [lines.get(k - (k % size)), k % size];
          return [rows.latent[at], rows.text[at], rows["values.0"]?.[at] ?? null];
        });
      })]));
      load(`${folder}search.js`, reject);
    });
    async function loaded() {
      const found = [];
      for (const source of sources) found.push(...await cellsOf(source));
      return found;
    }
    const all = () => (cells ||= loaded().catch((error) => { cells = null; throw error; }));
    async function render() {
      const wanted = (read().get("find") || "").toLowerCase().trim();
      if (words.value.toLowerCase().trim() !== wanted) words.value = wanted;
      if (!wanted) { find("#search-found").replaceChildren(); find("#search-count").textContent = ""; return; }
      let found;
      try {
        const terms = wanted.split(/\s+/);
        const fits = ([, text]) => terms.every((term) => text.toLowerCase().includes(term));
        found = [];
        for (const [cell, page, latents] of await all()) {
          const lines = Array.isArray(latents) ? latents.filter(fits) : await latents(terms);
          for (const line of lines) found.push(line && [cell, page, ...line]);
        }
        if ((read().get("find") || "").toLowerCase().trim() !== wanted) return;
      } catch (error) {
        find("#search-count").textContent = `Cannot search: ${error.message}.`;
        return;
      }
      find("#search-count").textContent = `${found.length} latents${found.length > MOST ? `, the first ${MOST} shown` : ""}`;
      find("#search-found").replaceChildren(...found.slice(0, MOST).map(([cell, page, latent, text, score]) => make("li", {},
        make("a", { href: `${page}.html#latent=${latent}` }, visible(`${cell}, latent ${latent}`)), " ",
        make("bdi", {}, visible(text)), make("span", { className: "muted" }, score === null ? "" : ` ${shown(score)}`))));
    }
    find("#search-tools").hidden = false;
    find("#search-tools").addEventListener("submit", (event) => event.preventDefault());
    words.addEventListener("input", () => change({ find: words.value }));
    listen(window, "hashchange", render);
    render();
  }

  // --- the page of a cell ---

  function latents() {
    const data = JSON.parse(find("#data").textContent);
    const PAGE = 50;
    const paged = data.paged; // of a large cell, lines and columns are loaded when they are shown or sorted by
    const total = paged ? paged.count : data.latent.length;
    const at = new Map(data.latent.map((number, k) => [number, k]));
    const lead = data.scorers[0];
    const columns = [
      { key: "latent", name: "latent", values: data.latent, text: String, first: "asc" },
      { key: "text", name: "explanation", values: data.text, first: "asc" },
      ...data.scorers.map((s) => ({ key: s.label, name: s.label, values: s.values, text: (v) => shown(v), first: "desc" })),
      { key: "gap", name: "gap", values: data.gap, text: (v) => shown(v, 2), first: "desc" },
      { key: "density", name: "density", values: data.density, text: brief, first: "desc" },
    ];
    const worst = (s) => (s.higher ? "asc" : "desc");
    const orders = [
      ["", "as drawn"],
      ...data.scorers.flatMap((s) => [[`${s.label} ${worst(s)}`, `worst ${s.label}`], [`${s.label} ${worst(s) === "asc" ? "desc" : "asc"}`, `best ${s.label}`]]),
      ["gap desc", "scorers disagree most"],
      ["density desc", "densest"],
      ["latent asc", "number"],
    ];
    const order = find("#list-order");
    order.append(...orders.map(([value, name]) => make("option", { value }, name)), make("option", { value: "own", hidden: true }, "other"));
    order.addEventListener("change", () => {
      const cut = order.value.lastIndexOf(" ");
      change({ sort: order.value.slice(0, Math.max(cut, 0)), dir: order.value.slice(cut + 1), page: null });
    });
    const table = find("#latents");
    const heads = columns.map((c) => make("th", { scope: "col", className: c.text && c.key !== "latent" ? "n" : "", "data-key": c.key }, c.name));
    heads.forEach((head, k) => sortable(head, columns[k].first));
    table.tHead.append(make("tr", {}, ...heads));
    const filter = find("#list-filter");
    filter.addEventListener("input", () => change({ q: filter.value, page: null }));
    for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());

    /** Places of the latents that pass the filter, in order. */
    function chosen(state) {
      if (paged) return arranged.places;
      const q = (state.get("q") || "").toLowerCase().trim();
      const places = [...data.latent.keys()].filter((k) => !q || data.text[k].toLowerCase().includes(q) || String(data.latent[k]) === q);
      return sorted(places, state);
    }
    function sorted(places, state) {
      const column = columns.find((c) => c.key === state.get("sort"));
      if (column) {
        const compare = comparison(state.get("dir"));
        const values = column.ranks || column.values;
        places.sort((a, b) => compare(values[a], values[b]) || a - b);
      }
      return places;
    }

    // Data of a large cell that the state needs; it fills the lists above.
    let arranged = { key: null, places: [] };
    const nameOf = (column) => { const k = data.scorers.findIndex((s) => s.label === column.key); return k < 0 ? column.key : `values.${k}`; };
    const listOf = (name) => { const [key, k] = name.split("."); return k === undefined ? data[key] : data.scorers[k][key]; };
    async function whole(name) {
      const values = await part("", `${data.folder}/column/${name}`);
      if (name === "text") { columns.find((c) => c.key === "text").ranks = values; return; }
      const list = listOf(name);
      for (let k = 0; k < total; k++) list[k] = values[k];
      if (name === "latent" && at.size < total) list.forEach((number, k) => at.set(number, k));
    }
    async function prepare(state) {
      const q = (state.get("q") || "").toLowerCase().trim();
      const column = columns.find((c) => c.key === state.get("sort"));
      if (state.has("latent") || /^\d+$/.test(q)) await whole("latent");
      if (column) await whole(nameOf(column));
      const key = [q, column?.key, state.get("dir")].join("\n");
      if (arranged.key !== key) {
        let places = Array.from({ length: total }, (_, k) => k);
        if (q) {
          places = await placesOf("", data.folder, q.split(/\s+/));
          const k = at.get(Number(q));
          if (k !== undefined && String(data.latent[k]) === q && !places.includes(k)) places.push(k);
          places.sort((a, b) => a - b);
        }
        arranged = { key, places: sorted(places, state) };
      }
      const pages = Math.max(1, Math.ceil(arranged.places.length / PAGE));
      const page = Math.min(Math.max(1, Number(state.get("page")) || 1), pages);
      const number = at.get(Number(state.get("latent")));
      const shown_ = state.has("latent") ? [number].filter((k) => k !== undefined) : arranged.places.slice((page - 1) * PAGE, page * PAGE);
      for (const [begin, rows] of await rowsAt("", data.folder, shown_, paged.rows)) {
        for (const [name, values] of Object.entries(rows)) {
          const list = listOf(name);
          values.forEach((value, k) => { list[begin + k] = value; });
        }
        rows.latent.forEach((number_, k) => at.set(number_, begin + k));
      }
    }
    const address = (latent) => {
      const state = read();
      state.set("latent", latent);
      return `#${state}`;
    };

    function renderList(state) {
      const places = chosen(state);
      const pages = Math.max(1, Math.ceil(places.length / PAGE));
      const page = Math.min(Math.max(1, Number(state.get("page")) || 1), pages);
      const rating = state.get("rate") === "1";
      table.tBodies[0].replaceChildren(
        ...places.slice((page - 1) * PAGE, page * PAGE).map((k) => {
          const cells = columns.map((c) => {
            if (c.key === "latent") return make("th", { scope: "row" }, make("a", { href: address(data.latent[k]) }, String(data.latent[k])));
            if (c.key === "text") return make("td", { className: "text" }, explanation(data.text[k], data.why[k]));
            return make("td", { className: "n" }, rating && c.key !== "density" ? "·" : c.text(c.values[k]));
          });
          return make("tr", {}, ...cells);
        }),
      );
      if (filter.value !== (state.get("q") || "")) filter.value = state.get("q") || "";
      const key = state.get("sort") ? `${state.get("sort")} ${state.get("dir")}` : "";
      order.value = orders.some(([value]) => value === key) ? key : "own";
      markSorted(heads, state.get("sort"), state.get("dir"));
      find("#list-count").textContent = `${places.length} of ${total} latents`;
      find("#page-at").textContent = `page ${page} of ${pages}`;
      for (const [id, to] of [["#page-previous", page - 1], ["#page-next", page + 1]]) {
        find(id).disabled = to < 1 || to > pages;
        find(id).onclick = () => change({ page: to }, true);
      }
    }
    const explanation = (text, why) => (text && !why ? make("bdi", {}, visible(text)) : make("span", { className: "muted" }, visible(why || "no explanation")));

    // Files of latents are scripts, each of which passes its data to a function.
    const files = new Map();
    const waiting = new Map();
    window.saevalLatents = (n, details, tokens) => waiting.get(`${n}.js`)?.([details, tokens]);
    window.saevalCalls = (n, index, calls) => waiting.get(`${n}.calls.js`)?.([index, calls]);
    function fileOf(latent, ending) {
      const n = Math.floor(at.get(latent) / data.perFile);
      const name = `${n}${ending}`;
      if (!files.has(name)) {
        files.set(name, new Promise((resolve, reject) => {
          waiting.set(name, resolve);
          load(`${data.folder}/${paged ? `${Math.floor(n / FOLDER)}/` : ""}${name}`, (error) => { files.delete(name); reject(error); });
        }));
      }
      return files.get(name);
    }
    /** Return the details of a latent. Tokens of windows are stored as numbers of words, in sequence, as bytes. */
    async function detailsOf(latent) {
      const [details, tokens] = await fileOf(latent, ".js");
      const { latents, words, planes } = JSON.parse(await unpacked(details));
      const bytes = await bytesOf(tokens);
      const n = bytes.length / planes;
      let next = 0;
      const number = (at) => Array.from({ length: planes }, (_, k) => bytes[k * n + at] * 256 ** k).reduce((a, b) => a + b);
      for (const detail of latents) {
        const mine = detail.latent === latent;
        for (const [, windows] of [...detail.windows, ...detail.seen]) {
          for (const window of windows) {
            const begin = next;
            next += window[3];
            if (mine) window[3] = Array.from({ length: window[3] }, (_, k) => words[number(begin + k)]);
          }
        }
        if (mine) return unfolded(detail);
      }
    }
    /** Return windows by group and judgements as lines; the file stores columns, or one value if all are equal. */
    function unfolded(detail) {
      const [windows, seen] = [detail.windows, detail.seen].map((groups) => Object.fromEntries(groups));
      const scored = [...(windows.score || []), ...(windows.decoy || [])];
      const judged = {};
      for (const [scorer, variants] of Object.entries(detail.judged)) {
        judged[scorer] = {};
        for (const [variant, columns] of Object.entries(variants)) {
          const n = Math.max(1, ...columns.filter(Array.isArray).map((column) => column.length));
          const values = columns.map((column) => (k) => (Array.isArray(column) ? column[k] : column));
          const window = (place) => (typeof place === "number" ? scored[place][0] : place);
          judged[scorer][variant] = Array.from({ length: n }, (_, k) => [window(values[0](k)), ...values.slice(1).map((value) => value(k))]);
        }
      }
      return { ...detail, windows, seen, judged };
    }
    const REACH = 25000; // maximum bytes of windows in the dictionary that unpacks prompts
    async function callsOf(latent, step, variant) {
      const [index, packed] = await fileOf(latent, ".calls.js");
      const [first, last, held] = JSON.parse(await unpacked(index))[step]?.[variant] || [];
      if (!held?.[latent]) return [];
      const { windows } = await detailsOf(latent);
      const fire = (group, active) => (windows[group] || []).filter((w) => w[1] === active);
      const groups = step === "explain" ? [fire("explain", 1), fire("explain", 0)] : [fire("score", 1), fire("score", 0), windows.decoy || []];
      const [used, ...places] = held[latent].split(".");
      const shown = used === "-" ? [] : [...used].flatMap((k) => groups[k]);
      const known = new TextEncoder().encode(shown.map((w) => w[3].join("")).join("\n")).slice(-REACH);
      const bytes = decoded(packed);
      const parts = await Promise.all(places.map((place) => unpackedAfter(known, bytes.subarray(...place.split("-")))));
      const [[before, after], ...calls] = parts.flatMap((part) => JSON.parse(part));
      const whole = (prompt) => first + before + prompt + after + last;
      return calls.map(([prompt, reply, status]) => [status.startsWith("left") ? prompt : whole(prompt), reply, status]);
    }

    /** A collapsed section with the prompts and raw replies of a step, loaded when it is opened. */
    function asked(latent, step, variant, name) {
      if (!data.calls) return "";
      const place = make("div", { className: "calls" });
      const fold = make("details", {}, make("summary", {}, name), place);
      fold.addEventListener("toggle", async () => {
        if (!fold.open || place.childElementCount) return;
        try {
          const calls = await callsOf(latent, step, variant);
          place.replaceChildren(...(calls.length ? calls.map(call) : [make("p", { className: "muted" }, "No model was asked, or its prompts were not kept.")]));
        } catch (error) {
          place.replaceChildren(make("p", { role: "alert" }, `Prompts cannot be shown: ${error.message}.`));
        }
      });
      return fold;
    }
    function call([prompt, reply, status], n, all) {
      if (!prompt) return make("p", { className: "muted" }, visible(reply));
      const start = visible(reply).replaceAll("\n", " ").slice(0, 90);
      const asked = make("pre", { tabIndex: 0 }, visible(prompt));
      const fold = make("details", { className: "call", open: all.length === 1 },
        make("summary", {}, all.length === 1 ? "Prompt and reply" : `Prompt ${n + 1} of ${all.length} → `, all.length === 1 ? "" : make("bdi", { className: status === "ok" ? "muted" : "wrong" }, start)),
        make("p", { className: "role" }, "Prompt"), asked,
        make("p", { className: "role" }, status === "ok" ? "Raw reply" : "No reply"), make("pre", { tabIndex: 0, className: "reply" }, visible(reply)));
      fold.addEventListener("toggle", () => { asked.scrollTop = asked.scrollHeight; }); // the question; examples precede it
      return fold;
    }

    /** A window as text, tokens shaded by how strongly the latent fired on them. */
    function heat([, , , tokens, fired], strongest) {
      const line = make("div", { className: "window", dir: "auto" });
      let plain = "";
      const strengths = new Map();
      for (let k = 0; k < fired.length; k += 2) {
        let at = fired[k];
        while (at > 0 && !tokens[at]) at -= 1; // a token that only continues a character is shown where that begins
        strengths.set(at, Math.max(strengths.get(at) ?? 0, fired[k + 1]));
      }
      tokens.forEach((token, k) => {
        const strength = strengths.get(k);
        if (!strength) { plain += visibleToken(token); return; }
        if (plain) line.append(plain);
        plain = "";
        const level = Math.min(9, Math.max(1, Math.ceil((9 * strength) / strongest)));
        line.append(make("mark", { className: `h${level}`, title: `activation ${strength}` }, visibleToken(token)));
      });
      line.append(plain);
      return line;
    }

    function scoreBar(s, value) {
      const known = [value, s.mean, ...Object.values(s.floor)].filter((v) => v !== null);
      const low = s.low ?? Math.min(...known);
      const high = s.high ?? Math.max(...known);
      const x = (v) => 2 + (96 * (v - low)) / (high - low || 1);
      const bar = draw("svg", { viewBox: "0 0 100 14", class: "mini", "aria-hidden": "true" });
      bar.append(draw("line", { x1: 2, x2: 98, y1: 7, y2: 7, class: "track" }));
      for (const v of Object.values(s.floor)) if (v !== null) bar.append(draw("line", { x1: x(v), x2: x(v), y1: 1, y2: 13, class: "floor" }));
      if (s.mean !== null) bar.append(draw("line", { x1: x(s.mean), x2: x(s.mean), y1: 0, y2: 14, class: "average" }));
      if (value !== null) bar.append(draw("circle", { cx: x(value), cy: 7, r: 3.5, class: "dot" }));
      return bar;
    }
    function scores(k) {
      const rows = data.scorers.map((s) =>
        make("tr", {},
          make("th", { scope: "row" }, s.label), make("td", {}, s.metric.replaceAll("_", " ")), make("td", { className: "n" }, make("b", {}, shown(s.values[k])), s.lows[k] === null ? "" : ` [${shown(s.lows[k], 2)} ${shown(s.highs[k], 2)}]`),
          make("td", {}, scoreBar(s, s.values[k])), make("td", { className: "n" }, shown(s.mean)),
          make("td", {}, Object.entries(s.floor).map(([name, v]) => `${name} ${shown(v)}`).join(", ") || "–")),
      );
      const head = make("tr", {}, ...["scorer", "metric", "this latent", "", "cell's mean", "floors (cell's means)"].map((name, c) => name ? make("th", { scope: "col", className: c === 2 || c === 4 ? "n" : "" }, name) : make("td")));
      return wide("Scores", make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
    }
    const wide = (label, content) => make("div", { className: "wide", role: "region", tabIndex: 0, "aria-label": label }, content);

    /** How wrong an answer is: wrong answers first, the most confident at the top. */
    function badness([, active, predicted, probability]) {
      const far = probability === null ? 0 : active ? 1 - probability : probability;
      return (predicted === null ? 0 : predicted !== active ? 100 : 0) + far;
    }
    function judged(detail, state, windows, strongest) {
      const names = Object.keys(detail.judged);
      if (!names.length) return [];
      const scorer = names.includes(state.get("scorer")) ? state.get("scorer") : names[0];
      const variants = Object.keys(detail.judged[scorer]);
      const variant = variants.includes(state.get("variant")) ? state.get("variant") : variants[0];
      const given = state.get("windows") === "given";
      const choice = (label, key, options, value) => {
        const select = make("select", {}, ...options.map(([v, name]) => make("option", { value: v, selected: v === value }, visible(name))));
        select.addEventListener("change", () => change({ [key]: select.value, focus: key }));
        select.dataset.focus = key;
        return make("label", {}, `${label} `, select);
      };
      const lines = [...detail.judged[scorer][variant]];
      if (!given) lines.sort((a, b) => badness(b) - badness(a));
      const right = lines.filter((l) => l[2] !== null && l[2] === l[1]).length;
      const answered = lines.filter((l) => l[2] !== null).length;
      const rows = lines.map((l) => {
        const [example, active, predicted, probability, status, reason, written] = l;
        const known = windows.get(example);
        const window_ = known?.window;
        const fires = window_ ? window_[1] : active;
        const truth = written ? (active ? "written to activate" : "its twin: should not activate") : active ? "yes" : known?.decoy ? "no: another latent's marks" : fires ? "no: marks are wrong" : "no: non-activating";
        const verdict = status !== "ok" ? make("span", { className: "wrong" }, `${status}${reason ? `: ${visible(reason)}` : ""}`)
          : predicted === null ? "–"
          : make("span", { className: predicted === active ? "right" : "wrong" }, `${predicted === active ? "✓" : "✗"} ${predicted ? "yes" : "no"}`);
        return make("tr", {},
          make("td", {}, verdict), make("td", {}, truth), make("td", { className: "n" }, shown(probability, 2)),
          make("td", { className: "n" }, window_ && window_[2] !== null ? String(window_[2]) : "–"),
          make("td", {}, written ? heat([, , , ...written], strongest) : window_ ? heat(window_, known.strongest) : visible(example)));
      });
      const texts = lines.some((l) => l[6]);
      const head = make("tr", {}, ...[texts ? "fires" : "answer", "truth", texts ? "activation" : "probability", "decile", texts ? "text" : "window"].map((n, c) => make("th", { scope: "col", className: c === 2 || c === 3 ? "n" : "" }, n)));
      return [
        make("h3", {}, texts ? "Written texts" : "Judged windows"),
        make("form", { className: "tools" },
          choice("Scorer", "scorer", names.map((n) => [n, n]), scorer),
          choice("Explanation", "variant", variants.map((v) => [v, v === "explanation" ? "its own" : v]), variant),
          choice("Order", "windows", [["worst", "worst first"], ["given", "as asked"]], given ? "given" : "worst"),
          make("span", { className: "muted" }, answered ? `${right} of ${answered} correct` : "")),
        wide("Judged windows", make("table", { className: "judged" }, make("thead", {}, head), make("tbody", {}, ...rows))),
        asked(detail.latent, scorer, variant, `Prompts and raw replies of ${visible(scorer)}`),
      ];
    }

    /** Latents with the most similar directions, with links to those that have a page. */
    function neighbours(numbers, cosines) {
      const one = (number, k) => make("li", {},
        at.has(number) ? make("a", { href: address(number) }, String(number)) : make("span", {}, String(number)),
        make("span", { className: "muted" }, ` ${shown(cosines[k], 2)}`));
      return make("ul", { className: "chips" }, ...numbers.map(one));
    }
    function direction(detail) {
      const rows = [];
      if (detail.promoted?.length) rows.push(["Promotes", make("ul", { className: "chips" }, ...detail.promoted.map((t) => make("li", { className: "token" }, make("bdi", {}, visibleToken(t)))))]);
      if (detail.suppressed?.length) rows.push(["Suppresses", make("ul", { className: "chips" }, ...detail.suppressed.map((t) => make("li", { className: "token" }, make("bdi", {}, visibleToken(t)))))]);
      if (detail.neighbours?.length) rows.push(["Nearest latents", neighbours(detail.neighbours, detail.cosines)]);
      if (!rows.length) return [];
      const notes = {
        Promotes: "Promotes: tokens whose logits the direction raises most through the unembedding (logit lens).",
        Suppresses: "Suppresses: tokens whose logits it lowers most.",
        "Nearest latents": "Nearest latents: highest cosine of decoder directions.",
      };
      return [make("h3", {}, "Direction"), make("dl", { className: "direction" }, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
        make("p", { className: "note" }, rows.map(([name]) => notes[name]).join(" "))];
    }

    /** Histogram of activations; heights are square roots of counts, so that rare strong activations are visible. */
    function histogram(counts, top, fired) {
      const [W, H, base] = [360, 96, 78];
      const tallest = Math.sqrt(Math.max(...counts));
      const step = W / counts.length;
      const total = counts.reduce((a, b) => a + b, 0);
      const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot histogram", role: "img", "aria-label": `Histogram of ${total} activations from 0 to ${brief(top)}` });
      counts.forEach((count, k) => {
        const height = count ? Math.max(1.5, (base * Math.sqrt(count)) / tallest) : 0;
        const bar = draw("rect", { x: k * step + 0.5, y: base - height, width: step - 1, height, class: "column s0" });
        const note = draw("title", {});
        note.textContent = `${brief((top * k) / counts.length)} to ${brief((top * (k + 1)) / counts.length)}: ${count} tokens`;
        bar.append(note);
        svg.append(bar);
      });
      svg.append(draw("line", { x1: 0, x2: W, y1: base, y2: base, class: "axis" }));
      for (const [v, x, place] of [[0, 0, ""], [top / 2, W / 2, "middle"], [top, W, "end"]]) {
        const label = draw("text", { x, y: H - 4, class: place });
        label.textContent = brief(v);
        svg.append(label);
      }
      return make("figure", {}, svg, make("figcaption", { className: "note" }, `Activations on ${total < fired ? `${total.toLocaleString("en")} of` : "the"} ${Math.max(total, fired).toLocaleString("en")} tokens where it fires${total < fired ? " (all that this run stores)" : ""}. Heights are square roots of counts.`));
    }
    const FIFTHS = ["strongest fifth", "second fifth", "middle fifth", "fourth fifth", "weakest fifth"];
    /** The latent over the whole corpus: histogram, strongest windows, and some of each fifth. */
    function corpus(detail, k) {
      const groups = detail.seen || {};
      const top = groups.top || [];
      const parts = [];
      if (detail.histogram?.length) parts.push(histogram(detail.histogram, data.histogram_top[k] || data.max_activation[k] || 0, data.firings[k] || 0));
      const strongest = Math.max(...top.flatMap((w) => w[4].filter((_, i) => i % 2)), 0) || 1;
      const list = (some) => make("ol", { className: "windows" }, ...some.map((w) => make("li", {}, heat(w, strongest))));
      if (top.length) parts.push(make("h4", {}, "Strongest windows"), list(top.slice(0, 5)));
      if (top.length > 5) parts.push(make("details", {}, make("summary", {}, `${top.length - 5} more`), list(top.slice(5))));
      FIFTHS.forEach((name, n) => { if (groups[n + 1]) parts.push(make("details", {}, make("summary", {}, `Windows of the ${name} by strongest activation`), list(groups[n + 1]))); });
      return parts.length ? [make("h3", {}, "Where it fires in the corpus"), ...parts] : [];
    }

    // --- text of one's own, where `saeval view --serve --live` reads it ---

    const live = find('meta[name="saeval-live"]');
    let typed = "";
    let asking = 0;
    function ownText(latent, k) {
      if (!live) return [];
      const result = make("div", { role: "status" });
      const field = make("textarea", { rows: 3, maxLength: Number(live.content), value: typed, id: "typed", spellcheck: false });
      const button = make("button", { type: "submit" }, "Show activations");
      const form = make("form", { className: "tools typed" }, make("label", {}, "Text ", field), button);
      form.addEventListener("submit", () => {
        typed = field.value;
        const n = ++asking;
        const done = (...content) => { if (n === asking) { result.replaceChildren(...content); button.disabled = false; } };
        const trouble = (text) => done(make("p", { role: "alert" }, visible(text)));
        button.disabled = true;
        result.replaceChildren(make("p", { className: "muted" }, "Reading …"));
        window.saevalTyped = (number, found) => {
          if (number !== n) return;
          if (found.error) { trouble(`The text could not be read: ${found.error}.`); return; }
          const values = found.contexts.flatMap(([, activations]) => activations);
          const own = Math.max(0, ...values);
          const strongest = Math.max(own, data.max_activation[k] || 0) || 1;
          const windows = found.contexts.map(([tokens, activations]) => heat([null, null, null, tokens, activations.flatMap((v, i) => (v > 0 ? [i, v] : []))], strongest));
          const said = own > 0 ? `Fires on ${values.filter((v) => v > 0).length} of ${values.length} tokens; strongest ${brief(own)}, in the corpus ${brief(data.max_activation[k])}.` : `Does not fire on these ${values.length} tokens.`;
          done(make("p", {}, said), ...windows);
        };
        const script = make("script", { src: `../typed.js?${new URLSearchParams({ n, cell: data.cell, latent, text: field.value })}` });
        script.addEventListener("load", () => script.remove());
        script.addEventListener("error", () => trouble("The text could not be read: the server has stopped or refused it."));
        document.head.append(script);
      });
      return [make("h3", {}, "Try your own text"), form, result];
    }

    const article = find("#latent");
    let open = null;
    async function renderLatent(state) {
      const number = Number(state.get("latent"));
      const k = at.get(number);
      const places = chosen(state);
      const here = places.indexOf(k);
      if (k === undefined) {
        article.replaceChildren(make("h2", { id: "latent-title", tabIndex: -1 }, "No such latent"), make("p", {}, make("a", { href: "#" }, "All latents")));
        return;
      }
      let detail;
      try {
        detail = await detailsOf(number);
      } catch (error) {
        article.replaceChildren(make("h2", { id: "latent-title", tabIndex: -1 }, `Latent ${number}`), make("p", { role: "alert" }, `Its windows cannot be shown: ${error.message}.`));
        return;
      }
      if (read().get("latent") !== state.get("latent")) return;
      const step = (to, name, rel) => {
        const link = to === undefined ? make("span", { className: "step muted", "aria-disabled": "true" }, name) : make("a", { className: "step", href: address(data.latent[to]), rel }, name);
        link.dataset.focus = rel;
        return link;
      };
      const back = new URLSearchParams(state);
      back.delete("latent");
      const rating = state.get("rate") === "1";
      const own = detail.explanations.find(([variant]) => variant === "explanation");
      const others = detail.explanations.filter((e) => e !== own);
      const shownFirst = own || others[0];
      const byRole = { explain: detail.windows.explain || [], score: detail.windows.score || [] };
      const all = [...byRole.explain, ...byRole.score];
      const strongest = Math.max(...all.flatMap((w) => w[4].filter((_, i) => i % 2)), 0) || 1;
      const decoys = (detail.windows.decoy || []).map((w) => ({ window: w, strongest: Math.max(...w[4].filter((_, i) => i % 2), 0) || 1 }));
      const windows = new Map([...all.map((w) => [w[0], { window: w, strongest }]), ...decoys.map((d) => [d.window[0], { ...d, decoy: true }])]);
      const list = (some) => make("ol", { className: "windows" }, ...some.map((w) => make("li", {}, heat(w, strongest))));
      const facts = [["density", brief(data.density[k])], ["fires on", data.firings[k] === null ? "–" : `${data.firings[k]} tokens`], ["in", data.windows[k] === null ? "–" : `${data.windows[k]} windows`], ["strongest", brief(data.max_activation[k])], ...(rating ? [] : [["gap of scorers", shown(data.gap[k], 2)]]), ...(detail.senses ? [["senses", detail.senses]] : [])];
      const saw = byRole.explain.filter((w) => w[1]);
      const silent = byRole.explain.filter((w) => !w[1]);
      const focus = document.activeElement?.dataset?.focus;
      article.replaceChildren(
        make("div", { className: "steps" },
          step(here > 0 ? places[here - 1] : undefined, "← Previous", "prev"), step(here >= 0 ? places[here + 1] : places[0], "Next →", "next"),
          make("a", { href: `#${back}` }, "All latents"), data.neuronpedia ? make("a", { href: data.neuronpedia + number, rel: "noreferrer noopener", target: "_blank" }, "Neuronpedia ↗") : null, make("span", { className: "muted" }, here >= 0 ? `${here + 1} of ${places.length}` : "not in the filtered list")),
        make("h2", { id: "latent-title", tabIndex: -1 }, `Latent ${number}`),
        shownFirst && shownFirst[2] === "ok"
          ? make("p", { className: "explanation" }, make("bdi", {}, visible(shownFirst[1])), own ? "" : make("span", { className: "muted" }, ` (${visible(shownFirst[0])})`))
          : make("p", { className: "explanation none" }, visible(shownFirst ? `No explanation: ${shownFirst[3]}` : "Not explained.")),
        make("dl", { className: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
        ...(rating ? ratingForm(number, own, byRole.score, strongest) : [
          make("h3", {}, "Scores"), scores(k),
          ...(others.length ? [make("details", {}, make("summary", {}, "Explanations of baselines"), make("dl", {}, ...others.flatMap(([variant, text, status, reason]) => [make("dt", {}, make("b", {}, visible(variant))), make("dd", {}, make("bdi", {}, visible(status === "ok" ? text : reason || status)))])))] : []),
          ...ownText(number, k),
          ...corpus(detail, k),
          ...direction(detail),
          make("h3", {}, "Windows shown to the explainer"),
          saw.length ? list(saw) : make("p", { className: "muted" }, "No windows were kept."),
          ...(silent.length ? [make("details", {}, make("summary", {}, `${silent.length} non-activating windows`), list(silent))] : []),
          asked(number, "explain", "explanation", "Prompt and raw reply of the explainer"),
          ...judged(detail, state, windows, data.max_activation[k] || strongest),
        ]),
        make("p", { className: "keys" }, make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " previous and next latent, ", make("kbd", {}, "Esc"), " all latents", ...(rating ? [", ", make("kbd", {}, "1"), "–", make("kbd", {}, "4"), " rate the next window"] : [])),
      );
      for (const form of article.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
      document.title = `Latent ${number} – ${data.cell}`;
      if (open !== number) {
        (focus && find(`a[data-focus="${focus}"]`, article) ? find(`a[data-focus="${focus}"]`, article) : find("#latent-title")).focus({ preventScroll: true });
        scrollTo(0, article.offsetTop - 10);
      } else if (focus) find(`[data-focus="${focus}"]`, article)?.focus();
      open = number;
    }

    // --- ratings: kept in this browser under the run's name, and in a file when downloaded ---

    const place = `saeval-ratings:${data.run}:${data.sha}:${data.cell}`;
    let ratings = {};
    try { ratings = JSON.parse(localStorage.getItem(place)) || {}; } catch { /* Without storage, ratings are kept only until the page is closed. */ }
    const rater = find("#rater");
    try { rater.value = localStorage.getItem("saeval-rater") || ""; } catch { /* as above */ }
    rater.addEventListener("input", () => { try { localStorage.setItem("saeval-rater", rater.value); } catch { /* as above */ } });
    const LEVELS = ["1 – does not fit", "2 – fits loosely", "3 – mostly fits", "4 – fits exactly"];
    function keep() {
      try { localStorage.setItem(place, JSON.stringify(ratings)); } catch { /* as above */ }
      const count = Object.keys(ratings).length;
      find("#rated").textContent = count ? `${count} windows of ${new Set(Object.values(ratings).map((r) => r.latent)).size} latents rated` : "";
      find("#download").disabled = find("#forget").disabled = !count;
    }
    function ratingForm(latent, own, windows, strongest) {
      const active = windows.filter((w) => w[1]);
      if (!own || own[2] !== "ok" || !active.length) return [make("p", {}, "There is no explanation to rate, or no window to rate it on.")];
      const fields = active.map((w, n) => {
        const key = `${latent} ${w[0]}`;
        const options = LEVELS.map((name, level) => {
          const input = make("input", { type: "radio", name: `window-${n}`, value: String(level + 1), checked: ratings[key]?.rating === level + 1 });
          input.addEventListener("change", () => {
            ratings[key] = { latent, example: w[0], rating: level + 1, explanation: own[1] };
            keep();
          });
          return make("label", {}, input, name);
        });
        return make("li", {}, heat(w, strongest), make("fieldset", {}, make("legend", {}, `Window ${n + 1}`), ...options));
      });
      return [make("h3", {}, "How well does the explanation fit the marked tokens?"), make("ol", { className: "windows" }, ...fields)];
    }
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    find("#download").addEventListener("click", () => {
      const lines = Object.values(ratings).sort((a, b) => a.latent - b.latent || a.example.localeCompare(b.example, "en", { numeric: true }));
      const rows = lines.map((r) => [r.latent, r.rating, data.hookpoint, rater.value, r.example, r.explanation].map(quoted).join(","));
      const url = URL.createObjectURL(new Blob([["latent,rating,hookpoint,rater,example,explanation", ...rows].join("\r\n") + "\r\n"], { type: "text/csv" }));
      make("a", { href: url, download: `ratings-${data.folder}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    });
    find("#forget").addEventListener("click", () => {
      if (!confirm("Delete all ratings of this cell?")) return;
      ratings = {};
      keep();
      render();
    });
    find("#rate").addEventListener("change", (event) => change({ rate: event.target.checked ? "1" : null }));

    listen(window, "keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.matches?.("input:not([type=radio]):not([type=checkbox]), select, textarea");
      if (event.key === "Escape" && !article.hidden && !typing) {
        find('.steps a[href^="#"]:not([rel])', article)?.click();
      } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && !article.hidden && !typing && !event.target.matches?.("input, .wide")) {
        find(event.key === "ArrowLeft" ? 'a[rel="prev"]' : 'a[rel="next"]', article)?.click();
      } else if (/^[1-4]$/.test(event.key) && !typing && read().get("rate") === "1") {
        const field = [...article.querySelectorAll("fieldset")].find((f) => !find(":checked", f));
        find(`input[value="${event.key}"]`, field || make("p"))?.click();
      }
    });

    function render() {
      const state = read();
      if (!paged) { show(state); return; }
      prepare(state).then(() => { if (String(read()) === String(state)) show(state); },
        (error) => { find("#list-count").textContent = `Cannot be shown: ${error.message}.`; });
    }
    function show(state) {
      const one = state.has("latent");
      find("#list").hidden = one;
      article.hidden = !one;
      find("#rate").checked = state.get("rate") === "1";
      if (one) { renderLatent(state); return; }
      renderList(state);
      document.title = `${data.cell} – saeval`;
      if (open !== null) {
        ([...table.querySelectorAll("tbody a")].find((a) => a.textContent === String(open)) || find("#list-title")).focus();
        open = null;
      }
    }
    listen(window, "hashchange", render);
    keep();
    render();
  }

  // --- the page of joined runs ---

  function joined() {
    const data = JSON.parse(find("#joined").textContent);
    const value = (cell, facet) => cell.facets[facet] || "–";
    const values = (facet, cells = data.cells) => { const some = new Set(cells.map((c) => value(c, facet))); return data.values[facet].filter((v) => some.has(v)); };
    const numbered = data.facets.filter((f) => data.cells.every((c) => c.facets[f] !== undefined && c.facets[f] !== "" && Number.isFinite(Number(c.facets[f]))));
    const across = [...data.measures.map(([m, name]) => [m, name, (c) => c.measures[m]]), ...numbered.filter((f) => !data.measures.some(([m]) => m === f)).map((f) => [f, f, (c) => Number(c.facets[f])])];
    const defaults = { rank: data.rank, group: data.group, x: data.measures.some(([m]) => m === "l0") ? "l0" : "", facet: "", colour: data.telling.find((f) => data.facets.includes(f)) || "" };
    const choices = {
      rank: data.columns.map((c) => [c, c.replaceAll("_", " ")]), group: [["", "nothing"], ...data.facets.map((f) => [f, f])],
      x: [["", "place on the board"], ...across.map(([key, name]) => [key, name])], facet: [["", "none"], ...data.facets.map((f) => [f, f])], colour: [["", "one"], ...data.facets.map((f) => [f, f])],
    };
    const pick = {};
    for (const [key, options] of Object.entries(choices)) {
      pick[key] = find(`#joined-${key}`);
      pick[key].append(...options.map(([v, name]) => make("option", { value: v }, visible(name))));
      pick[key].addEventListener("change", () => change({ [key]: pick[key].value === defaults[key] ? null : pick[key].value || "-" }));
    }
    const baselines = find("#joined-baselines");
    baselines.addEventListener("change", () => change({ base: baselines.checked ? null : "0" }));
    const boxes = [];
    find("#joined-filters").append(...data.facets.filter((f) => values(f).length <= 40).map((facet) => make("fieldset", {}, make("legend", {}, visible(facet)), ...values(facet).map((v) => {
      const box = make("input", { type: "checkbox", checked: true });
      boxes.push({ facet, v, box });
      box.addEventListener("change", () => {
        const mine = boxes.filter((b) => b.facet === facet);
        const off = mine.filter((b) => !b.box.checked).map((b) => b.v);
        change({ [`not.${facet}`]: off.length ? JSON.stringify(off) : null });
      });
      return make("label", {}, box, visible(v));
    }))));
    for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
    const chosen = (state, key) => {
      const wanted = state.get(key) === "-" ? "" : state.get(key) ?? defaults[key];
      return choices[key].some(([v]) => v === wanted) ? wanted : defaults[key];
    };
    function excluded(state, facet) {
      try { return new Set(JSON.parse(state.get(`not.${facet}`) || "[]")); } catch { return new Set(); }
    }

    /** Cells with the scores of boards grouped by a facet; lifts depend on the groups, over which floors are pooled. */
    const cellsIn = (group) => data.cells.map((c, n) => ({ ...c, scores: { ...c.scores, ...data.pooled[group]?.[n] } }));

    function bar({ value: at, ci, range, floor }) {
      const known = [at, ...(ci || []), ...Object.values(floor)].filter((v) => v !== null);
      const [low, high] = [range[0] ?? Math.min(...known), range[1] ?? Math.max(...known)];
      const x = (v) => 2 + (96 * (v - low)) / (high - low || 1);
      const svg = draw("svg", { viewBox: "0 0 100 14", class: "mini", "aria-hidden": "true" });
      svg.append(draw("line", { x1: 2, x2: 98, y1: 7, y2: 7, class: "track" }));
      if (ci) svg.append(draw("line", { x1: x(ci[0]), x2: x(ci[1]), y1: 7, y2: 7, class: "bar" }));
      for (const v of Object.values(floor)) if (v !== null) svg.append(draw("line", { x1: x(v), x2: x(v), y1: 1, y2: 13, class: "floor" }));
      svg.append(draw("circle", { cx: x(at), cy: 7, r: 3.5, class: "dot" }));
      return svg;
    }
    function scoreCell(score, main) {
      if (!score) return make("td", { className: "n" }, "–");
      if (score.value === null) return make("td", { className: "n score" }, score.text, make("span", { className: "ci" }, score.between));
      return make("td", { className: "n score" }, main ? make("b", {}, score.text) : score.text, bar(score), make("span", { className: "ci" }, score.between), make("span", { className: "ci" }, visible(score.notes.join(" · "))));
    }
    const linked = (page, last, name) => (page && last ? make("a", { href: page }, name) : name);
    function table(standings, column, label) {
      const shownColumns = [column, ...data.shown.filter((h) => h !== column)];
      const facets = data.telling;
      const head = make("tr", {}, make("th", { scope: "col" }, "rank"), ...facets.map((f) => make("th", { scope: "col" }, visible(f))),
        ...shownColumns.map((c) => {
          const cut = c.lastIndexOf(".");
          const button = make("button", { type: "button" }, visible(c.slice(0, cut)), make("br"), make("span", { className: "metric" }, visible(c.slice(cut + 1)).replaceAll("_", " ")));
          button.dataset.focus = c;
          button.addEventListener("click", () => change({ rank: c === defaults.rank ? null : c, focus: c }));
          const th = make("th", { scope: "col", className: "n" }, button);
          if (c === column) th.setAttribute("aria-sort", standings.some((s) => s.cell.scores[c]?.higher === false) ? "ascending" : "descending");
          return th;
        }), ...data.measures.map(([, name]) => make("th", { scope: "col", className: "n" }, visible(name))));
      const rows = standings.map((s) => make("tr", { className: s.cell.baseline ? "baseline" : "" }, make("td", {}, make("span", { className: "rank" }, s.rank)),
        ...facets.map((f, k) => make("td", { className: "name-cell" }, linked(s.cell.page, k === facets.length - 1, make("bdi", {}, visible(value(s.cell, f)))))), ...shownColumns.map((c) => scoreCell(s.cell.scores[c], c === column)),
        ...data.measures.map(([m]) => make("td", { className: "n" }, visible(s.cell.texts[m])))));
      return make("div", { className: "wide", role: "region", tabIndex: 0, "aria-label": label }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
    }

    /** Tests of shown contestants against shown baseline coders, folded; cells are given by number. */
    function against(rows, standings, label) {
      const shownCells = new Set(standings.map((s) => s.cell.cell));
      const named = rows.map(([cell, said, baseline, ...rest]) => [data.cells[cell].cell, said, data.cells[baseline].cell, ...rest]);
      const lines = named.filter(([cell, , baseline]) => shownCells.has(cell) && shownCells.has(baseline));
      if (!lines.length) return [];
      const head = make("tr", {}, ...data.heads.map((name) => make("th", { scope: "col" }, name)));
      const body = lines.map((texts) => make("tr", {}, ...texts.map((text) => make("td", {}, make("bdi", {}, visible(text))))));
      return [make("details", {}, make("summary", {}, "Against baseline coders"),
        make("div", { className: "wide", role: "region", tabIndex: 0, "aria-label": label }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))))];
    }

    function ticks(low, high) {
      const power = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
      const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= ((high - low) / 4) * 0.999) || 1;
      return Array.from({ length: Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1 }, (_, k) => (Math.ceil(low / step - 1e-9) + k) * step);
    }
    /** One panel: scores with intervals over a measure, with axes that all panels share. */
    function panel(name, points, axes, column, xName) {
      const [W, H, L, R, T, B] = [360, 250, 46, 348, 30, 208];
      const [x, y] = [axes.x, axes.y].map(([low, high], k) => (v) => (k ? B - ((B - T) * (v - low)) / (high - low || 1) : L + ((R - L) * (v - low)) / (high - low || 1)));
      const said = points.map((p) => `${p.name} ${p.score.text} at ${brief(p.at)}`).join("; ");
      const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot", role: "img", "aria-label": `${visible(name)}: ${visible(said) || "no cells"}` });
      const text = (content, attributes) => { const t = draw("text", attributes); t.textContent = visible(content); svg.append(t); };
      for (const v of ticks(...axes.y)) { svg.append(draw("line", { x1: L, x2: R, y1: y(v), y2: y(v), class: "grid" })); text(brief(v), { x: L - 6, y: y(v) + 4, class: "tick end" }); }
      for (const v of axes.at || ticks(...axes.x)) text(brief(v), { x: x(v), y: B + 16, class: "tick middle" });
      svg.append(draw("line", { x1: L, x2: R, y1: B, y2: B, class: "axis" }));
      text(xName, { x: (L + R) / 2, y: B + 34, class: "name middle" });
      text(name, { x: 12, y: 14, class: "name" });
      const chance = points.find((p) => p.score.floor.chance !== undefined)?.score.floor.chance;
      if (chance !== undefined && chance >= axes.y[0] && chance <= axes.y[1]) svg.append(draw("line", { x1: L, x2: R, y1: y(chance), y2: y(chance), class: "chance" }));
      for (const p of points) {
        const mark = draw("g", { class: `point ${p.style}` });
        if (p.score.ci) mark.append(draw("line", { x1: x(p.at), x2: x(p.at), y1: y(p.score.ci[0]), y2: y(p.score.ci[1]), class: `whisker ${p.style}` }));
        mark.append(draw("circle", { cx: x(p.at), cy: y(p.score.value), r: 5, class: `mark ${p.style}` }));
        const note = draw("title", {});
        note.textContent = visible(`${p.name}: ${p.score.text}${p.score.ci ? `, ${p.score.between}` : ""}`);
        mark.append(note);
        svg.append(mark);
      }
      return make("figure", {}, svg);
    }
    /** Scores of cells in the order of the boards above. */
    function plot(cells, column, state) {
      const [xKey, facet, colour] = ["x", "facet", "colour"].map((key) => chosen(state, key));
      find("#plot-title").textContent = `Plot of ${column.replaceAll("_", " ")}`;
      const order = new Map(cells.map((c, k) => [c, k + 1]));
      const at = across.find(([key]) => key === xKey)?.[2] || ((c) => order.get(c));
      const colours = colour ? values(colour) : [];
      const style = (c) => (colour ? `s${colours.indexOf(value(c, colour)) % 8}` : c.baseline ? "b0" : "s0");
      const points = cells.filter((c) => (c.scores[column]?.value ?? null) !== null && Number.isFinite(at(c))).map((c) => ({
        cell: c, score: c.scores[column], at: at(c), style: style(c), name: data.telling.map((f) => value(c, f)).join(", "),
      }));
      find("#joined-legend").replaceChildren(...[...new Set(colour ? points.map((p) => value(p.cell, colour)) : [])].sort((a, b) => colours.indexOf(a) - colours.indexOf(b)).map((v) => {
        const key = draw("svg", { viewBox: "0 0 16 16", class: "key", "aria-hidden": "true" });
        key.append(draw("circle", { cx: 8, cy: 8, r: 5, class: `mark s${colours.indexOf(v) % 8}` }));
        return make("li", {}, key, " ", make("bdi", {}, visible(v)));
      }));
      if (!points.length) { find("#joined-plots").replaceChildren(make("p", { className: "muted" }, "No shown cell has both values.")); return; }
      const room = (some) => { const [low, high] = [Math.min(...some), Math.max(...some)]; const more = (high - low || Math.abs(high) || 1) * 0.08; return [low - more, high + more]; };
      const places = [...new Set(points.map((p) => p.at))];
      const axes = { at: (!xKey || numbered.includes(xKey)) && places.length <= 12 ? places : null, x: room(points.map((p) => p.at)), y: room(points.flatMap((p) => [p.score.value, ...(p.score.ci || []), ...(p.score.floor.chance === undefined ? [] : [p.score.floor.chance])])) };
      const panels = facet ? values(facet, points.map((p) => p.cell)).map((v) => [`${facet}: ${v}`, points.filter((p) => value(p.cell, facet) === v)]) : [[column.replaceAll("_", " "), points]];
      find("#joined-plots").replaceChildren(...panels.map(([name, some]) => panel(name, some, axes, column, choices.x.find(([key]) => key === xKey)[1])));
    }

    function render() {
      const state = read();
      for (const key of Object.keys(choices)) pick[key].value = chosen(state, key);
      baselines.checked = state.get("base") !== "0";
      const out = Object.fromEntries(data.facets.map((f) => [f, excluded(state, f)]));
      for (const { facet, v, box } of boxes) box.checked = !out[facet].has(v);
      const [column, group] = [chosen(state, "rank"), chosen(state, "group")];
      const all = cellsIn(group);
      const cells = all.filter((c) => (baselines.checked || !c.baseline) && data.facets.every((f) => !out[f].has(value(c, f))));
      const fits = new Set(cells);
      find("#joined-count").textContent = `${cells.length} of ${data.cells.length} cells`;
      const groups = data.boards[group].map(([v, boards]) => {
        const { by, order, ranks, notes, against: tests } = boards[column];
        return { v, by, notes, tests, standings: order.map((n, k) => ({ cell: all[n], rank: ranks[k] })).filter(({ cell }) => fits.has(cell)) };
      }).filter(({ standings }) => standings.length || !group);
      find("#joined-tables").replaceChildren(...groups.flatMap(({ v, by, notes, tests, standings }) => [
        ...(group ? [make("h3", {}, make("bdi", {}, visible(`${group}: ${v}`)))] : []), table(standings, by, `Cells ${visible(v)}`),
        make("ul", { className: "note" }, ...notes.map((n) => make("li", {}, visible(data.notes[n])))),
        ...against(tests, standings, `Against baseline coders ${visible(v)}`)]));
      plot(groups.flatMap(({ standings }) => standings.map(({ cell }) => cell)), column, state);
      if (state.get("focus")) {
        [...document.querySelectorAll("[data-focus]")].find((b) => b.dataset.focus === state.get("focus"))?.focus({ preventScroll: true });
        change({ focus: null });
      }
    }
    addEventListener("hashchange", render);
    render();
  }

  // --- the page that follows a run ---

  function follow() {
    const EVERY = 1000;
    const time = (seconds) => {
      const s = Math.round(seconds);
      return s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    };
    const count = (n) => n.toLocaleString("en");
    const grid = (label, heads, rows, none) => {
      if (!rows.length) return make("p", { className: "muted" }, none);
      const of = (cells, row) => make("tr", {}, ...cells.map((cell, k) => (k ? make(row ? "td" : "th", { className: heads[k][1] || "", ...(row ? {} : { scope: "col" }) }, cell) : make("th", { scope: row ? "row" : "col" }, cell))));
      return make("div", { className: "wide", role: "region", tabIndex: 0, "aria-label": label },
        make("table", {}, make("thead", {}, of(heads.map(([name]) => name), false)), make("tbody", {}, ...rows.map((cells) => of(cells, true)))));
    };
    function stage({ stage: name, unit, done, total, failed, seconds, ended }) {
      const left = done > 0 && done < total && !ended && seconds > 1 ? `~${time((seconds / done) * (total - done))}` : "";
      const bar = make("progress", { max: total || 1, value: ended ? total || 1 : done, "aria-label": visible(name) });
      return [visible(name), `${count(done)}/${count(total)} ${visible(unit)}`, failed ? make("span", { className: "wrong" }, count(failed)) : "0", left, time(seconds), bar];
    }
    function score({ cell, scorer, variant, metric, n, mean, failed }) {
      const own = variant === "explanation";
      return [make("bdi", {}, visible(cell)), `${visible(scorer)}: ${visible(metric).replaceAll("_", " ")}`, own ? "its own" : visible(variant), shown(mean), count(n), failed ? make("span", { className: "wrong" }, count(failed)) : "0"];
    }
    function show(run) {
      const stages = run.stages || [];
      const going = run.status === "running";
      const quiet = going && run.updated ? run.now - run.updated : 0;
      const failed = stages.reduce((sum, s) => sum + s.failed, 0);
      find("#follow-status").textContent = visible(run.status || "unknown");
      find("#follow-reason").textContent = quiet > 60 ? `Nothing has changed for ${time(quiet)}.` : visible(run.reason);
      find("#follow-report").hidden = going || !run.report;
      const rate = run.calling_seconds > 1 ? shown(run.calls / run.calling_seconds, 1) : "–";
      const spent = run.usd === undefined ? "–" : `$${shown(run.usd, 2)}${run.unknown ? ` and ${count(run.unknown)} calls of unknown price` : ""}`;
      const facts = [["Time", time(run.seconds)], ["Calls", run.calls === undefined ? "–" : count(run.calls)], ["Calls/s", rate], ["Spent", spent], ["Failed", count(failed)]];
      find("#follow-facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
      const scored = (run.scores || []).filter((s) => s.n || s.failed);
      for (const [id, content] of [
        ["stages", grid("Table of stages", [["stage"], ["done", "n"], ["failed", "n"], ["left", "n"], ["time", "n"], ["progress"]], stages.map(stage), "Nothing has begun yet.")],
        ["scores", grid("Table of scores", [["cell"], ["scorer"], ["explanation"], ["mean", "n"], ["latents", "n"], ["failed", "n"]], scored.map(score), "Nothing is scored yet.")],
        ["failures", grid("Table of failures", [["step"], ["reason", "text"], ["times", "n"]], (run.failures || []).map((f) => [visible(f.step), make("bdi", {}, visible(f.reason)), count(f.times)]), "None.")],
      ]) find(`#follow-${id}`).replaceChildren(content);
      find("#follow-said").textContent = visible((run.said || []).join("\n")) || "None.";
      document.title = `${visible(run.status)} – ${find("h1").textContent}`;
      return going;
    }
    function ask() {
      window.saevalStatus = (run) => { if (show(run)) setTimeout(ask, EVERY); };
      const script = make("script", { src: `status.js?${Date.now()}` });
      script.addEventListener("load", () => script.remove());
      script.addEventListener("error", () => { find("#follow-reason").textContent = "The server has stopped; this page shows its last report."; });
      document.head.append(script);
    }
    ask();
  }

  function start() {
    if (find("#joined")) joined();
    if (find("#board")) board();
    if (find("#search-words")) search(find("#joined") ? JSON.parse(find("#joined").textContent).searches : [["latents/", ""]]);
    if (find("#data")) latents();
    if (find("#follow-status")) follow();
  }
  start();
  if (find("#bundle")) turnPages();
})();
