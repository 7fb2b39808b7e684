// The color theme: the system's, or the one that the reader chose. Runs before the first paint.
(() => {
  "use strict";
  const KEY = "lmlab-report-theme";
  const NAMES = ["auto", "light", "dark"];
  const root = document.documentElement;

  const stored = () => {
    try {
      const name = localStorage.getItem(KEY);
      return NAMES.includes(name) ? name : "auto";
    } catch {
      return "auto"; // storage is switched off
    }
  };

  const store = (name) => {
    try {
      localStorage.setItem(KEY, name);
    } catch {
      // The choice lasts as long as the page.
    }
  };

  let theme = stored();
  const announce = () => document.dispatchEvent(new Event("themechange"));
  const apply = (name) => {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
  };
  apply(theme);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", announce);

  const label = (button) => {
    const name = theme[0].toUpperCase() + theme.slice(1);
    button.textContent = name;
    button.dataset.choice = theme;
    button.setAttribute("aria-label", `Color theme: ${name}. Change it.`);
    button.title = "Change the color theme";
  };

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme-toggle");
    label(button);
    button.hidden = false;
    button.addEventListener("click", () => {
      theme = NAMES[(NAMES.indexOf(theme) + 1) % NAMES.length];
      store(theme);
      apply(theme);
      label(button);
      announce();
    });
    markCurrentSection();
  });

  // Paper is light, and shows what is folded.
  let folded = [];
  addEventListener("beforeprint", () => {
    apply("light");
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
    announce();
  });
  addEventListener("afterprint", () => {
    apply(theme);
    for (const details of folded) details.open = false;
    announce();
  });

  // The entry of the contents that the reader is at.
  const markCurrentSection = () => {
    const links = [...document.querySelectorAll(".contents a")];
    const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
    if (!links.length) return;
    // A section is current once its heading is this close to the top, however tall the window is: of several short
    // sections in view the first is read.
    const NEAR_TOP = 112;
    let waiting = false;
    const mark = () => {
      waiting = false;
      const tops = sections.map((section) => section.getBoundingClientRect().top);
      const atEnd = innerHeight + scrollY >= root.scrollHeight - 4 && scrollY > 0;
      const chosen = links.findIndex((link) => link.hash === location.hash);
      const passed = tops.filter((top) => top < NEAR_TOP).length;
      // The end of the page brings no section to the top; the one that was asked for is meant if it is in view.
      const last = chosen >= 0 && tops[chosen] >= 0 ? chosen : links.length - 1;
      const current = atEnd ? last : Math.max(passed - 1, 0);
      links.forEach((link, index) => {
        if (index === current) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    };
    const schedule = () => {
      if (!waiting) requestAnimationFrame(mark);
      waiting = true;
    };
    addEventListener("scroll", schedule, { passive: true });
    addEventListener("resize", schedule, { passive: true });
    mark();
  };
})();
