/* Run: the curves of training runs, read again while they train. */
"use strict";
LV.tabs.run = {
  title: "Run",
  live: true,
  build(root) {
    const { element: el } = LV;
    const charts = el("div", { class: "charts" }), notes = el("div"), line = el("p", { class: "hint", role: "status" });
    root.append(el("div", { class: "panel" }, line, notes), charts);
    if (!LV.state.runs.length) {
      line.textContent = "No training run was named, and the model's folder holds none: levljepa explore MODEL --runs FOLDER.";
      return {};
    }
    let timer = null, before = "", last = null;
    const dashes = ["none", "6 4", "2 3", "8 3 2 3"];
    function draw() {
      const runs = last.runs.filter((run) => !run.error);
      notes.replaceChildren(...last.runs.filter((run) => run.error).map((run) => el("p", { class: "error" }, run.error)));
      charts.replaceChildren(...Object.entries(last.panels).map(([title, { names, logarithmic }]) => {
        const colors = LV.palette(Math.max(3, names.length));
        const series = runs.flatMap((run, r) => names.filter((name) => run.curves[name]).map((name) => {
          const [x, y] = run.curves[name];
          return { x, y, color: colors[names.indexOf(name)], dash: dashes[r % 4], dots: x.length < 12 };
        }));
        const legend = names.map((name, i) => ({ color: colors[i], name: `${name} ${runs.map((run) => (run.curves[name] ? LV.brief(run.curves[name][1].at(-1)) : "–")).join(", ")}` }));
        return el("section", { class: "panel" }, el("h2", {}, title), LV.chart(series, { label: `${title} by step`, log: logarithmic }), LV.chartLegend(legend));
      }));
    }
    async function read() {
      try {
        const answer = await LV.get("run"), now = JSON.stringify(answer);
        const steps = answer.runs.filter((run) => !run.error).map((run, r) => `${run.name}${answer.runs.length > 1 ? ` (${["solid", "dashed", "dotted", "dash and dot"][r % 4]})` : ""}: step ${run.step}${run.max_steps ? ` of ${run.max_steps}` : ""}`);
        line.classList.remove("error");
        line.textContent = `${steps.join(", ") || "nothing logged yet"} · read again every 3 s`;
        if (now !== before) { before = now; last = answer; draw(); }
      } catch (error) { line.classList.add("error"); line.textContent = error.message; }
    }
    return {
      redraw: () => last && draw(),
      show: () => { read(); timer ||= setInterval(read, 3000); },
      hide: () => { clearInterval(timer); timer = null; },
    };
  },
};
