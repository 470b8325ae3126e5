// Small helpers of our page components. What comes from files or people only ever becomes text.

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const press = (className, text, label, onClick) => {
  const node = make("button", className, text);
  node.type = "button";
  if (label) node.title = label;
  if (label && !text) node.setAttribute("aria-label", label);
  node.addEventListener("click", onClick);
  return node;
};
const picture = (source, alt) => {
  const image = make("img");
  image.src = source;
  image.alt = alt;
  image.loading = "lazy";
  return image;
};
// Redraws a part of the page only when what it shows has changed, so that focus and scrolling stay.
const shownAs = new WeakMap();
const fill = (node, content, build) => {
  const key = JSON.stringify(content);
  if (shownAs.get(node) === key) return;
  shownAs.set(node, key);
  node.replaceChildren(...build());
};
