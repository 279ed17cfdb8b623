/* Small charts as SVG: lines, and histograms beside a curve. */
"use strict";
(() => {
  const WIDTH = 360, HEIGHT = 210, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 26;
  const svg = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  function ticks(low, high, wanted = 4) {
    const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + 1e-9 * step; value += step) found.push(Math.abs(value) < 1e-12 ? 0 : value);
    return found;
  }
  function decades(low, high) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const f of high / low > 30 ? [1] : [1, 2, 5]) if (f * 10 ** e >= low && f * 10 ** e <= high) found.push(f * 10 ** e);
    }
    return found.length ? found : [low, high];
  }
  const brief = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(3)));

  /* series: [{name, x, y, color, dash, dots, area}]; lines: [{y, name}] across. */
  LV.chart = (series, { label, log = false, x = null, y = null, lines = [], width = WIDTH, height = HEIGHT } = {}) => {
    const xs = series.flatMap((one) => Array.from(one.x)), ys = [...series.flatMap((one) => Array.from(one.y)), ...lines.map((line) => line.y)];
    const positive = ys.filter((value) => value > 0);
    log = log && positive.length > 0;
    const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity), most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
    let [x0, x1] = x || [least(xs), most(xs)], [y0, y1] = y || (log ? [least(positive), most(positive)] : [least(ys), most(ys)]);
    if (!(x1 > x0)) x1 = x0 + 1;
    if (!(y1 > y0)) { y0 = log ? y0 / 2 : y0 - 0.5; y1 = log ? y1 * 2 : y1 + 0.5; }
    if (!y && log) { const margin = (y1 / y0) ** 0.05; y0 /= margin; y1 *= margin; }
    if (!y && !log) { const margin = 0.05 * (y1 - y0); y1 += margin; if (y0 !== 0) y0 -= margin; }
    const px = (value) => LEFT + ((value - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    const share = log ? (value) => Math.log(value / y0) / Math.log(y1 / y0) : (value) => (value - y0) / (y1 - y0);
    const py = (value) => height - BOTTOM - share(value) * (height - TOP - BOTTOM);
    const node = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const value of log ? decades(y0, y1) : ticks(y0, y1)) {
      node.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(value), y2: py(value) }));
      const text = svg("text", { x: LEFT - 5, y: py(value) + 3, "text-anchor": "end" });
      text.textContent = brief(value);
      node.append(text);
    }
    for (const value of ticks(x0, x1, 5)) {
      const text = svg("text", { x: px(value), y: height - BOTTOM + 14, "text-anchor": "middle" });
      text.textContent = brief(value);
      node.append(text);
    }
    node.append(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
    for (const line of lines) node.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: py(line.y), y2: py(line.y), stroke: LV.css("--warm"), "stroke-dasharray": "5 4" }));
    for (const one of series) {
      const at = [];
      for (let i = 0; i < one.x.length; i++) if (!log || one.y[i] > 0) at.push(`${px(one.x[i]).toFixed(1)} ${py(Math.max(one.y[i], log ? y0 : -Infinity)).toFixed(1)}`);
      if (!at.length) continue;
      if (one.bars) {
        const width = px(one.x[1]) - px(one.x[0]);
        for (let i = 0; i < one.x.length; i++) node.append(svg("rect", { x: px(one.x[i]) - width / 2, width: Math.max(0.5, width - 0.5), y: py(one.y[i]), height: Math.max(0, py(0) - py(one.y[i])), fill: one.color, opacity: 0.55 }));
        continue;
      }
      node.append(svg("path", { d: `M${at.join("L")}`, fill: "none", stroke: one.color, "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-dasharray": one.dash || "none" }));
      if (one.dots || at.length === 1) at.forEach((p) => { const [cx, cy] = p.split(" "); node.append(svg("circle", { cx, cy, r: 2.4, fill: one.color })); });
    }
    return node;
  };

  LV.chartLegend = (series) => LV.element("div", { class: "legend" }, series.filter((one) => one.name).map((one) => {
    const mark = LV.element("i", { style: { background: one.color } });
    return LV.element("span", {}, mark, " ", one.name, one.last === undefined ? "" : ` ${brief(one.last)}`);
  }));

  LV.histogram = (values, low, high, count = 44) => {
    const heights = new Float64Array(count), width = (high - low) / count;
    for (const value of values) if (value >= low && value < high) heights[Math.floor((value - low) / width)]++;
    return { x: Array.from(heights, (_, i) => low + (i + 0.5) * width), y: Array.from(heights, (n) => n / (values.length * width)) };
  };
  LV.normal = (low, high, count = 120) => {
    const x = Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
    return { x, y: x.map((value) => Math.exp((-value * value) / 2) / Math.sqrt(2 * Math.PI)) };
  };
  LV.brief = brief;
})();
