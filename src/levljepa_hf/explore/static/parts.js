/* Parts of the page that several tabs use: notices, fields, galleries, the card beside the pointer, the photo picker. */
"use strict";
(() => {
  const { element: el } = LV;

  LV.notice = (content, closable = true) => {
    const box = el("div", { class: "notice" }, content);
    if (closable) box.append(el("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => box.remove() }, "✕"));
    document.getElementById("notices").append(box);
    return box;
  };

  LV.field = (label, control, grow = false) => {
    control.setAttribute("aria-label", label); // the text of a select's options is not part of its name
    return el("label", { class: grow ? "field grow" : "field" }, label, control);
  };

  LV.select = (options, value, onchange) => {
    const node = el("select", { onchange: () => onchange(node.value) });
    for (const one of options) {
      const [key, text] = Array.isArray(one) ? one : [one, one];
      node.append(el("option", { value: key }, text));
    }
    node.value = value;
    if (node.selectedIndex < 0) node.selectedIndex = 0;
    return node;
  };

  /* A slider with its value beside its label. */
  LV.slider = (label, { min, max, step, value, format = String, oninput, onchange = () => {} }) => {
    const shown = el("b", {}, format(value));
    const input = el("input", {
      type: "range", min, max, step, "aria-label": label,
      oninput: () => { shown.textContent = format(+input.value); oninput?.(+input.value); },
      onchange: () => onchange(+input.value),
    });
    input.value = value;
    const field = el("label", { class: "field" }, el("span", {}, label, " ", shown), input);
    field.input = input;
    field.show = (value) => { input.value = value; shown.textContent = format(+input.value); };
    return field;
  };

  /* A line that says what is going on: work(promise, text) shows it, and the error if there is one. */
  LV.status = () => {
    const node = el("span", { class: "busy", role: "status" });
    node.work = async (promise, text) => {
      const began = performance.now();
      node.classList.remove("error");
      node.classList.add("on");
      node.textContent = text;
      const timer = setInterval(() => (node.textContent = `${text} ${Math.round((performance.now() - began) / 1000)} s`), 1000);
      try {
        const result = await promise;
        node.textContent = "";
        return result;
      } catch (error) {
        node.classList.add("error");
        node.textContent = error.message;
        throw error;
      } finally {
        clearInterval(timer);
        node.classList.remove("on");
      }
    };
    node.done = (text) => { node.textContent = text; };
    return node;
  };
  /* Errors that a status line has shown already. */
  LV.quietly = (promise) => promise.catch(() => undefined);

  LV.describe = (index) => {
    const { file_names, captions, labels, class_names } = LV.state.photos;
    return {
      name: file_names[index],
      label: labels && labels[index] >= 0 && class_names ? class_names[labels[index]] : "",
      caption: captions[index] || "",
    };
  };

  const card = () => document.getElementById("hover-card");
  LV.hover = (index, x, y, note = "") => {
    const box = card();
    if (index < 0) { box.hidden = true; box.dataset.index = ""; return; }
    if (box.dataset.index !== String(index) || box.dataset.note !== note) {
      const { name, label, caption } = LV.describe(index);
      box.replaceChildren(
        el("img", { src: LV.thumbnail(index), alt: "" }),
        ...[label && el("b", {}, label), note && el("div", {}, note), caption && el("div", {}, caption)].filter(Boolean),
        el("div", { class: "name" }, name),
      );
      box.dataset.index = index;
      box.dataset.note = note;
    }
    box.hidden = false;
    const width = 190, height = box.offsetHeight + 16;
    box.style.left = `${x + 18 + width > innerWidth ? x - width - 8 : x + 18}px`;
    box.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - height))}px`;
  };

  function thumbnailButton(index, { onclick, note = "", className = "" }) {
    const { name, label, caption } = LV.describe(index);
    const button = el("button", { type: "button", class: className, onclick: () => onclick(index) },
      el("img", { src: LV.thumbnail(index), alt: [label, caption || name].filter(Boolean).join(": "), loading: "lazy" }));
    button.addEventListener("pointermove", (event) => LV.hover(index, event.clientX, event.clientY, note));
    button.addEventListener("pointerleave", () => LV.hover(-1));
    return button;
  }

  LV.gallery = (indices, { onclick, scores = null, right = null, onhover = null }) => {
    const box = el("div", { class: "gallery" });
    indices.forEach((index, i) => {
      const button = thumbnailButton(index, { onclick, className: right && right(index) ? "right" : "" });
      if (scores) button.append(el("span", { class: "score" }, scores[i].toFixed(3)));
      if (onhover) {
        button.addEventListener("pointerenter", () => onhover(index));
        button.addEventListener("pointerleave", () => onhover(-1));
      }
      box.append(button);
    });
    return box;
  };
  LV.strip = (indices, onclick) => el("div", { class: "strip" }, indices.map((index) => thumbnailButton(index, { onclick })));

  /* Chooses a photo of the data set, or uploads one: by button, by dropping, from the clipboard of the dialog. */
  function pickDialog(onpick) {
    const count = LV.state.photos.count;
    const grid = el("div", { class: "gallery" });
    let order = Array.from({ length: count }, (_, i) => i), from = 0;
    const size = 60;
    const filter = el("input", { type: "text", placeholder: "part of a name, class or caption", oninput: () => {
      const wanted = filter.value.trim().toLowerCase();
      order = [...Array(count).keys()].filter((i) => Object.values(LV.describe(i)).some((text) => String(text).toLowerCase().includes(wanted)));
      from = 0;
      fill();
    } });
    const where = el("span", { class: "hint" });
    const move = (step) => { from = Math.min(Math.max(0, from + step), Math.max(0, order.length - 1)); fill(); };
    const dialog = el("dialog", { "aria-label": "Choose a photo" });
    function pick(index) { dialog.close(); LV.hover(-1); onpick(`p${index}`); }
    function fill() {
      const some = order.slice(from, from + size);
      grid.replaceChildren(...LV.gallery(some, { onclick: pick }).childNodes);
      where.textContent = order.length ? `${from + 1} to ${from + some.length} of ${order.length}` : "none";
    }
    dialog.append(
      el("div", { class: "bar" }, LV.field("Find", filter, true),
        el("button", { type: "button", class: "plain", onclick: () => { order.sort(() => Math.random() - 0.5); from = 0; fill(); } }, "Shuffle"),
        el("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close")),
      grid,
      el("div", { class: "bar" }, el("button", { type: "button", class: "plain", onclick: () => move(-size) }, "Back"),
        el("button", { type: "button", class: "plain", onclick: () => move(size) }, "More"), where),
    );
    fill();
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  LV.photoPicker = (label, { value = "", optional = false, onchange, status }) => {
    const image = el("img", { alt: "" });
    const clear = el("button", { type: "button", class: "quiet", "aria-label": `No ${label.toLowerCase()}`, onclick: () => set("") }, "✕");
    const file = el("input", { type: "file", accept: "image/*", hidden: true, onchange: () => { if (file.files[0]) take(file.files[0]); file.value = ""; } });
    async function take(one) {
      if (one.size > LV.state.upload_bytes) {
        status.classList.add("error");
        status.textContent = `The file has more than ${LV.state.upload_bytes / 2 ** 20} MB: take a smaller one.`;
        return;
      }
      const found = await LV.quietly(status.work(LV.upload(one), "Uploading…"));
      if (found) set(found.ref);
    }
    function set(ref, quiet = false) {
      box.value = ref;
      image.hidden = clear.hidden = !ref;
      clear.hidden ||= !optional;
      if (ref) image.src = ref[0] === "p" ? LV.thumbnail(+ref.slice(1)) : LV.photo(ref);
      if (!quiet) onchange(ref);
    }
    const box = el("div", { class: "chosen drop", role: "group", "aria-label": label },
      image,
      el("div", {}, el("div", { class: "hint" }, label),
        el("button", { type: "button", class: "plain", onclick: () => pickDialog(set) }, "Choose"), " ",
        !LV.isStatic && el("button", { type: "button", class: "plain", onclick: () => file.click() }, "Upload")),
      clear, file);
    box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
    box.addEventListener("dragleave", () => box.classList.remove("over"));
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      box.classList.remove("over");
      if (!LV.isStatic && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    });
    box.set = set;
    set(value, true);
    return box;
  };

  LV.lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
  LV.modelPanels = (build) => LV.state.models.map((model, i) => build(model, i));
  LV.readouts = () => {
    const all = [...new Set(LV.state.models.flatMap((model) => model.readouts))];
    return [["", "best of each model"], ...all.map((name) => [name, name])];
  };
  LV.features = () => {
    const all = [...new Set(LV.state.models.flatMap((model) => model.features))];
    const names = { image_embeds: "image embedding (Z_V)", predictions: "predicted text embedding", cls: "class token", mean: "mean of the patches" };
    return [["", "best of each model"], ...all.map((name) => [name, names[name]])];
  };
  LV.textNotice = () => {
    const without = LV.state.models.filter((model) => !model.readouts.length);
    if (!without.length) return null;
    return el("p", { class: "error" }, `${without.map((model) => model.label).join(" and ")} has no text tower, so words cannot be compared with its images: give a whole model.`);
  };
})();
