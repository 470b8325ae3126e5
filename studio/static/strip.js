// Recent pictures as a row of thumbnails; `props.value` lists {name, source, title}, newest first;
// `props.more` says whether there are older ones.

const root = element.querySelector(".strip");

function draw() {
  const pictures = props.value || [];
  const nodes = pictures.map((picture) => {
    const node = document.createElement("button");
    node.type = "button";
    node.dataset.name = picture.name;
    node.title = picture.title;
    const image = document.createElement("img");
    image.src = picture.source;
    image.alt = picture.title;
    image.loading = "lazy";
    node.append(image);
    node.addEventListener("click", () => trigger("pick", { name: picture.name }));
    return node;
  });
  if (!nodes.length) {
    const words = document.createElement("p");
    words.className = "empty";
    words.textContent = "Your pictures gather here and stay after a restart.";
    nodes.push(words);
  }
  if (props.more) {
    const more = document.createElement("button");
    more.type = "button";
    more.className = "older";
    more.textContent = "Show older";
    more.addEventListener("click", () => trigger("more", { shown: pictures.length }));
    nodes.push(more);
  }
  root.replaceChildren(...nodes);
}

watch(["value", "more"], draw);
draw();
