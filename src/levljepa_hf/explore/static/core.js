/* What every part shares: data (of the server, or of the folder this page was exported to), the address, small helpers. */
"use strict";
window.LV = (() => {
  const stored = {};
  const waiting = {};
  const isStatic = document.documentElement.dataset.static === "yes";

  function unpack(value) {
    if (Array.isArray(value)) return value.map(unpack);
    if (value && typeof value === "object") {
      if (typeof value.data === "string" && value.kind) {
        const bytes = Uint8Array.from(atob(value.data), (c) => c.charCodeAt(0));
        const kinds = { f32: Float32Array, i32: Int32Array, u8: Uint8Array };
        const array = new kinds[value.kind](bytes.buffer);
        array.shape = value.shape;
        return array;
      }
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v)]));
    }
    return value;
  }

  async function request(path, options) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer: is levljepa explore still running?");
    }
    const body = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    if (!response.ok) throw new Error(body.error || `The server answered ${response.status}.`);
    return unpack(body);
  }

  /* A file of the exported folder: a script that calls LV.put(name, value). fetch does not read from file:. */
  function fromFolder(name) {
    if (name in stored) return Promise.resolve(stored[name]);
    waiting[name] ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => (name in stored ? resolve(stored[name]) : reject(new Error(`data/${name}.js is broken.`)));
      script.onerror = () => reject(new Error("This is not in the exported folder: levljepa explore without --export has it."));
      document.head.append(script);
    });
    return waiting[name];
  }

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "class") node.className = value;
      else if (name === "style") Object.assign(node.style, value);
      else if (name in node && name !== "list") node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.flat(2).filter((child) => child || child === 0)); // what is empty or false is left out
    return node;
  }

  /* The address after #, so that a view can be kept and shared: name=value pairs. */
  const address = {
    values: new URLSearchParams(location.hash.slice(1)),
    get(name, fallback) {
      return this.values.has(name) ? this.values.get(name) : fallback;
    },
    set(name, value) {
      if (value === "" || value === null || value === undefined) this.values.delete(name);
      else this.values.set(name, value);
      history.replaceState(null, "", "#" + this.values.toString());
    },
  };

  /* Calls are answered by the last one only; the earlier are dropped. */
  function latest(work) {
    let number = 0;
    return async (...args) => {
      const mine = ++number;
      const result = await work(...args);
      return mine === number ? result : undefined;
    };
  }

  function throttle(work, wait) {
    let timer = null, again = null, busy = false;
    return async function go(...args) {
      again = args;
      if (busy || timer) return;
      while (again) {
        const now = again;
        again = null;
        busy = true;
        try { await work(...now); } finally { busy = false; }
        await new Promise((resolve) => (timer = setTimeout(resolve, wait)));
        timer = null;
      }
    };
  }

  const colors = ["#3b6fd6", "#e07b39", "#2a9d6f", "#c94f7c", "#8a63d2", "#b59b1f", "#3fa7c4", "#a65a3a", "#6b8e23", "#d65db1", "#5f7a8a", "#e0556a"];
  function palette(count) {
    return Array.from({ length: count }, (_, i) =>
      count <= colors.length ? colors[i] : `hsl(${(i * 137.508) % 360} ${[62, 78, 48][i % 3]}% ${[48, 58, 40][Math.floor(i / 3) % 3]}%)`);
  }
  /* viridis, at 0..1 */
  const stops = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
  function viridis(x) {
    const at = Math.min(1, Math.max(0, x)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at)), f = at - i;
    return stops[i].map((c, k) => Math.round(c + f * (stops[i + 1][k] - c)));
  }

  return {
    isStatic,
    unpack,
    element,
    address,
    latest,
    throttle,
    palette,
    viridis,
    tabs: {},
    put(name, value) { stored[name] = unpack(value); },
    get: (path) => (isStatic ? fromFolder(path) : request(`api/${path}`)),
    post: (path, body, signal) =>
      request(`api/${path}`, { method: "POST", signal, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }),
    folder: fromFolder,
    upload: (file) =>
      request("api/upload", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } }),
    thumbnail: (index) => (isStatic ? `thumbnails/${Math.floor(index / 1000)}/${index}.webp` : `thumbnails/${index}.webp`),
    photo: (ref) => (isStatic ? LV.thumbnail(+ref.slice(1)) : `photos/${ref}.webp`),
    css: (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim(),
  };
})();
