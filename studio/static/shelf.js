// The library's cards, with search, tags and filters.
// `props.value` is {cards: [{name, title, kind, method, words, tags, size, about, thumbnail, problem}],
// chosen, and what `bin.js` takes}. Events: `choose` {name}, `restore` {ticket}, `empty`, `rescan`.

const KINDS = { style: "Styles", concept: "Concepts", "": "Others" };
const view = { text: "", kind: "*", method: "*", tag: "" };

const root = element.querySelector(".shelf");
const bin = makeBin(() => value());
const tools = make("div", "shelf-tools");
const tags = make("div", "shelf-tags");
const grid = make("div", "shelf-grid");
const count = make("p", "quiet shelf-count");
count.setAttribute("role", "status");
root.append(bin.notice, tools, tags, count, grid, bin.list);

const value = () => props.value || { cards: [], bin: [] };

const search = make("input", "shelf-search");
search.type = "search";
search.placeholder = "Find by name, trigger word, tag or description";
search.setAttribute("aria-label", "Find an adapter");
search.addEventListener("input", () => {
  view.text = search.value;
  drawGrid();
});

function choice(label, key) {
  const node = make("select");
  node.setAttribute("aria-label", label);
  node.addEventListener("change", () => {
    view[key] = node.value;
    drawGrid();
  });
  return node;
}
const kinds = choice("Kind", "kind");
const methods = choice("Method", "method");
tools.append(search, kinds, methods, press("act", "Rescan", "Look for new adapters on disk", () => trigger("rescan", {})));

function options(node, label, found, key) {
  fill(node, [label, found], () => [["*", label], ...found].map(([name, words]) => {
    const one = make("option", "", words);
    one.value = name;
    return one;
  }));
  if (!["*", ...found.map((one) => one[0])].includes(view[key])) view[key] = "*";
  node.value = view[key];
}

function drawTools() {
  const cards = value().cards;
  options(kinds, "All kinds", Object.entries(KINDS).filter(([name]) => cards.some((card) => card.kind === name)), "kind");
  const found = [...new Set(cards.map((card) => card.method))].filter(Boolean).sort();
  options(methods, "All methods", found.map((name) => [name, name]), "method");
  const known = [...new Set(cards.flatMap((card) => card.tags))].sort();
  if (!known.includes(view.tag)) view.tag = "";
  tags.hidden = !known.length;
  fill(tags, [known, view.tag], () => known.map((tag) => {
    const node = press(`chip${view.tag === tag ? " active" : ""}`, `#${tag}`, "", () => {
      view.tag = view.tag === tag ? "" : tag;
      draw();
      [...tags.children].find((one) => one.textContent === `#${tag}`)?.focus();
    });
    node.setAttribute("aria-pressed", String(view.tag === tag));
    return node;
  }));
}

function fits(card) {
  const text = [card.name, card.title, card.about, card.method, ...card.words, ...card.tags].join(" ").toLowerCase();
  return (view.kind === "*" || card.kind === view.kind) && (view.method === "*" || card.method === view.method)
    && (!view.tag || card.tags.includes(view.tag))
    && view.text.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

function drawCard(card) {
  const node = press(`shelf-card${card.name === value().chosen ? " active" : ""}`, undefined, `Open ${card.title}`,
    () => trigger("choose", { name: card.name }));
  node.dataset.name = card.name;
  node.setAttribute("aria-pressed", String(card.name === value().chosen));
  const thumb = make("span", "shelf-thumb", card.thumbnail ? undefined : card.title.slice(0, 1).toUpperCase());
  if (card.thumbnail) thumb.append(picture(card.thumbnail, ""));
  const body = make("span", "shelf-body");
  body.append(make("span", "shelf-title", card.title));
  body.append(make("span", "quiet", card.problem ? "cannot be used" : [card.method, card.kind, card.size].filter(Boolean).join(" · ")));
  if (card.words.length) body.append(make("span", "shelf-words", card.words.join(", ")));
  node.append(thumb, body);
  node.classList.toggle("broken", Boolean(card.problem));
  return node;
}

function drawGrid() {
  const all = value().cards;
  const cards = all.filter(fits);
  fill(grid, [cards, value().chosen], () => cards.map(drawCard));
  count.textContent = cards.length === all.length ? `${all.length} adapters` : `${cards.length} of ${all.length} adapters`;
  if (cards.length) return;
  count.textContent = all.length ? "Nothing fits this search."
    : "No adapters yet: train one, import a file, or put a folder with an adapter.safetensors into the adapters folder.";
}

let followed = "";

function follow() {
  // Beside the cards the details stay in view; on a narrow window they lie far below.
  const chosen = value().chosen;
  const leaf = document.querySelector("#library-leaf");
  if (chosen && chosen !== followed && leaf) {
    leaf.scrollTop = 0;
    if (window.innerWidth <= 760) leaf.scrollIntoView({ behavior: "smooth" });
  }
  followed = chosen;
}

function draw() {
  follow();
  drawTools();
  drawGrid();
  bin.draw();
}

watch("value", draw);
draw();
