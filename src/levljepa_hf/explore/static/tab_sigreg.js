/* SIGReg: a cloud on its way to N(0, I) down the gradient that the package computes; and a model's own embeddings. */
"use strict";
LV.tabs.sigreg = {
  title: "SIGReg",
  build(root) {
    const { element: el, address } = LV;
    const limits = LV.state.limits, still = LV.isStatic;
    const settings = { shape: address.get("shape", LV.state.shapes[0]), num_samples: 1000, dim: 2, seed: 0, num_directions: 64, num_knots: 17, t_max: 3, step_size: 0.5 };
    const status = LV.status();
    let id = null, queue = [], cloud = null, values = [], stepOf = 0, floor = 1, arrows = null, playing = false, angle = 0, asking = false, shownSteps = [];

    const slider = (label, name, [min, max], step, format = String, restart = false) => LV.slider(label, {
      min, max, step, value: settings[name], format,
      onchange: (value) => { settings[name] = value; if (restart) begin(); },
    });
    const power = (label, name, [low, high], restart = false) => LV.slider(label, { // by powers of two
      min: Math.log2(low), max: Math.log2(high), step: 1, value: Math.log2(settings[name]), format: (v) => String(2 ** v),
      onchange: (v) => { settings[name] = 2 ** v; if (restart) begin(); },
    });
    const play = el("button", { type: "button", class: "main", onclick: () => toggle() }, "Run");
    const angleSlider = LV.slider("Direction", { min: 0, max: 180, step: 1, value: angle, format: (v) => `${v}°`, oninput: (v) => { angle = v; draw(); } });
    const speed = LV.slider("Steps a second", { min: 2, max: 30, step: 1, value: 15, format: String, oninput: () => {} });
    root.append(el("div", { class: "panel" },
      el("div", { class: "bar" },
        LV.field("Shape", LV.select(LV.state.shapes, settings.shape, (v) => { settings.shape = v; address.set("shape", v); begin(); })),
        ...(still ? [] : [
          slider("Samples", "num_samples", [50, limits.num_samples[1]], 50, String, true),
          power("Dimensions", "dim", [2, 64], true),
          power("Directions", "num_directions", [1, 512]),
          slider("Knots", "num_knots", [3, 33], 1),
          slider("Last knot", "t_max", [1, 6], 0.5),
          slider("Step size", "step_size", [0.05, 3], 0.05, (v) => v.toFixed(2)),
        ]),
        speed,
        play,
        !still && el("button", { type: "button", class: "plain", onclick: () => { toggle(false); advance(1); } }, "One step"),
        el("button", { type: "button", class: "plain", onclick: () => begin() }, "Anew"),
        status),
      el("p", { class: "hint", style: { margin: "0.6rem 0 0" } },
        still ? "Computed by the package's SIGReg when this page was exported: 400 samples, 64 fresh directions a step, 17 knots, step size 0.5."
          : "Every step is a gradient step on the package's own SIGReg, with fresh directions, as in training. In more than two dimensions the cloud is shown in its first two principal axes.")));

    const canvas = el("canvas", { class: "cloud", role: "img", "aria-label": "The cloud, with the directions of the last step" });
    const boxes = { marginal: el("div"), function: el("div"), value: el("div") };
    const stepLine = el("p", { class: "hint", role: "status" });
    root.append(el("div", { class: "columns", style: { gridTemplateColumns: "repeat(auto-fit, minmax(min(100%, 19rem), 1fr))" } },
      el("section", { class: "panel" }, el("h2", {}, "Cloud"), canvas, angleSlider, stepLine),
      el("section", { class: "panel" }, el("h2", {}, "Along the direction, and N(0, 1)"), boxes.marginal, el("h2", { style: { marginTop: "0.8rem" } }, "Characteristic function at the knots"), boxes.function),
      el("section", { class: "panel" }, el("h2", {}, "SIGReg, and its floor"), boxes.value, el("p", { class: "hint" }, "On 512 directions that stay the same. The floor is what as many fresh samples of N(0, I) have on average, about 1. A cloud that is pushed ends below: it is spread more evenly than chance."))));

    function draw() {
      if (!cloud) return;
      const side = canvas.clientWidth || 320, ratio = Math.min(2, devicePixelRatio || 1);
      canvas.width = canvas.height = side * ratio;
      const context = canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      let reach = 3.2;
      for (const value of cloud) reach = Math.max(reach, Math.min(8, 1.04 * Math.abs(value)));
      const at = (value) => ((value / reach + 1) * side) / 2;
      context.strokeStyle = LV.css("--line");
      [1, 2, 3].forEach((r) => { context.beginPath(); context.arc(side / 2, side / 2, (r / reach) * (side / 2), 0, 7); context.stroke(); });
      if (arrows) {
        context.strokeStyle = LV.css("--warm"); context.globalAlpha = 0.35;
        for (let i = 0; i < arrows.length; i += 2) { context.beginPath(); context.moveTo(at(0), at(0)); context.lineTo(at(arrows[i] * 2.6), at(-arrows[i + 1] * 2.6)); context.stroke(); }
      }
      context.globalAlpha = 0.7; context.fillStyle = LV.css("--accent");
      const dot = cloud.length > 3000 ? 1.3 : 1.8;
      for (let i = 0; i < cloud.length; i += 2) { context.beginPath(); context.arc(at(cloud[i]), at(-cloud[i + 1]), dot, 0, 7); context.fill(); }
      context.globalAlpha = 1;
      const [c, s] = [Math.cos((angle * Math.PI) / 180), Math.sin((angle * Math.PI) / 180)];
      context.strokeStyle = LV.css("--text"); context.lineWidth = 1.5; context.setLineDash([6, 4]);
      context.beginPath(); context.moveTo(at(-c * 20), at(s * 20)); context.lineTo(at(c * 20), at(-s * 20)); context.stroke(); context.setLineDash([]);
      const u = new Float32Array(cloud.length / 2);
      for (let i = 0; i < u.length; i++) u[i] = cloud[2 * i] * c + cloud[2 * i + 1] * s;
      const normal = LV.normal(-4, 4), blue = LV.css("--accent"), warm = LV.css("--warm");
      boxes.marginal.replaceChildren(LV.chart([{ ...LV.histogram(u, -4, 4), bars: true, color: blue }, { ...normal, color: warm }], { label: "Histogram along the direction, and the normal density", x: [-4, 4], y: [0, 0.8], height: 180 }));
      const knots = settings.num_knots, t = Array.from({ length: knots }, (_, k) => (settings.t_max * k) / (knots - 1));
      const mean = (f) => t.map((tk) => u.reduce((sum, value) => sum + f(tk * value), 0) / u.length);
      const series = [
        { name: "exp(−t²/2)", x: t, y: t.map((tk) => Math.exp((-tk * tk) / 2)), color: warm },
        { name: "mean cos(t u)", x: t, y: mean(Math.cos), color: blue, dots: true },
        { name: "mean sin(t u)", x: t, y: mean(Math.sin), color: "#2a9d6f", dots: true },
      ];
      boxes.function.replaceChildren(LV.chart(series, { label: "Empirical characteristic function at the knots", y: [-1, 1.05], height: 180 }), LV.chartLegend(series));
      boxes.value.replaceChildren(LV.chart([{ x: shownSteps, y: values, color: blue }], { label: "SIGReg by step", log: true, lines: [{ y: floor }] }));
      stepLine.textContent = `Step ${stepOf}: SIGReg ${LV.brief(values[values.length - 1])}, floor ${floor.toFixed(2)}`;
    }

    function take(answer, anew) {
      floor = answer.floor;
      const first = answer.step - answer.frames.length + 1;
      answer.frames.forEach((frame, i) => queue.push({ frame, value: answer.values[i], step: answer.steps ? answer.steps[i] : first + i, arrows: i === answer.frames.length - 1 || answer.all_directions ? answer.directions : null }));
      if (anew) show();
    }
    function show() {
      const next = queue.shift();
      if (!next) return false;
      cloud = next.frame; stepOf = next.step; values.push(next.value); shownSteps.push(next.step);
      if (next.arrows) arrows = next.arrows;
      draw();
      return true;
    }
    async function begin() {
      queue = []; values = []; shownSteps = []; arrows = null; id = null;
      const mine = {};
      begin.mine = mine;
      const answer = await LV.quietly(status.work(still ? LV.folder(`sigreg-${settings.shape.replace(" ", "-")}`) : LV.post("sigreg/start", settings), "…"));
      if (!answer || begin.mine !== mine) return;
      id = answer.id ?? null;
      take(answer, true);
    }
    async function advance(steps) {
      if (asking || still || !id) return;
      asking = true;
      const mine = id;
      try {
        const answer = await LV.post("sigreg/run", { ...settings, id, steps });
        if (mine === id) { take(answer, false); if (!playing) while (show()); }
        status.classList.remove("error"); status.done("");
      } catch (error) { status.classList.add("error"); status.done(error.message); toggle(false); } finally { asking = false; }
    }
    let last = 0;
    function tick(now) {
      if (!playing) return;
      if (now - last > 1000 / +speed.input.value) {
        last = now;
        if (!show() && still) return toggle(false);
        if (queue.length < 8) advance(8);
      }
      requestAnimationFrame(tick);
    }
    function toggle(on = !playing) {
      playing = on;
      play.textContent = on ? "Pause" : "Run";
      if (on) { if (still && !queue.length) begin().then(() => requestAnimationFrame(tick)); else requestAnimationFrame(tick); }
    }

    /* ---- a model's own embeddings */
    const { models, photos } = LV.state;
    const found = el("div"), status2 = LV.status();
    let model = 0, what = "";
    const kinds = [["image_embeds", "embeddings of the photos (Z_V)"], ["predictions", "texts predicted from the photos"], ["cls", "class tokens"], ...(photos.has_captions ? [["text_embeds", "embeddings of the captions (Z_T)"]] : [])];
    what = models[0].features.includes("image_embeds") ? "image_embeds" : "cls";
    root.append(el("section", { class: "panel", style: { marginTop: "0.9rem" } }, el("h2", {}, "Which directions are least Gaussian in a model's embeddings"),
      el("p", { class: "hint" }, "Sought uphill on SIGReg, each at right angles to those before; at both ends of each direction are the photos that lie furthest out. SIGReg in a direction grows with the number of photos where the embeddings are not N(0, I); a narrow spike is a direction in which they have collapsed."),
      el("div", { class: "bar" },
        models.length > 1 && LV.field("Model", LV.select(models.map((one, i) => [i, one.label]), 0, (v) => { model = +v; })),
        LV.field("Of", LV.select(kinds, what, (v) => { what = v; })),
        el("button", { type: "button", class: "main", onclick: () => seek() }, "Find"), status2),
      found));
    const findDirections = LV.latest(() => (still ? LV.folder(`directions-${model}-${what}`) : LV.post("sigreg/directions", { model, what })));
    async function seek() {
      const answer = await LV.quietly(status2.work(findDirections(), "Searching on the sphere…"));
      if (!answer) return;
      const blue = LV.css("--accent"), warm = LV.css("--warm");
      const random = Array.from(answer.random), top = Math.max(...random, 2 * answer.floor);
      const open = (i) => LV.openPhoto(`p${i}`);
      found.replaceChildren(
        el("p", { style: { marginTop: "0.6rem" } }, `${answer.count} embeddings. SIGReg in random directions: mean ${LV.brief(random.reduce((a, b) => a + b, 0) / random.length)}, floor ${answer.floor.toFixed(2)}.`),
        el("div", { class: "charts" },
          answer.statistics.map((statistic, k) => el("div", {}, el("h3", {}, `Direction ${k + 1}: SIGReg ${LV.brief(statistic)}, standard deviation ${LV.brief(answer.deviations[k])}`),
            LV.chart([{ ...LV.histogram(answer.projections[k], -4, 4, 60), bars: true, color: blue }, { ...LV.normal(-4, 4), color: warm }], { label: `Histogram along direction ${k + 1}`, x: [-4, 4], height: 170 }),
            el("h3", {}, "lowest"), LV.strip(answer.ends[k][0].slice(0, 6), open), el("h3", {}, "highest"), LV.strip(answer.ends[k][1].slice(0, 6), open))),
          el("div", {}, el("h3", {}, "SIGReg in random directions"), LV.chart([{ ...LV.histogram(random, 0, top * 1.05, 40), bars: true, color: blue }], { label: "SIGReg in random directions", height: 170 }))));
    }
    begin();
    return { redraw: draw, hide: () => toggle(false) };
  },
};
