/* Patches: where a photo, and another, is like the point that is clicked; PCA; words. */
"use strict";
LV.tabs.patches = {
  title: "Patches",
  live: true,
  build(root) {
    const { element: el, address } = LV;
    const models = LV.state.models, own = Math.max(...models.map((model) => model.image_size));
    const least = Math.min(LV.state.sizes[0], own), most = LV.state.sizes[1];
    let size = +address.get("size", Math.max(LV.state.sizes[0], Math.min(own, most)));
    let photos = [address.get("photo", "p0"), address.get("photo2", LV.state.photos.count > 1 ? "p1" : "")];
    if (photos.some((ref) => ref[0] === "u")) photos = ["p0", ""]; // uploads end with the server
    let source = 0, point = { x: +address.get("x", 0.5), y: +address.get("y", 0.5) }, opacity = 0.7, text = "";
    let grids = null, maps = null;
    const status = LV.status();

    const pickers = ["Photo", "Second photo"].map((label, i) => LV.photoPicker(label, {
      value: photos[i], optional: i === 1, status,
      onchange: (ref) => { photos[i] = ref; address.set(i ? "photo2" : "photo", ref); if (source === i) source = 0; load(); },
    }));
    const resolution = LV.slider("Resolution", {
      min: least, max: most, step: 1, value: size, format: (v) => `${v} px`,
      onchange: (value) => { size = value; address.set("size", size); load(); },
    });
    const see = LV.slider("Overlay", { min: 0, max: 1, step: 0.05, value: opacity, format: (v) => `${Math.round(100 * v)} %`, oninput: (v) => { opacity = v; paint(); } });
    const words = el("input", { type: "text", placeholder: "words to look for, such as: a dog", onkeydown: (event) => { if (event.key === "Enter") find(); } });
    const hasText = models.some((model) => model.places_text);
    root.append(
      el("div", { class: "panel" },
        el("div", { class: "bar" }, pickers, resolution, see,
          LV.field("Words", words, true),
          el("button", { type: "button", class: "plain", disabled: !hasText, onclick: find }, "Find words"), status),
        el("details", { class: "hint", style: { marginTop: "0.5rem" } }, el("summary", {}, "Click or drag in a photo: where is it alike? (How to read this)"),
          el("p", {}, "The colours are the cosine of the patch at the point with every patch, of both photos; arrow keys move the point. The models see whole photos at the chosen longer side, in whole patches. PCA: the first three principal components over the patches of both photos, as colours."),
          hasText && el("p", {}, "Words: every patch goes through the projection head as if it were the class token, and is compared with the image embedding that is predicted from the text. The head never saw a patch in training, so the map may say nothing: compare it with other words.")),
        !hasText && el("p", { class: "error" }, "No model here has a text tower with LeVLJEPA's heads, so words cannot be placed.")),
    );
    const panels = el("div", { class: "columns" });
    root.append(panels);

    function lens(model, i, kind) {
      const image = el("img", { alt: i ? "The second photo" : "The photo", draggable: false });
      const canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": `${kind === "pca" ? "Principal components" : "Similarity"}, ${model.label}, ${i ? "second photo" : "photo"}` });
      const box = el("div", { class: "lens" }, image, canvas);
      const choose = (event) => {
        const at = canvas.getBoundingClientRect();
        const inside = (v) => Math.min(0.9999, Math.max(0, v));
        point = { x: inside((event.clientX - at.left) / at.width), y: inside((event.clientY - at.top) / at.height) };
        source = i; text = "";
        ask();
      };
      let down = false;
      canvas.addEventListener("pointerdown", (event) => { down = true; canvas.setPointerCapture(event.pointerId); choose(event); });
      canvas.addEventListener("pointermove", (event) => { if (down) choose(event); });
      canvas.addEventListener("pointerup", () => (down = false));
      canvas.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!moves || !grids) return;
        event.preventDefault();
        const [rows, columns] = grids.find((one) => !one.error).grids[i];
        if (source !== i) { source = i; point = { x: 0.5, y: 0.5 }; }
        point = { x: Math.min(0.9999, Math.max(0, point.x + moves[0] / columns)), y: Math.min(0.9999, Math.max(0, point.y + moves[1] / rows)) };
        text = "";
        ask();
      });
      return { box, image, canvas };
    }

    const views = models.map((model, m) => {
      const error = el("p", { class: "error", hidden: true });
      const lenses = [0, 1].map((i) => ["similar", "pca"].map((kind) => lens(model, i, kind)));
      const captions = el("figcaption");
      const bar = el("canvas", { width: 140, height: 1 });
      const low = el("span"), high = el("span"), what = el("span");
      const context = bar.getContext("2d");
      for (let x = 0; x < 140; x++) { context.fillStyle = `rgb(${LV.viridis(x / 139)})`; context.fillRect(x, 0, 1, 1); }
      const figures = el("div", { class: "figures" }, lenses.map((pair, i) => pair.map((one, k) =>
        el("figure", {}, one.box, el("figcaption", {}, k ? "PCA" : i ? "there" : "like the point")))));
      panels.append(el("section", { class: "panel", "aria-label": model.label }, el("h2", {}, model.label), error, figures,
        el("div", { class: "scale" }, what, low, bar, high), captions));
      return { lenses, error, figures, low, high, what, note: captions };
    });

    const ZOOM = 12; // pixels of the canvas for a patch, so that one can be outlined
    const small = document.createElement("canvas");
    function image(canvas, grid, alpha, color) { // grid: [rows, columns]; stretched over the photo, patches as they are
      const [rows, columns] = grid;
      small.width = columns; small.height = rows;
      const data = new ImageData(columns, rows);
      for (let p = 0; p < rows * columns; p++) data.data.set([...color(p), Math.round(255 * alpha)], 4 * p);
      small.getContext("2d").putImageData(data, 0, 0);
      canvas.width = columns * ZOOM; canvas.height = rows * ZOOM;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
    }

    function mark(canvas, grid) {
      const [rows, columns] = grid, context = canvas.getContext("2d");
      const column = Math.min(columns - 1, Math.floor(point.x * columns)), row = Math.min(rows - 1, Math.floor(point.y * rows));
      const width = Math.max(2, columns / 9);
      for (const [color, extra] of [["white", 2], ["rgb(230 30 30)", 0]]) {
        context.strokeStyle = color; context.lineWidth = width + extra;
        context.strokeRect(column * ZOOM, row * ZOOM, ZOOM, ZOOM);
      }
    }

    function paint() {
      if (!grids) return;
      views.forEach((view, m) => {
        const seen = grids[m], found = maps?.[m], problem = seen.error || found?.error;
        view.error.hidden = !problem;
        view.error.textContent = problem || "";
        view.figures.hidden = !!seen.error;
        if (seen.error) return;
        view.note.textContent = `${seen.grids.map((grid, i) => `${grid[1]} × ${grid[0]} patches at ${seen.sizes[i][1]} × ${seen.sizes[i][0]} px`).join("; ")}${seen.keeps_aspect ? "" : ". This model takes one size alone: the photos are squeezed into it."}`;
        const good = found && !found.error ? found.maps : null;
        const values = good ? good.map((one) => Array.from(one)).flat() : [0, 1];
        const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
        const predicts = models[m].readouts.includes("proj_text");
        view.what.textContent = text ? `“${text}”, ${predicts ? "proj_text" : "zeroshot: it has no predictors"}` : "cosine";
        view.low.textContent = good ? low.toFixed(2) : ""; view.high.textContent = good ? high.toFixed(2) : "";
        view.lenses.forEach((pair, i) => {
          const shown = i < seen.grids.length;
          pair.forEach((one) => (one.box.parentNode.hidden = !shown));
          if (!shown) return;
          image(pair[1].canvas, seen.grids[i], 1, (p) => seen.pca[i].subarray(3 * p, 3 * p + 3));
          if (good) image(pair[0].canvas, seen.grids[i], opacity, (p) => LV.viridis((good[i][p] - low) / (high - low || 1)));
          if (!text && i === source) pair.forEach((one) => mark(one.canvas, seen.grids[i]));
        });
      });
    }

    const refs = () => photos.filter(Boolean);
    const fetchPatches = LV.latest((refs, size) => LV.post("patches", { photos: refs, size }));
    async function load() {
      if (!photos[0]) return;
      views.forEach((view) => view.lenses.forEach((pair, i) => pair.forEach((one) => { if (photos[i]) one.image.src = LV.photo(photos[i]); })));
      const answer = await LV.quietly(status.work(fetchPatches(refs(), size), "Encoding…"));
      if (!answer) return;
      grids = answer.models; maps = null;
      await (text ? find() : ask());
    }
    const ask = LV.throttle(async () => {
      if (!grids) return;
      address.set("x", point.x.toFixed(3)); address.set("y", point.y.toFixed(3));
      const all = refs(), order = source ? [all[1], all[0]] : all;
      try {
        const answer = await LV.post("similar", { photos: order, size, ...point });
        maps = answer.models.map((one) => (one.error || !source ? one : { ...one, maps: [one.maps[1], one.maps[0]] }));
        status.classList.remove("error"); status.done("");
        paint();
      } catch (error) { status.classList.add("error"); status.done(error.message); }
    }, 0);
    async function find() {
      text = words.value.trim();
      if (!text) { status.classList.add("error"); status.done("Type some words."); return; }
      const answer = await LV.quietly(status.work(LV.post("similar", { photos: refs(), size, text }), "Looking…"));
      if (!answer) return;
      maps = answer.models;
      paint();
    }
    load();
  },
};
