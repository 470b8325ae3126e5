// The adapter rack: cards to choose from; for each chosen one a strength, its trigger words,
// whether it is on, and at which steps.
// `props.cards` come from the server; `props.value` maps names to {strength, on, timing}.
// Everything is built with textContent: names and words come from files and are never markup.

const FILTER_FROM = 12;
const METHODS = { shira: "SHiRA", lora: "LoRA" };
const TIMINGS = {
  always: ["Always", "At every step"],
  early: ["Early", "In the first half of the steps, where shapes settle"],
  late: ["Late", "In the second half of the steps, where surfaces settle"],
  alternate: ["In turns", "One step each with the others in turns"],
};
const view = { text: "", twins: false };

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const button = (className, text, label, onClick) => {
  const node = make("button", className, text);
  node.type = "button";
  if (label) node.title = label;
  if (label) node.setAttribute("aria-label", label);
  node.addEventListener("click", onClick);
  return node;
};
const cards = () => props.cards || [];
const mix = () => ({ ...(props.value || {}) });
const cardOf = (name) => cards().find((card) => card.name === name);
const shown = (strength) => strength.toFixed(2);

const root = element.querySelector(".rack");
const head = make("div", "rack-head");
const chosen = make("div", "rack-chosen");
const shelf = make("div", "rack-shelf");
const broken = make("details", "rack-broken");
root.append(head, chosen, shelf, broken);

function picture(card) {
  const box = make("span", "rack-thumb");
  if (card.thumbnail) {
    const image = make("img");
    image.src = card.thumbnail;
    image.alt = "";
    box.append(image);
  } else {
    box.textContent = card.title.slice(0, 1).toUpperCase();
  }
  return box;
}

function choose(name) {
  const next = mix();
  if (name in next) delete next[name];
  else next[name] = { strength: 1, on: true, timing: "always" };
  props.value = next;
  draw();
  trigger("chosen", {});
}

function change(name, part) {
  const next = mix();
  if (!(name in next)) return;
  next[name] = { ...next[name], ...part };
  props.value = next;
}

function drawHead() {
  const offered = cards().filter((card) => !card.problem && (view.twins || !card.twin));
  const count = Object.values(mix()).filter((one) => one.on).length;
  const title = make("div", "rack-title", "Adapters");
  title.append(make("span", "quiet", count ? `${count} in use` : `${offered.length} to choose from`));
  const tools = make("div", "rack-tools");
  if (cards().some((card) => card.twin && !card.problem)) {
    const twins = button("link", view.twins ? "Hide LoRA twins" : "Show LoRA twins",
      "A LoRA twin learned the same thing in LoRA's way, for comparison", () => {
        view.twins = !view.twins;
        draw();
      });
    tools.append(twins);
  }
  tools.append(button("link", "Rescan", "Look for new adapters on disk", () => trigger("rescan", {})));
  head.replaceChildren(title, tools);
  if (offered.length >= FILTER_FROM) {
    const search = make("input", "rack-search");
    search.type = "search";
    search.placeholder = "Find an adapter";
    search.setAttribute("aria-label", "Find an adapter");
    search.value = view.text;
    search.addEventListener("input", () => {
      view.text = search.value;
      drawShelf();
    });
    head.append(search);
  }
}

function strengthSlider(card, strength) {
  const slider = make("input");
  Object.assign(slider, { type: "range", min: -1, max: 2, step: 0.05, value: strength });
  slider.setAttribute("aria-label", `Strength of ${card.title}`);
  slider.title = "1 is as trained, 0 is off, below 0 is its opposite. Double-click: back to 1.";
  const output = make("output", "", shown(strength));
  const fill = () => slider.style.setProperty("--fill", `${((slider.value - -1) / 3) * 100}%`);
  slider.addEventListener("input", () => {
    output.textContent = shown(Number(slider.value));
    fill();
    change(card.name, { strength: Number(slider.value) });
  });
  slider.addEventListener("dblclick", () => {
    slider.value = 1;
    slider.dispatchEvent(new Event("input"));
  });
  fill();
  return [slider, output];
}

