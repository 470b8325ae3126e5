// The pictures of an image set with their captions, each editable; `props.value` is
// {set, images: [{name, told, source, captions}], removed: {name, told} or null}.
// Events: `caption` {name, captions}, `take_out` {name}, `put_back` {name}.

const root = element.querySelector(".captions");
const undo = make("div", "notice");
const list = make("div", "captions-list");
root.append(undo, list);
undo.setAttribute("role", "status");

function remember(name, captions) {
  // In the value too, so that Start takes what was typed a moment ago.
  const images = props.value.images.map((one) => (one.name === name ? { ...one, captions } : one));
  props.value = { ...props.value, images };
}

function row(image) {
  const node = make("div", "caption");
  node.dataset.name = image.name;
  const text = make("textarea");
  text.value = image.captions;
  text.rows = Math.max(2, image.captions.split("\n").length);
  text.placeholder = "What does it show?";
  text.setAttribute("aria-label", `Captions of ${image.told}, one a line`);
  text.addEventListener("input", () => {
    node.classList.toggle("missing", !text.value.trim());
    remember(image.name, text.value);
  });
  text.addEventListener("change", () => trigger("caption", { name: image.name, captions: text.value }));
  const frame = make("span", "caption-thumb");
  frame.append(picture(image.source, ""));
  frame.title = image.told;
  node.classList.toggle("missing", !image.captions.trim());
  node.append(frame, text, press("cross", "×", `Take ${image.told} out`, () => trigger("take_out", { name: image.name })));
  return node;
}

function draw() {
  const value = props.value || { images: [] };
  const removed = value.removed;
  undo.hidden = !removed;
  fill(undo, removed, () => (removed
    ? [make("span", "", `${removed.told} was taken out.`),
      press("link", "Undo", "Put it back", () => trigger("put_back", { name: removed.name }))]
    : []));
  // What is being typed must not be redrawn under the fingers.
  const typed = [...list.querySelectorAll("textarea")].map((one) => one.value);
  const asked = value.images.map((one) => one.captions);
  const names = value.images.map((one) => `${value.set} ${one.name}`).join();
  if (list.dataset.names === names && JSON.stringify(typed) === JSON.stringify(asked)) return;
  list.dataset.names = names;
  list.replaceChildren(...value.images.map(row));
  if (value.images.length) return;
  const empty = make("p", "empty");
  empty.append("No pictures yet. For a style 20 to 30 different things drawn in it, for one thing 5 to 7 pictures of it.");
  list.append(empty);
}

watch("value", draw);
draw();
