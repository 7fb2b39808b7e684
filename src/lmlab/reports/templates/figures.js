// Draws the figures of the page in the colors of its theme, and again when the theme changes.
(() => {
  "use strict";
  const dark = JSON.parse(document.getElementById("figure-palette").textContent);
  const figures = [...document.querySelectorAll("script[data-figure]")].map((source) => ({
    source,
    area: document.getElementById(source.dataset.figure),
    drawn: false,
  }));
  const CONFIG = { responsive: true, displayModeBar: false, displaylogo: false, showTips: false };

  const recolor = (value) => {
    if (typeof value === "string") return dark[value] ?? value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(recolor);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, recolor(item)]));
  };

  const merge = (base, extra) => {
    const merged = { ...base };
    for (const [key, item] of Object.entries(extra)) {
      const nested = item !== null && typeof item === "object" && !Array.isArray(item);
      merged[key] = nested ? merge(base?.[key] ?? {}, item) : item;
    }
    return merged;
  };

  const themeColors = () => {
    const style = getComputedStyle(document.documentElement);
    const css = (name) => style.getPropertyValue(name).trim();
    const text = css("--text-muted");
    const scale = (names) => names.map((name, index) => [index / (names.length - 1), css(name)]);
    const axis = { color: text, gridcolor: css("--grid"), linecolor: css("--grid"), zerolinecolor: css("--grid") };
    const sequential = scale(["--heat-0", "--heat-1", "--heat-2", "--heat-3"]);
    const polar = { bgcolor: "rgba(0,0,0,0)", angularaxis: axis, radialaxis: axis };
    return {
      isDark: css("--scheme") === "dark",
      layout: {
        font: { color: text },
        xaxis: axis,
        yaxis: axis,
        polar,
        scene: { xaxis: axis, yaxis: axis, zaxis: axis },
        annotationdefaults: { font: { color: css("--text") } },
        hoverlabel: {
          bgcolor: css("--surface-raised"),
          bordercolor: css("--border-strong"),
          font: { color: css("--text") },
        },
        colorscale: {
          sequential,
          sequentialminus: [...sequential].reverse().map(([, color], index) => [index / 3, color]),
          diverging: scale(["--heat-minus-2", "--heat-minus-1", "--heat-zero", "--heat-plus-1", "--heat-plus-2"]),
        },
      },
      errorBars: css("--text"),
    };
  };

  const draw = (figure, theme) => {
    let { data, layout } = JSON.parse(figure.source.textContent);
    if (theme.isDark) [data, layout] = [recolor(data), recolor(layout)];
    layout.template.layout = merge(layout.template.layout, theme.layout);
    for (const bar of layout.template.data.bar) bar.error_y.color = theme.errorBars;
    figure.drawn = true;
    Plotly.react(figure.area, data, layout, CONFIG);
  };

  // One figure that cannot be drawn says so and leaves the others alone.
  const tryToDraw = (figure, theme) => {
    try {
      draw(figure, theme);
    } catch (error) {
      console.error(error);
      Plotly.purge(figure.area);
      figure.area.textContent = "This figure could not be drawn.";
    }
  };

  const isFolded = (figure) => figure.area.closest("details:not([open])") !== null;

  const drawAll = () => {
    const theme = themeColors();
    for (const figure of figures) {
      if (isFolded(figure)) figure.drawn = false; // it has no width yet
      else tryToDraw(figure, theme);
    }
  };

  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      const theme = themeColors();
      for (const figure of figures) {
        if (!figure.drawn && !isFolded(figure)) tryToDraw(figure, theme);
      }
    });
  }
  document.addEventListener("themechange", drawAll);
  drawAll();
})();
