/* Space: a map of the photos for each model, linked. */
"use strict";
LV.tabs.space = {
  title: "Space",
  build(root) {
    const { element: el, address } = LV;
    const { models, photos } = LV.state, two = models.length > 1;
    const choices = { method: address.get("method", LV.state.methods[0]), feature: address.get("feature", ""), color: address.get("color", photos.class_names ? "label" : "none") };
    const status = LV.status();
    let prompts = [...LV.state.prompts], selected = [], groups = null, names = [], values = null;

    const colorings = [["none", "one colour"]];
    if (photos.class_names) colorings.unshift(["label", "label"]);
    if (models.some((model) => model.readouts.length)) colorings.push(["prompt", "nearest prompt"]);
    if (two) colorings.push(["agreement", "agreement of the two models"]);
    const lasso = el("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: () => {
      const on = lasso.getAttribute("aria-pressed") !== "true";
      lasso.setAttribute("aria-pressed", on);
      maps.forEach((map) => map.setLasso(on));
    } }, "Lasso");
    const area = el("textarea", { rows: 5, value: prompts.join("\n"), "aria-label": "Prompts, one a line", readOnly: LV.isStatic });
    const promptBox = el("details", { class: "panel" }, el("summary", {}, "Prompts"),
      el("p", { class: "hint" }, "Each photo has the colour of the prompt that is most similar, under the readout to quote for the model. One a line."),
      area, !LV.isStatic && el("div", { class: "bar", style: { marginTop: "0.5rem" } }, el("button", { type: "button", class: "main", onclick: () => { prompts = LV.lines(area.value); recolor(); } }, "Colour")));
    const controls = el("div", { class: "bar" },
      LV.field("Projection", LV.select(LV.state.methods.map((name) => [name, { pca: "PCA", tsne: "t-SNE", umap: "UMAP" }[name]]), choices.method, (v) => { choices.method = v; address.set("method", v); load(); })),
      LV.field("Of", LV.select(LV.isStatic ? [["", "best of each model"]] : LV.features(), choices.feature, (v) => { choices.feature = v; address.set("feature", v); load(); })),
      LV.field("Colour", LV.select(colorings, choices.color, (v) => { choices.color = v; address.set("color", v); recolor(); })),
      lasso,
      el("button", { type: "button", class: "plain", onclick: () => { maps.forEach((map) => map.reset()); select([]); } }, "Reset"),
      status);
    root.append(el("div", { class: "panel" }, controls,
      el("p", { class: "hint", style: { margin: "0.5rem 0 0" } }, "Drag to pan, wheel to zoom (photos appear), shift and drag (or Lasso) to select; a click opens a photo. On the keyboard: arrows, + and −, 0, Escape.")));
    const maps = models.map((model) => new LV.ScatterMap({
      label: `Map of ${photos.count} photos as ${model.label} sees them`,
      onhover: (i, x, y) => hover(i, x, y), onselect: select,
      onopen: (i) => LV.openPhoto(`p${i}`),
    }));
    const errors = models.map(() => el("p", { class: "error", hidden: true }));
    root.append(el("div", { class: "columns" }, models.map((model, m) => el("section", { class: "panel", "aria-label": model.label }, el("h2", {}, model.label), errors[m], maps[m].node))));
    const legend = el("div", { class: "legend" }), chosen = el("div");
    const legendBox = el("div", { class: "panel", hidden: true }, legend);
    root.append(el("section", { class: "panel", style: { marginTop: "0.9rem" }, "aria-label": "Selected photos" }, el("h2", {}, "Selected"), chosen), promptBox, legendBox);

    function hover(i, x, y) {
      maps.forEach((map) => map.setHovered(i));
      if (i < 0) return LV.hover(-1);
      let note = "";
      if (choices.color === "prompt" && groups) note = groups.map((one, m) => (one ? `${two ? models[m].label + ": " : ""}${names[one[i]]}` : "")).filter(Boolean).join("; ");
      if (choices.color === "agreement" && values) note = `${Math.round(100 * values[i])} % of neighbours in common`;
      LV.hover(i, x, y, note);
    }

    function select(indices) {
      selected = indices;
      let mask = null;
      if (indices.length) { mask = new Uint8Array(photos.count); indices.forEach((i) => (mask[i] = 1)); }
      maps.forEach((map) => map.setSelected(mask));
      if (!indices.length) { chosen.replaceChildren(el("p", { class: "hint" }, "None. Draw around points in a map.")); return; }
      const counts = {};
      indices.forEach((i) => { const { label } = LV.describe(i); if (label) counts[label] = (counts[label] || 0) + 1; });
      const most = Object.entries(counts).sort((a, b) => b[1] - a[1]).slice(0, 8).map(([name, n]) => `${name} ${n}`).join(", ");
      const shown = indices.slice(0, 60);
      chosen.replaceChildren(
        el("p", {}, el("b", {}, `${indices.length} photos`), most ? `: ${most}` : "", indices.length > 60 ? "; the first 60 are shown" : ""),
        LV.gallery(shown, { onclick: (i) => LV.openPhoto(`p${i}`), onhover: (i) => maps.forEach((map) => map.setHovered(i)) }));
    }

    function showLegend(colors, counts) {
      legendBox.hidden = names.length < 2;
      legend.replaceChildren(...names.map((name, g) => el("button", { type: "button", title: "Select these", onclick: () => select([...Array(photos.count).keys()].filter((i) => (groups[0] || groups[1])[i] === g)) },
        el("i", { style: { background: colors[g] } }), `${name}${counts ? ` ${counts[g]}` : ""}`)));
    }

    const recolor = async () => {
      promptBox.hidden = choices.color !== "prompt";
      values = null;
      if (choices.color === "label") {
        names = [...photos.class_names, "no label"];
        groups = models.map(() => Array.from(photos.labels, (label) => (label < 0 ? names.length - 1 : label)));
      } else if (choices.color === "prompt") {
        promptBox.open = true;
        const answer = await LV.quietly(status.work(LV.isStatic ? LV.folder("prompts") : LV.post("prompts", { prompts }), "Comparing…"));
        if (!answer || choices.color !== "prompt") return;
        names = answer.prompts;
        groups = answer.models.map((one) => one.nearest);
        answer.models.forEach((one, m) => say(m, one.error));
      } else if (choices.color === "agreement") {
        const answer = await LV.quietly(status.work(LV.isStatic ? LV.folder("agreement") : LV.post("agreement", { feature: choices.feature }), "Comparing neighbours…"));
        if (!answer || choices.color !== "agreement") return;
        values = answer.values;
        const steps = 12, mean = values.reduce((a, b) => a + b, 0) / values.length;
        const colors = Array.from({ length: steps }, (_, k) => `rgb(${LV.viridis(k / (steps - 1))})`);
        names = [];
        groups = models.map(() => Array.from(values, (v) => Math.min(steps - 1, Math.floor(v * steps))));
        maps.forEach((map, m) => map.setColors(groups[m], colors));
        const scale = el("canvas", { width: 140, height: 1 }), context = scale.getContext("2d");
        for (let x = 0; x < 140; x++) { context.fillStyle = `rgb(${LV.viridis(x / 139)})`; context.fillRect(x, 0, 1, 1); }
        legendBox.hidden = false;
        legend.replaceChildren(el("div", { class: "scale" }, "0 %", scale, "100 %", el("span", {}, `of a photo's 20 nearest neighbours that both models share; mean ${(100 * mean).toFixed(1)} %, by chance ${(100 * answer.chance).toFixed(1)} %`)));
        return;
      } else {
        names = ["photo"];
        groups = models.map(() => new Uint8Array(photos.count));
      }
      const colors = LV.palette(names.length);
      if (names[names.length - 1] === "no label") colors[names.length - 1] = "#9aa0a8";
      maps.forEach((map, m) => map.setColors(groups[m] || new Uint8Array(photos.count), groups[m] ? colors : ["#9aa0a8"]));
      const reference = groups.find(Boolean), counts = names.map(() => 0);
      Array.from(reference).forEach((g) => counts[g]++);
      if (names[names.length - 1] === "no label" && !counts[names.length - 1]) names.pop();
      showLegend(colors, choices.color === "prompt" && two ? null : counts);
    };
    const say = (m, error) => { errors[m].hidden = !error; errors[m].textContent = error || ""; };

    const ask = LV.latest(() => (LV.isStatic ? LV.folder(`space-${choices.method}`) : LV.post("space", { method: choices.method, feature: choices.feature })));
    async function load() {
      const answer = await LV.quietly(status.work(ask(), choices.method === "pca" ? "Projecting…" : "Projecting (once; then it is kept)…"));
      if (!answer) return;
      answer.models.forEach((one, m) => { say(m, one.error); maps[m].setPoints(one.error ? new Float32Array(0) : one.points); });
      if (!groups) await recolor(); else if (choices.color === "agreement") await recolor();
    }
    select([]);
    load();
    this.maps = maps;
    return { redraw: () => { maps.forEach((map) => map.draw()); recolor(); } };
  },
};
