// Draws the layered graphs of a page: pan, zoom, hover, a slider over the number of edges, and filters by kind and name.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const GAP_Y = 62, HEIGHT = 20, STEP = 14, LETTER = 7.2;
  const MANY = 2000; // edges; of more, those of a kind and a width are one path, which is drawn ten times as fast
  const make = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };

  function start(figure) {
    const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const svg = figure.querySelector("svg"), slider = figure.querySelector(".graph-slider"), note = figure.querySelector(".graph-note");
    const count = figure.querySelector(".graph-count"), legend = figure.querySelector(".graph-legend"), hint = note.textContent;
    const colors = data.kinds.map((kind) => kind[1]);
    const hidden = new Set(), filter = figure.querySelector(".graph-filter");
    const present = new Set(data.edges.map((edge) => edge[2]));
    data.kinds.forEach(([name, color], kind) => {
      if (!present.has(kind)) return;
      const item = document.createElement("button"), dot = document.createElement("i");
      item.type = "button";
      item.setAttribute("aria-pressed", "true");
      item.title = `Show or hide edges: ${name}`;
      dot.style.background = color;
      item.append(dot, name);
      item.addEventListener("click", () => {
        if (!hidden.delete(kind)) hidden.add(kind);
        item.setAttribute("aria-pressed", String(!hidden.has(kind)));
        show(toEdges(Number(slider.value)));
      });
      legend.append(item);
    });
    // words are alternatives: "a3. m5" shows what touches a head of block 3 or the MLP of block 5
    const named = (number, words) => words.some((word) => data.nodes[number][0].toLowerCase().includes(word));
    function passing(shown) {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      return data.edges.slice(0, shown).filter((edge) => !hidden.has(edge[2]) && (!words.length || named(edge[0], words) || named(edge[1], words)));
    }
    const largest = Math.max(1e-12, ...data.edges.map((edge) => Math.abs(edge[3] ?? 0)));
    const view = { x: 0, y: 0, scale: 1 };
    let size = [1, 1], pinned = null, stage = null, marks = null, lines = [], places = new Map(), boxes = new Map();

    // The slider is logarithmic: circuits have few edges of many.
    const toEdges = (value) => Math.max(1, Math.round(Math.exp((value / 1000) * Math.log(data.edges.length))));
    const toValue = (edges) => (data.edges.length > 1 ? Math.round((1000 * Math.log(edges)) / Math.log(data.edges.length)) : 1000);

    function course(edge) {
      const [x1, y1] = places.get(edge[0]), [x2, y2] = places.get(edge[1]), bend = Math.max(16, Math.min(90, (y1 - y2) / 2));
      const shift = edge[2] < 3 ? (edge[2] - 1) * 14 : 0; // queries, keys and values enter side by side
      return `M${x1},${y1 - HEIGHT / 2} C${x1},${y1 - bend} ${x2 + shift},${y2 + bend} ${x2 + shift},${y2 + HEIGHT / 2}`;
    }
    const width = (edge) => 0.8 + 2.2 * Math.sqrt(edge[3] === null ? 1 : Math.abs(edge[3]) / largest);
    const text = (edge) => `${data.nodes[edge[0]][0]} → ${data.nodes[edge[1]][0]}${edge[2] < 3 ? "." + data.kinds[edge[2]][2] : ""}` + (edge[3] === null ? "" : `, ${data.weight} ${edge[3].toPrecision(4)}`);

    function one(edge, parent) {
      const line = make("path", { d: course(edge), class: "graph-edge", stroke: colors[edge[2]], "stroke-width": width(edge).toFixed(2) }, parent);
      line.addEventListener("pointerenter", () => { line.classList.add("marked"); note.textContent = text(edge); });
      line.addEventListener("pointerleave", () => { if (pinned === null) line.classList.remove("marked"); note.textContent = hint; });
      return line;
    }
    function together(edges, parent) {
      const groups = new Map();
      for (const edge of edges) {
        const key = `${edge[2]} ${width(edge).toFixed(0)}`;
        if (!groups.has(key)) groups.set(key, []);
        groups.get(key).push(course(edge));
      }
      for (const [key, courses] of groups) {
        const [kind, size] = key.split(" ");
        make("path", { d: courses.join(" "), class: "graph-edge", stroke: colors[Number(kind)], "stroke-width": size }, parent);
      }
    }

    function draw(shown) {
      const edges = passing(shown), rows = new Map();
      places = new Map();
      const used = new Set(edges.flatMap((edge) => [edge[0], edge[1]]));
      data.nodes.forEach((node, number) => {
        if (!used.has(number)) return;
        if (!rows.has(node[1])) rows.set(node[1], []);
        rows.get(node[1]).push(number);
      });
      const levels = [...rows.keys()].sort((a, b) => a - b), widest = Math.max(1, ...levels.map((level) => rows.get(level).length));
      // names that stand beside others must fit
      const beside = levels.filter((level) => rows.get(level).length > 1).flatMap((level) => rows.get(level));
      const gapX = 20 + LETTER * beside.reduce((most, number) => Math.max(most, data.nodes[number][0].length), 7);
      const gap = Math.min(2 * gapX, Math.max(gapX, (svg.clientWidth || 800) / widest));
      levels.forEach((level, depth) => {
        const row = rows.get(level);
        row.sort((a, b) => data.nodes[a][2] - data.nodes[b][2] || a - b);
        row.forEach((number, place) => {
          const x = (place - (row.length - 1) / 2) * gap + (widest * gap) / 2, y = (levels.length - depth - 0.4) * GAP_Y;
          places.set(number, [x, y - data.nodes[number][2] * STEP]);
        });
      });
      size = [widest * gap, Math.max(1, levels.length) * GAP_Y];
      svg.style.height = `${Math.min(1500, Math.max(380, size[1] + 20))}px`; // deep models get a tall drawing, so that names can be read
      svg.replaceChildren();
      stage = make("g", {}, svg);
      const under = make("g", {}, stage), over = make("g", {}, stage);
      marks = make("g", {}, under);
      for (const [from, to] of data.links) {
        if (!places.has(from) || !places.has(to)) continue;
        const [x1, y1] = places.get(from), [x2, y2] = places.get(to);
        make("line", { x1, y1: y1 - HEIGHT / 2, x2, y2: y2 + HEIGHT / 2, class: "graph-link" }, under);
      }
      lines = edges.map((edge) => [edges.length > MANY ? null : one(edge, under), edge]);
      if (edges.length > MANY) together(edges, under);
      boxes = new Map();
      for (const [number, [x, y]] of places) {
        const box = make("g", { class: "graph-node", transform: `translate(${x},${y})` }, over), name = data.nodes[number][0];
        const across = 12 + LETTER * name.length;
        make("rect", { x: -across / 2, y: -HEIGHT / 2, width: across, height: HEIGHT, rx: 5 }, box);
        make("text", { "text-anchor": "middle", y: 4 }, box).textContent = name;
        box.dataset.name = name;
        box.addEventListener("pointerenter", () => { if (pinned === null) mark(number); });
        box.addEventListener("pointerleave", () => { if (pinned === null) mark(null); });
        box.addEventListener("click", () => { pinned = pinned === number ? null : number; mark(pinned); });
        boxes.set(number, box);
      }
      const share = 100 * (1 - shown / data.total);
      count.textContent = `${shown.toLocaleString("en")} of ${data.total.toLocaleString("en")} edges, ${share.toFixed(share > 99 ? 2 : 1)} % sparse` + (shown === data.kept ? ` (${data.whole})` : shown < data.kept ? ` (${data.whole}: ${data.kept.toLocaleString("en")})` : "")
        + (edges.length < shown ? `; the filter leaves ${edges.length.toLocaleString("en")}` : "");
      svg.dataset.edges = edges.length;
      svg.dataset.nodes = places.size;
    }

    function mark(number) {
      const near = new Set([number]);
      let into = 0, out = 0;
      marks.replaceChildren();
      for (const [line, edge] of lines) {
        const mine = number !== null && (edge[0] === number || edge[1] === number);
        if (line !== null) line.classList.toggle("marked", mine);
        else if (mine) one(edge, marks).classList.add("marked");
        if (mine) { near.add(edge[0]); near.add(edge[1]); if (edge[0] === number) out += 1; else into += 1; }
      }
      for (const [each, box] of boxes) box.classList.toggle("dim", number !== null && !near.has(each));
      svg.classList.toggle("marking", number !== null);
      note.textContent = number === null ? hint : `${data.nodes[number][0]}: ${into} edges in, ${out} out`;
    }

    const place = () => stage.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.scale})`);
    function fit() {
      const width = svg.clientWidth || 800, height = svg.clientHeight || 600;
      view.scale = Math.min(width / size[0], height / size[1], 1.4);
      view.x = (width - size[0] * view.scale) / 2;
      view.y = (height - size[1] * view.scale) / 2;
      place();
    }
    function zoom(factor, x, y) {
      const next = Math.min(6, Math.max(0.05, view.scale * factor));
      view.x = x - ((x - view.x) * next) / view.scale;
      view.y = y - ((y - view.y) * next) / view.scale;
      view.scale = next;
      place();
    }
    svg.addEventListener("wheel", (event) => {
      if (document.activeElement !== svg && !event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      const area = svg.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY / 400), event.clientX - area.left, event.clientY - area.top);
    }, { passive: false });
    let drag = null;
    svg.addEventListener("pointerdown", (event) => { drag = [event.clientX - view.x, event.clientY - view.y]; });
    window.addEventListener("pointerup", () => { drag = null; });
    window.addEventListener("pointermove", (event) => {
      if (drag === null) return;
      view.x = event.clientX - drag[0];
      view.y = event.clientY - drag[1];
      place();
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      if (!step) return;
      event.preventDefault();
      view.x += step[0];
      view.y += step[1];
      place();
    });
    figure.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
      if (button.dataset.zoom === "fit") return fit();
      zoom(button.dataset.zoom === "in" ? 1.4 : 1 / 1.4, svg.clientWidth / 2, svg.clientHeight / 2);
    }));
    const show = (edges) => { pinned = null; svg.classList.remove("marking"); draw(edges); fit(); };
    slider.addEventListener("input", () => show(toEdges(Number(slider.value))));
    filter.addEventListener("input", () => show(toEdges(Number(slider.value))));
    slider.value = toValue(data.first);
    show(data.first);
  }

  for (const figure of document.querySelectorAll("[data-graph]")) {
    try {
      start(figure);
    } catch (error) {
      figure.querySelector(".graph-note").textContent = `The graph could not be drawn: ${error.message}`;
    }
  }
})();