function onSwitch(card, one) {
  const label = make("label", "rack-on");
  const box = make("input");
  box.type = "checkbox";
  box.checked = one.on;
  box.setAttribute("aria-label", `Use ${card.title}`);
  label.title = "Off: it stays here, but the next picture is made without it";
  box.addEventListener("change", () => {
    change(card.name, { on: box.checked });
    box.closest(".rack-row").classList.toggle("off", !box.checked);
    drawHead();
  });
  label.append(box);
  return label;
}

function timingChoice(card, one) {
  const select = make("select", "rack-when");
  for (const [value, [words, why]] of Object.entries(TIMINGS)) {
    const option = make("option", "", words);
    Object.assign(option, { value, title: why });
    select.append(option);
  }
  select.value = one.timing in TIMINGS ? one.timing : "always";
  const explain = () => { select.title = `When it works: ${TIMINGS[select.value][1]}`; };
  select.setAttribute("aria-label", `When ${card.title} works`);
  select.addEventListener("change", () => {
    change(card.name, { timing: select.value });
    explain();
    trigger("chosen", {});
  });
  explain();
  return select;
}

function chosenRow(name, one) {
  const card = cardOf(name) || { name, title: name, words: [] };
  const row = make("div", `rack-row${one.on ? "" : " off"}`);
  row.dataset.name = name;
  const line = make("div", "rack-line");
  line.append(onSwitch(card, one), make("span", "rack-name", card.title));
  for (const word of card.words || []) {
    line.append(button("chip", `+ ${word}`, `Add “${word}” to the prompt: the words it was trained with`,
      () => trigger("insert", { word })));
  }
  const remove = button("rack-remove", "×", `Remove ${card.title}`, () => choose(name));
  const control = make("div", "rack-control");
  control.append(...strengthSlider(card, one.strength), timingChoice(card, one), remove);
  const body = make("div", "rack-body");
  body.append(line, control);
  row.append(picture(card), body);
  return row;
}

function shelfCard(card) {
  const name = card.name;
  const active = name in mix();
  const label = [card.title, METHODS[card.method] || card.method, card.size, card.description];
  const node = button(`rack-card${active ? " active" : ""}`, undefined, label.filter(Boolean).join(" · "),
    () => {
      choose(name);
      shelf.querySelector(`[data-name="${CSS.escape(name)}"]`)?.focus();
    });
  node.dataset.name = name;
  node.setAttribute("aria-pressed", String(active));
  const caption = make("span", "rack-caption");
  caption.append(make("span", "rack-name", card.title));
  caption.append(make("span", "quiet", `${METHODS[card.method] || card.method || "adapter"} · ${card.size}`));
  node.append(picture(card), caption);
  return node;
}

function drawShelf() {
  const wanted = view.text.trim().toLowerCase();
  const visible = cards().filter((card) => !card.problem
    && (view.twins || !card.twin || card.name in mix())
    && (!wanted || `${card.name} ${card.title}`.toLowerCase().includes(wanted)));
  shelf.replaceChildren(...visible.map(shelfCard));
  if (visible.length) return;
  const words = wanted ? `No adapter is called “${view.text.trim()}”.`
    : `No adapters yet. Put a folder with an adapter.safetensors into ${props.place} and press Rescan, `
      + "or train one: python -m training.";
  shelf.append(make("p", "empty", words));
}

function drawBroken() {
  const bad = cards().filter((card) => card.problem);
  broken.hidden = !bad.length;
  if (!bad.length) return;
  const list = make("ul");
  for (const card of bad) {
    const item = make("li");
    item.append(make("strong", "", card.name), make("span", "", `: ${card.problem}`));
    list.append(item);
  }
  const count = bad.length === 1 ? "1 folder is not usable" : `${bad.length} folders are not usable`;
  broken.replaceChildren(make("summary", "", count), list);
}

function draw() {
  drawHead();
  chosen.replaceChildren(...Object.entries(mix()).map(([name, one]) => chosenRow(name, one)));
  drawShelf();
  drawBroken();
}

watch(["cards", "value"], draw);
draw();
