/* Search: words or a photo; the nearest photos in each model, marked in its map. */
"use strict";
LV.tabs.search = {
  title: "Search",
  build(root) {
    const { element: el, address } = LV;
    const { models, photos } = LV.state;
    const status = LV.status();
    let readout = address.get("readout", ""), feature = "", last = null;
    const hasText = models.some((model) => model.readouts.length);
    const words = LV.isStatic
      ? LV.select(LV.state.prompts, LV.state.prompts[0], () => go({ text: words.value }))
      : el("input", { type: "text", value: address.get("q", ""), placeholder: "words, such as: a dog on a beach", onkeydown: (event) => { if (event.key === "Enter") go({ text: words.value }); } });
    const picker = LV.photoPicker("or a photo", { status, onchange: (ref) => ref && go({ photo: ref }), optional: true });
    const submit = !LV.isStatic && el("button", { type: "button", class: "main", disabled: !hasText, onclick: () => go({ text: words.value }) }, "Search");
    root.append(el("div", { class: "panel" },
      el("div", { class: "bar" }, hasText && LV.field(LV.isStatic ? "Words (those of the export)" : "Words", words, true), submit, picker,
        !LV.isStatic && hasText && LV.field("Readout, of words", LV.select(LV.readouts(), readout, (v) => { readout = v; address.set("readout", v); again(); })),
        !LV.isStatic && LV.field("Compare, of photos", LV.select(LV.features(), feature, (v) => { feature = v; again(); })), status),
      LV.textNotice(),
      !LV.isStatic && el("div", { class: "legend", style: { marginTop: "0.5rem" } }, "Try: ", LV.state.prompts.slice(0, 6).map((prompt) => el("button", { type: "button", onclick: () => { words.value = prompt; go({ text: prompt }); } }, el("u", {}, prompt))))));
    const maps = models.map((model) => new LV.ScatterMap({
      small: true, label: `Map of ${model.label}, with the photos that were found`,
      onhover: hover, onopen: (i) => LV.openPhoto(`p${i}`),
    }));
    const results = models.map(() => el("div", {}, el("p", { class: "hint" }, "Nothing yet.")));
    const titles = models.map((model) => el("h2", {}, model.label));
    root.append(el("div", { class: "columns" }, models.map((model, m) => el("section", { class: "panel", "aria-label": model.label }, titles[m], results[m], el("h3", { style: { marginTop: "0.8rem" } }, "Where they are (PCA); the brighter, the more similar"), maps[m].node))));

    let scores = [];
    function hover(i, x, y) {
      maps.forEach((map) => map.setHovered(i));
      const note = i < 0 ? "" : scores.map((one, m) => (one ? `${models.length > 1 ? models[m].label + " " : ""}${one[i].toFixed(3)}` : "")).filter(Boolean).join("; ");
      LV.hover(i, x, y, note);
    }
    async function project() {
      const answer = await LV.quietly(LV.isStatic ? LV.folder("space-pca") : LV.post("space", { method: "pca" }));
      answer?.models.forEach((one, m) => { if (!one.error) maps[m].setPoints(one.points); });
    }
    async function fromFolder(query) {
      if (query.text) return (await LV.folder("search"))[LV.state.prompts.indexOf(query.text)];
      const found = await LV.folder("neighbours"), i = +query.photo.slice(1);
      return { models: found.models.map((one) => {
        if (one.error) return one;
        const k = one.indices.shape[1];
        return { indices: Array.from(one.indices.subarray(i * k, i * k + k)), scores: Array.from(one.scores.subarray(i * k, i * k + k)), by: one.by };
      }) };
    }
    const ask = LV.latest((query) => (LV.isStatic ? fromFolder(query) : LV.post("search", { ...query, readout, feature, k: 24 })));
    async function go(query) {
      last = query;
      if (query.text !== undefined) { picker.set("", true); address.set("q", query.text); }
      const answer = await LV.quietly(status.work(ask(query), "Searching…"));
      if (!answer) return;
      scores = answer.models.map((one) => one.all);
      answer.models.forEach((one, m) => {
        if (one.error) { results[m].replaceChildren(el("p", { class: "error" }, one.error)); maps[m].setMarked([]); return; }
        titles[m].textContent = `${models[m].label} · ${one.by}`;
        results[m].replaceChildren(LV.gallery(one.indices, { scores: one.scores, onclick: (i) => LV.openPhoto(`p${i}`), onhover: (i) => maps.forEach((map) => map.setHovered(i)) }));
        maps[m].setMarked(one.indices.slice(0, 12));
        if (!one.all) return;
        const low = one.all.reduce((a, b) => Math.min(a, b)), high = one.all.reduce((a, b) => Math.max(a, b));
        maps[m].setColors(Array.from(one.all, (s) => Math.min(11, Math.floor((12 * (s - low)) / (high - low || 1)))), Array.from({ length: 12 }, (_, k) => `rgb(${LV.viridis(k / 11)})`));
      });
    }
    const again = () => last && go(last);
    project();
    if (hasText && (LV.isStatic || words.value)) go({ text: words.value });
    this.photo = (ref) => { picker.set(ref); };
    return { redraw: () => maps.forEach((map) => map.draw()) };
  },
};
