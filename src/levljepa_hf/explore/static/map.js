/* A map of points that pans, zooms, knows what is under the pointer and takes a lasso. Drawn on two canvases: the points,
   and above them what changes with the pointer. */
"use strict";
(() => {
  const CELLS = 96;

  function grid(points) {
    const count = points.length / 2, start = new Int32Array(CELLS * CELLS + 1), cells = new Int32Array(count);
    const cell = (x) => Math.min(CELLS - 1, Math.max(0, Math.floor(((x + 1) / 2) * CELLS)));
    for (let i = 0; i < count; i++) start[(cells[i] = cell(points[2 * i + 1]) * CELLS + cell(points[2 * i])) + 1]++;
    for (let c = 0; c < CELLS * CELLS; c++) start[c + 1] += start[c];
    const next = start.slice(), items = new Int32Array(count);
    for (let i = 0; i < count; i++) items[next[cells[i]]++] = i;
    return { start, items, cell };
  }

  LV.ScatterMap = class {
    constructor({ small = false, label, onhover = () => {}, onselect = () => {}, onopen = () => {} }) {
      this.onhover = onhover; this.onselect = onselect; this.onopen = onopen;
      this.points = new Float32Array(0); this.order = new Int32Array(0);
      this.groups = null; this.colors = ["#3b6fd6"]; this.selected = null; this.marked = []; this.hovered = -1;
      this.lassoing = false; this.path = []; this.images = new Map();
      this.base = LV.element("canvas", { "aria-hidden": "true" });
      this.top = LV.element("canvas", { tabIndex: 0, role: "img", "aria-label": label });
      this.node = LV.element("div", { class: small ? "map small" : "map" }, this.base, this.top);
      this.reset(false);
      new ResizeObserver(() => this.resize()).observe(this.node);
      this.listen();
    }

    reset(draw = true) {
      this.cx = 0; this.cy = 0; this.zoom = 1;
      if (draw) this.draw();
    }

    resize() {
      const ratio = Math.min(2, devicePixelRatio || 1);
      this.width = this.node.clientWidth; this.height = this.node.clientHeight;
      for (const canvas of [this.base, this.top]) {
        canvas.width = Math.round(this.width * ratio); canvas.height = Math.round(this.height * ratio);
        canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
      }
      this.draw(true);
    }

    get scale() { return (0.47 * Math.min(this.width, this.height)) * this.zoom; }
    toScreen(i) {
      return [(this.points[2 * i] - this.cx) * this.scale + this.width / 2, (this.cy - this.points[2 * i + 1]) * this.scale + this.height / 2];
    }
    toWorld(x, y) { return [(x - this.width / 2) / this.scale + this.cx, this.cy - (y - this.height / 2) / this.scale]; }

    setPoints(points) {
      this.points = points;
      this.index = grid(points);
      const mixed = (i) => Math.imul(i, 2654435761) >>> 0; // in no order, so that no class hides the others
      this.order = Int32Array.from({ length: points.length / 2 }, (_, i) => i).sort((a, b) => mixed(a) - mixed(b));
      this.draw();
    }
    /* groups: a colour's index for each point; colors: CSS colours. */
    setColors(groups, colors) { this.groups = groups; this.colors = colors; this.rgb = null; this.draw(); }
    setSelected(mask) { this.selected = mask; this.draw(); }
    setMarked(indices) { this.marked = indices; this.overlay(); }
    setHovered(index) { if (index !== this.hovered) { this.hovered = index; this.overlay(); } }
    setLasso(on) { this.lassoing = on; this.node.classList.toggle("lasso", on); }

    /* Pixels around a dot's centre, three numbers each: x, y, and how much of the colour, of 256. */
    static mask(radius) {
      const found = [], reach = Math.ceil(radius);
      for (let y = -reach; y <= reach; y++) {
        for (let x = -reach; x <= reach; x++) {
          const cover = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y)));
          if (cover) found.push(x, y, Math.round(256 * 0.9 * cover));
        }
      }
      return Int32Array.from(found);
    }

    static rgb(colors) { // of CSS colours, flat
      const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      return Uint8Array.from(colors.flatMap((color) => {
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        return Array.from(context.getImageData(0, 0, 1, 1).data.subarray(0, 3));
      }));
    }

    draw(now = false) {
      if (now) { cancelAnimationFrame(this.frame); this.frame = 0; this.paint(); return; }
      this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.paint(); });
    }

    /* Dots are written into pixels: without a graphics card, that is many times faster than drawing them. */
    paint() {
      if (!this.width) return;
      const context = this.base.getContext("2d"), { points, groups, selected, scale, base: { width, height } } = this;
      const ratio = width / this.width, radius = ratio * Math.min(3.4, (points.length > 8000 ? 1.7 : 2.6) * Math.sqrt(Math.sqrt(this.zoom)));
      const image = this.pixels?.width === width && this.pixels.height === height ? this.pixels : (this.pixels = context.createImageData(width, height));
      const { data } = image, mask = LV.ScatterMap.mask(radius), margin = Math.ceil(radius) + 1;
      const [rgb, dim, ground] = [this.rgb ||= LV.ScatterMap.rgb(this.colors), LV.ScatterMap.rgb([LV.css("--dim-dot")]), LV.ScatterMap.rgb([LV.css("--panel")])];
      new Uint32Array(data.buffer).fill((255 << 24) | (ground[2] << 16) | (ground[1] << 8) | ground[0]);
      const offsetX = width / 2 - this.cx * scale * ratio, offsetY = height / 2 + this.cy * scale * ratio, step = scale * ratio;
      const inView = [];
      for (const pass of selected ? [0, 1] : [1]) {
        for (let k = 0; k < this.order.length; k++) {
          const i = this.order[k];
          if (selected && (selected[i] ? 1 : 0) !== pass) continue;
          const x = Math.round(points[2 * i] * step + offsetX), y = Math.round(offsetY - points[2 * i + 1] * step);
          if (x < margin || y < margin || x >= width - margin || y >= height - margin) continue;
          if (inView.length <= 160) inView.push(i);
          const table = pass ? rgb : dim, c = pass && groups ? 3 * groups[i] : 0, r = table[c], g = table[c + 1], b = table[c + 2];
          for (let m = 0; m < mask.length; m += 3) {
            const at = 4 * ((y + mask[m + 1]) * width + x + mask[m]), share = mask[m + 2];
            data[at] += ((r - data[at]) * share) >> 8;
            data[at + 1] += ((g - data[at + 1]) * share) >> 8;
            data[at + 2] += ((b - data[at + 2]) * share) >> 8;
          }
        }
      }
      context.putImageData(image, 0, 0);
      if (inView.length <= 160 && this.zoom > 1.5) this.paintPhotos(context, inView);
      this.overlay();
    }

    paintPhotos(context, indices) {
      const size = Math.max(22, Math.min(64, 440 / Math.sqrt(indices.length)));
      for (const i of indices) {
        let image = this.images.get(i);
        if (!image) {
          image = new Image();
          image.onload = () => this.draw();
          image.src = LV.thumbnail(i);
          this.images.set(i, image);
          if (this.images.size > 600) this.images.delete(this.images.keys().next().value);
        }
        if (!image.complete || !image.naturalWidth) continue;
        const [x, y] = this.toScreen(i), shrink = size / Math.max(image.naturalWidth, image.naturalHeight);
        const width = image.naturalWidth * shrink, height = image.naturalHeight * shrink;
        context.globalAlpha = this.selected && !this.selected[i] ? 0.25 : 1;
        context.drawImage(image, x - width / 2, y - height / 2, width, height);
        context.lineWidth = 2;
        context.strokeStyle = this.colors[this.groups ? this.groups[i] : 0];
        context.strokeRect(x - width / 2, y - height / 2, width, height);
        context.globalAlpha = 1;
      }
    }

    overlay() {
      if (!this.width) return;
      const context = this.top.getContext("2d");
      context.clearRect(0, 0, this.width, this.height);
      const ring = (i, radius, color) => {
        if (2 * i >= this.points.length) return;
        const [x, y] = this.toScreen(i);
        context.beginPath(); context.arc(x, y, radius, 0, 7);
        context.lineWidth = 4; context.strokeStyle = LV.css("--panel"); context.stroke();
        context.lineWidth = 2; context.strokeStyle = color; context.stroke();
      };
      this.marked.forEach((i) => ring(i, 6, LV.css("--warm")));
      if (this.hovered >= 0) ring(this.hovered, 9, LV.css("--text"));
      if (this.path.length > 1) {
        context.beginPath();
        this.path.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.closePath();
        context.globalAlpha = 0.12; context.fillStyle = LV.css("--accent"); context.fill();
        context.globalAlpha = 1; context.lineWidth = 1.5; context.strokeStyle = LV.css("--accent"); context.stroke();
      }
    }

    /* The nearest point within some pixels, or -1. */
    at(x, y, reach = 10) {
      if (!this.index) return -1;
      const [wx, wy] = this.toWorld(x, y), r = reach / this.scale, { start, items, cell } = this.index;
      let best = -1, least = r * r;
      for (let cy = cell(wy - r); cy <= cell(wy + r); cy++) {
        for (let cx = cell(wx - r); cx <= cell(wx + r); cx++) {
          for (let k = start[cy * CELLS + cx]; k < start[cy * CELLS + cx + 1]; k++) {
            const i = items[k], dx = this.points[2 * i] - wx, dy = this.points[2 * i + 1] - wy, d = dx * dx + dy * dy;
            if (d < least) { least = d; best = i; }
          }
        }
      }
      return best;
    }

    inside(path) {
      const polygon = path.map(([x, y]) => this.toWorld(x, y)), found = [];
      for (let i = 0; i < this.points.length / 2; i++) {
        const x = this.points[2 * i], y = this.points[2 * i + 1];
        let inside = false;
        for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
          const [ax, ay] = polygon[a], [bx, by] = polygon[b];
          if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
        }
        if (inside) found.push(i);
      }
      return found;
    }

    zoomAt(x, y, factor) {
      const before = this.toWorld(x, y);
      this.zoom = Math.min(60, Math.max(0.5, this.zoom * factor));
      const after = this.toWorld(x, y);
      this.cx += before[0] - after[0]; this.cy += before[1] - after[1];
      this.draw();
    }

    listen() {
      const canvas = this.top;
      let from = null, moved = false;
      const local = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        canvas.setPointerCapture(event.pointerId);
        from = local(event); moved = false;
        this.path = this.lassoing || event.shiftKey ? [from] : [];
      });
      canvas.addEventListener("pointermove", (event) => {
        const here = local(event);
        if (from && this.path.length) {
          this.path.push(here); moved = true; this.overlay();
        } else if (from) {
          if (!moved && Math.hypot(here[0] - from[0], here[1] - from[1]) < 4) return;
          moved = true;
          this.cx -= (here[0] - from[0]) / this.scale; this.cy += (here[1] - from[1]) / this.scale;
          from = here;
          this.onhover(-1);
          this.draw();
        } else {
          this.onhover(this.at(...here), event.clientX, event.clientY);
        }
      });
      const end = (event) => {
        if (!from) return;
        const path = this.path, here = local(event);
        from = null; this.path = [];
        if (path.length > 2) this.onselect(this.inside(path));
        else if (!moved) { const i = this.at(...here); if (i >= 0) this.onopen(i); else this.onselect([]); }
        this.overlay();
      };
      canvas.addEventListener("pointerup", end);
      canvas.addEventListener("pointercancel", () => { from = null; this.path = []; this.overlay(); });
      canvas.addEventListener("pointerleave", () => { if (!from) this.onhover(-1); });
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.zoomAt(...local(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
      }, { passive: false });
      canvas.addEventListener("dblclick", () => this.reset());
      canvas.addEventListener("keydown", (event) => {
        const step = 0.15 / this.zoom, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
        if (moves[event.key]) { this.cx += moves[event.key][0]; this.cy += moves[event.key][1]; this.draw(); }
        else if (event.key === "+" || event.key === "=") this.zoomAt(this.width / 2, this.height / 2, 1.3);
        else if (event.key === "-") this.zoomAt(this.width / 2, this.height / 2, 1 / 1.3);
        else if (event.key === "0") this.reset();
        else if (event.key === "Escape") this.onselect([]);
        else return;
        event.preventDefault();
      });
    }
  };
})();
