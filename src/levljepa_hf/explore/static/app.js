/* The frame: tabs, theme, notices, the photo that is opened. */
"use strict";
(() => {
  const { element: el, address } = LV;
  const built = {};
  let open = null;

  function theme(name) {
    const dark = name ? name === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.getElementById("theme").textContent = dark ? "☀" : "☾";
    Object.values(built).forEach((tab) => tab.handle.redraw?.());
  }
  let kept = null;
  try { kept = localStorage.getItem("levljepa-theme"); } catch { /* a file: page may not */ }
  theme(kept);
  document.getElementById("theme").addEventListener("click", () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("levljepa-theme", name); } catch { /* as above */ }
    theme(name);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(kept));

  LV.openTab = (name) => {
    if (open === name) return;
    if (open) { built[open].panel.hidden = true; built[open].handle.hide?.(); }
    open = name;
    address.set("tab", name);
    document.querySelectorAll("#tabs button").forEach((button) => {
      button.setAttribute("aria-selected", button.dataset.tab === name);
      button.tabIndex = button.dataset.tab === name ? 0 : -1;
    });
    LV.hover(-1);
    if (!built[name]) {
      const panel = el("div", { id: `panel-${name}`, role: "tabpanel", "aria-labelledby": `tab-${name}` });
      document.getElementById("content").append(panel);
      built[name] = { panel, handle: {} };
      built[name].handle = LV.tabs[name].build(panel) || {};
    }
    built[name].panel.hidden = false;
    built[name].handle.show?.();
    scrollTo(0, 0);
  };

  LV.openPhoto = (ref) => {
    const { name, label, caption } = LV.describe(+ref.slice(1));
    let dialog = null;
    const go = (tab, then = () => {}) => el("button", { type: "button", class: "plain", onclick: () => { dialog.close(); then(); LV.openTab(tab); } }, LV.tabs[tab].title);
    const again = (tab) => { if (built[tab]) { built[tab].handle.hide?.(); built[tab].panel.remove(); delete built[tab]; } };
    dialog = el("dialog", { "aria-label": name },
      el("div", { class: "bar" }, el("b", {}, label || name), label && el("span", { class: "hint" }, name),
        el("button", { type: "button", class: "plain", style: { marginLeft: "auto" }, onclick: () => dialog.close() }, "Close")),
      caption && el("p", {}, caption),
      el("img", { src: LV.photo(ref), alt: caption || name, style: { maxWidth: "100%", maxHeight: "60vh", display: "block", margin: "0.5rem auto" } }),
      el("div", { class: "bar" }, el("span", { class: "hint" }, "Use it in"),
        !LV.isStatic && go("patches", () => { address.set("photo", ref); again("patches"); }),
        el("button", { type: "button", class: "plain", onclick: () => { dialog.close(); LV.openTab("search"); LV.tabs.search.photo(ref); } }, "Search"),
        !LV.isStatic && go("zero_shot", () => { address.set("photo", ref); again("zero_shot"); })));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    LV.hover(-1);
    dialog.showModal();
  };

  async function start() {
    try {
      LV.state = await LV.get("state");
    } catch (error) {
      document.getElementById("loading").textContent = error.message;
      return;
    }
    document.getElementById("loading").remove();
    const { models, photos } = LV.state;
    document.getElementById("subject").textContent = `${models.map((model) => model.label).join(" and ")} · ${photos.count} photos of ${photos.name}`;
    document.title = `${models.map((model) => model.label).join(", ")} · levljepa explore`;
    if (photos.broken.length) {
      LV.notice(el("details", {}, el("summary", {}, `${photos.broken.length} of ${photos.broken.length + photos.count} images do not decode and are left out.`),
        el("ul", {}, photos.broken.slice(0, 200).map(([name, reason]) => el("li", {}, el("b", {}, name), ` ${reason}`)))));
    }
    const tabs = document.getElementById("tabs");
    const names = Object.keys(LV.tabs).filter((name) => !LV.isStatic || !LV.tabs[name].live);
    names.forEach((name) => tabs.append(el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => LV.openTab(name) }, LV.tabs[name].title)));
    tabs.querySelectorAll("button").forEach((button, i) => (button.dataset.tab = names[i]));
    tabs.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = names[(names.indexOf(open) + step + names.length) % names.length];
      LV.openTab(next);
      document.getElementById(`tab-${next}`).focus();
    });
    const wanted = address.get("tab", names[0]);
    LV.openTab(names.includes(wanted) ? wanted : names[0]);
    document.documentElement.dataset.ready = "yes";
  }
  start();
})();
