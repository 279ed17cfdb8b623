/* Zero-shot: class names typed in; probabilities of a photo, accuracy and confusion of all that have labels. */
"use strict";
LV.tabs.zero_shot = {
  title: "Zero-shot",
  live: true,
  build(root) {
    const { element: el, address } = LV;
    const { models, photos } = LV.state;
    const status = LV.status();
    let readout = "", photo = address.get("photo", "p0");
    if (photo[0] !== "p") photo = "p0";
    const names = el("textarea", { rows: 6, value: (photos.class_names || ["person", "animal", "building", "landscape"]).join("\n") });
    const template = el("input", { type: "text", value: photos.template });
    const picker = LV.photoPicker("Photo", { value: photo, status, onchange: (ref) => { photo = ref; address.set("photo", ref); go(); } });
    root.append(el("div", { class: "panel" },
      LV.textNotice(),
      el("div", { class: "bar" }, LV.field("Class names, one a line", names, true), el("div", {},
        el("div", { class: "bar" }, LV.field("Prompt, {} is the name", template), LV.field("Readout", LV.select(LV.readouts(), readout, (v) => { readout = v; go(); }))),
        el("div", { class: "bar", style: { marginTop: "0.6rem" } }, picker, el("button", { type: "button", class: "main", onclick: () => go() }, "Classify"), status)))));
    const panels = models.map(() => el("div", {}));
    root.append(el("div", { class: "columns" }, models.map((model, m) => el("section", { class: "panel", "aria-label": model.label }, el("h2", {}, model.label), panels[m]))));
    const members = el("div");
    root.append(el("section", { class: "panel", style: { marginTop: "0.9rem" }, hidden: true }, members));

    function table(answer) {
      const order = answer.probabilities.map((p, i) => [p, i]).sort((a, b) => b[0] - a[0]).slice(0, 12);
      return el("table", { class: "plain" }, el("caption", { class: "hint", style: { textAlign: "left" } }, `Probabilities of the photo (softmax of ${LV.brief(answer.logit_scale)} × similarity)${photo[0] === "p" && LV.describe(+photo.slice(1)).label ? `; its label is ${LV.describe(+photo.slice(1)).label}` : ""}`),
        el("tbody", {}, order.map(([p, i]) => el("tr", {}, el("th", { scope: "row" }, answer.class_names[i]),
          el("td", {}, el("div", { class: "track" }, el("i", { style: { width: `${100 * p}%` } }))), el("td", { class: "number" }, `${(100 * p).toFixed(1)} %`)))));
    }

    function confusion(answer, m) {
      const count = answer.class_names.length, counts = answer.confusion;
      const rows = [];
      for (let i = 0; i < count; i++) {
        const total = counts.subarray(i * count, (i + 1) * count).reduce((a, b) => a + b, 0);
        rows.push(el("tr", {}, el("th", { scope: "row" }, answer.class_names[i]), Array.from({ length: count }, (_, j) => {
          const n = counts[i * count + j], share = total ? n / total : 0;
          const cell = el("button", { type: "button", title: `${answer.class_names[i]} taken for ${answer.class_names[j]}: ${n} of ${total}`, onclick: () => show(answer, i, j) }, n ? String(n) : "");
          if (n) { cell.style.background = `color-mix(in srgb, ${i === j ? "var(--good)" : "var(--warm)"} ${Math.round(20 + 75 * share)}%, var(--panel))`; }
          return el("td", {}, cell);
        })));
      }
      return el("div", { class: "confusion", tabIndex: 0, "aria-label": "Confusion matrix" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, ""), answer.class_names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));
    }

    const key = (name) => name.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "");
    function show(answer, i, j) {
      const own = photos.class_names.findIndex((name) => key(name) === key(answer.class_names[i]));
      const found = [...Array(photos.count).keys()].filter((p) => photos.labels[p] === own && answer.predicted[p] === j);
      members.parentNode.hidden = false;
      members.replaceChildren(el("h2", {}, `${answer.class_names[i]}${i === j ? ", found" : ` taken for ${answer.class_names[j]}`}: ${found.length}`),
        LV.gallery(found.slice(0, 60), { onclick: (p) => picker.set(`p${p}`) }));
      members.scrollIntoView({ block: "nearest" });
    }

    const ask = LV.latest((body) => LV.post("zero_shot", body));
    async function go() {
      const answer = await LV.quietly(status.work(ask({ class_names: LV.lines(names.value), template: template.value, readout, photo }), "Classifying…"));
      if (!answer) return;
      answer.models.forEach((one, m) => {
        if (one.error) { panels[m].replaceChildren(el("p", { class: "error" }, one.error)); return; }
        const chance = 100 / one.class_names.length;
        panels[m].replaceChildren(
          table(one),
          el("p", { style: { margin: "0.8rem 0 0" } }, one.accuracy === null
            ? el("span", { class: "hint" }, "No accuracy: no photo has one of these classes as its label.")
            : [el("span", { class: "big" }, `${(100 * one.accuracy).toFixed(1)} %`), ` of ${one.counted} photos are right under ${one.readout}; chance is ${chance.toFixed(1)} %`]),
          ...(one.confusion ? [el("h3", { style: { marginTop: "0.5rem" } }, "Rows are the true classes; a cell shows its photos"), confusion(one, m)] : []));
      });
    }
    if (models.some((model) => model.readouts.length)) go();
  },
};
